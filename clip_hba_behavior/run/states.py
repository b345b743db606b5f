"""The states of a run on disk: which is resumed from, which stay, and what of the rest is kept apart."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_hba_behavior.reproducibility.record.record_file import RecordFile
from clip_hba_behavior.reproducibility.record.states import Refused, epochs_to_keep, newest_complete
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint import Checkpoint, read_named, save_dora_parameters, save_step_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints, list_step_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import epoch_line
from clip_hba_behavior.run.results import parse_row
from clip_hba_behavior.training.state import TrainingState

if TYPE_CHECKING:  # who only reads states does without the model and its libraries
    from clip_hba_behavior.training.trainer import Trainer


def read_epoch(run: RunDirectory, epoch: int) -> Checkpoint:
    """Read the complete state after an epoch.

    Raises:
        BadInputError: there is none, or it is damaged, or it is another epoch's.
    """
    checkpoint = read_named(run.checkpoint_of(epoch))
    checkpoint.whole_state()
    return checkpoint


def newest_state(run: RunDirectory, logger: logging.Logger) -> tuple[Checkpoint, Refused]:
    """Find the newest complete state; nothing is moved yet.

    Returns:
        The state, and newer files that are damaged: see `quarantine`.

    Raises:
        BadInputError: there is none, or a file of a later version of this package is in the way.
    """
    found = {(epoch, 0): path for epoch, path in list_checkpoints(run.checkpoints).items()}
    found |= list_step_checkpoints(run.step_checkpoints)

    def read(path: Path) -> Checkpoint:
        checkpoint = read_named(path)
        checkpoint.whole_state()
        return checkpoint

    newest, refused = newest_complete(found, read)
    if newest is not None:
        return newest, refused
    for _, why in refused:
        logger.warning("Not a complete state: %s", why)
    raise BadInputError(
        f"{run.path} has no complete checkpoint to resume from\n"
        f"  found:    {len(found)} files, all refused; see the lines above\n"
        "  start the run again in a new --run-dir"
        if found
        else f"{run.path} has no checkpoint: it never began\n  start it again with `clip-hba train`"
    )


class RunStore:
    """Where a recorder puts the states of a run, and which of them stay."""

    def __init__(
        self,
        run: RunDirectory,
        trainer: "Trainer",
        provenance: Mapping[str, Any],
        results: RecordFile,
        logger: logging.Logger,
        save_rng_state: bool = True,
    ) -> None:
        """Find the best epoch so far, and remove what a killed process had not come to remove.

        Args:
            run: held by this process.
            trainer: what trains.
            provenance: what each checkpoint says of its origin.
            results: the rows so far.
            logger: for a line an epoch.
            save_rng_state: without it the checkpoints are partial and cannot be continued.
        """
        self._run, self._trainer, self._provenance = run, trainer, provenance
        self._logger, self._save_rng_state = logger, save_rng_state
        self._best = self._find_best(results)
        self._began = time.monotonic()
        run.write_best(*self._best)
        self._remove_steps_before(trainer.epoch)
        self._remove_checkpoints()

    def check_held(self) -> None:
        """Return if this process may still write."""
        self._run.check_held()

    def save_step(self, state: TrainingState) -> bool:
        """Save the state within an epoch; of those, the two newest stay."""
        beside = self._trainer.undrawn_streams()
        save_step_checkpoint(self._run.step_checkpoints, state, self._provenance, beside)
        for path in list(list_step_checkpoints(self._run.step_checkpoints).values())[:-2]:
            path.unlink()
        return True

    def save_epoch(self, state: TrainingState) -> None:
        """Save the state at an epoch's end, and what is known only then."""
        run, config = self._run, self._trainer.config
        now = time.monotonic()
        self._logger.info(epoch_line(state.metrics, config.epochs, now - self._began))
        self._began = now
        save_dora_parameters(
            self._trainer.model,
            run.checkpoints,
            state.epoch,
            self._logger,
            self._save_rng_state,
            state,
            self._provenance,
            self._trainer.undrawn_streams(),
        )
        if state.metrics["test_loss"] < self._best[1]:
            self._best = (state.epoch, state.metrics["test_loss"])
            run.write_best(*self._best)
        self._remove_steps_before(state.epoch)
        self._remove_checkpoints()

    def _find_best(self, results: RecordFile) -> tuple[int, float]:
        """Return the recorded epoch with the lowest test loss, and that loss; the first state counts."""
        losses: dict[int, float] = {}
        first = min(list_checkpoints(self._run.checkpoints))
        try:
            losses[first] = float(read_epoch(self._run, first).whole_state().metrics["test_loss"])
        except BadInputError as error:
            self._logger.warning("The first state cannot be read, so it does not count for best.json: %s", error)
        losses |= {epoch: float(parse_row(line)["test_loss"]) for (epoch, _), line in results.kept.items()}
        epoch = min(losses, key=lambda each: (losses[each], each), default=first)
        return epoch, losses.get(epoch, math.inf)

    def _remove_steps_before(self, epoch: int) -> None:
        """Remove the states within epochs that are complete: the epoch's own checkpoint is."""
        for (completed, _), path in list_step_checkpoints(self._run.step_checkpoints).items():
            if completed < epoch:
                path.unlink()

    def _remove_checkpoints(self) -> None:
        """Remove what `keep_checkpoints` does not keep.

        The first and the newest checkpoint, the best, and those that a fork began with always stay.
        """
        run = self._run
        epochs = list(list_checkpoints(run.checkpoints))
        always = {self._best[0], *run.forked_epochs()}
        for epoch in set(epochs) - epochs_to_keep(epochs, self._trainer.config.keep_checkpoints, always):
            checkpoint_path(run.checkpoints, epoch).unlink()
