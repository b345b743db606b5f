"""`tracking: tensorboard`: a run's points appear as it trains. What fails here ends no run and changes no bit."""

import errno
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from clip_hba_behavior.config import Config
from clip_hba_behavior.reproducibility.record.lines import Position
from clip_hba_behavior.reproducibility.record.protocol import Event, StepDone
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.event_file import (
    FOLDER,
    record_of,
    refuse_foreign,
    refuse_no_tensorboard,
    write_events,
)
from clip_hba_behavior.run.scalars import Scalars, longest_epoch, of_epoch, of_step, scalars_of


def refuse_no_tracking(config: Config, run: RunDirectory) -> None:
    """Return if a run can be tracked as its configuration asks.

    Raises:
        BadInputError: TensorBoard is not installed, or the run's folder for it holds something else.
    """
    if config.tracking is not None:
        refuse_no_tensorboard(f"tracking: {config.tracking}")
        refuse_foreign(run.path / FOLDER)


class Tracker:
    """Adds what a run records to its event file.

    The CSV and the ledger hold every point, and the file is made of them at any time. So when it cannot be written
    the log says so, once, and the run goes on.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        ledger: Mapping[Position, str],
        rows: Mapping[Position, str],
        num_steps: int,
        logger: logging.Logger,
    ) -> None:
        """Write all points up to the state that the run begins or goes on with; nothing if it is not tracked.

        Args:
            run: held by this process.
            config: the run's.
            ledger: its lines up to that state.
            rows: of results up to that state.
            num_steps: of a whole epoch from now on.
            logger: told of a failure.
        """
        self._run, self._logger = run, logger
        self._num_steps = max(num_steps, longest_epoch(ledger))
        self._file: BinaryIO | None = None
        if config.tracking is not None:
            points = scalars_of(ledger, rows, self._num_steps)
            self._attempt(lambda: self._open(config, points))

    def record(self, event: Event) -> None:
        """Add an event that is on record."""
        if (file := self._file) is not None:
            self._attempt(lambda: self._add(file, event))

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # of what could not be written the log has told
                file.close()

    def _open(self, config: Config, points: Iterable[Scalars]) -> None:
        path = write_events(self._run.path / FOLDER, config.trajectory(), points)
        self._file = path.open("ab")
        self._logger.info("Points for TensorBoard are in %s", path.parent)

    def _add(self, file: BinaryIO, event: Event) -> None:
        if isinstance(event, StepDone):
            file.write(record_of(of_step(event.epoch, event.step, event.loss, self._num_steps)))
        else:
            file.write(record_of(of_epoch(event.metrics)))
            if not Path(file.name).exists():  # else it would be filled where nobody finds it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.name)
        file.flush()

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            self.close()
            self._logger.warning(
                "No more points go to TensorBoard: %s\n  the run goes on, and records them; to have them: %s",
                error,
                command_line("publish", self._run.path, "--to", "tensorboard"),
            )
