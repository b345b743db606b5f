"""A run's directory: which files it has, and how each is written so that it is whole or absent."""

import csv
import io
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config, read_config_file
from clip_hba_behavior.reproducibility.record.lease import Lease, LeaseLostError, hold
from clip_hba_behavior.reproducibility.record.ledger import Ledger, Position, RecordFile
from clip_hba_behavior.reproducibility.state.errors import AnotherFormatError, BadInputError
from clip_hba_behavior.reproducibility.state.files import publish, replace, sync_directory
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text
from clip_hba_behavior.run.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    list_step_checkpoints,
    read_checkpoint,
    save_step_checkpoint,
)
from clip_hba_behavior.training.state import TrainingState

COLUMNS = (
    "epoch",
    "train_loss",
    "test_loss",
    "behavioral_rsa_rho",
    "behavioral_rsa_p_value",
    "used_random_targets",
    "used_shuffled_targets",
    "perturb_type",
)
_COPIED_FIRST = ("steps.jsonl", "training_res.csv")  # of another run's history; its checkpoints follow


class RunDirectory:
    """Paths and files of one run. Files that record the run are never replaced, only added to."""

    def __init__(self, path: Path) -> None:
        """Name a run directory; nothing is read or made yet."""
        self.path = path
        self.checkpoints = path / "dora_params"
        self.step_checkpoints = path / "step_checkpoints"
        self.log_file = path / "training_log.txt"
        self.forks_file = path / "forks.txt"
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"
        self.lease: Lease | None = None

    @contextmanager
    def created(self) -> Iterator[None]:
        """Make the directory and hold it. If it stays without a first state, nothing of it is left.

        Raises:
            BadInputError: it holds a run already, or something else.
        """
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        self._refuse_if_used()
        self.path.mkdir(parents=True, exist_ok=True)
        with self._hold():
            self._refuse_if_used()  # another process may have come first
            self._remove_unpublished()
            try:
                yield
            finally:
                if not list_checkpoints(self.checkpoints):
                    with suppress(LeaseLostError):  # what is there now may be another's
                        self.check_held()
                        self._remove_empty(made)

    def _refuse_if_used(self) -> None:
        if self.path.exists() and not self._never_began():
            holds = "a run" if self.config_file.exists() else "other files"
            raise BadInputError(
                f"the run directory {self.path} is not empty: it holds {holds}\n"
                f"  go on with it by `clip-hba resume {self.path}`, or give another --run-dir"
            )

    def _never_began(self) -> bool:
        """Whether nothing is here but what a start leaves that was killed before its first state."""
        if not self.path.is_dir() or list_checkpoints(self.checkpoints):
            return False
        own = {"run.lock", "config.yaml", "environment.json", "training_log.txt", "dora_params"}
        found = {each.name for each in self.path.iterdir() if not _is_temporary(each)}
        copies = found & set(_COPIED_FIRST)
        if "config.yaml" in found:  # another's config.yaml does not name this directory
            try:
                if copies and self.read_environment().get("continued_from") is None:
                    return False  # a ledger whose checkpoints someone took away is no copy
                return found - copies <= own and self.read_config().run_dir == str(self.path)
            except BadInputError:
                return False
        return found <= {"run.lock", "training_log.txt"}

    def remove_temporary_files(self) -> None:
        """Remove what a killed process had not published yet. Only for the process that holds the run."""
        for directory in (self.path, self.checkpoints, self.step_checkpoints):
            for path in directory.iterdir() if directory.is_dir() else []:
                if _is_temporary(path):
                    path.unlink(missing_ok=True)

    def _remove_unpublished(self) -> None:
        """Remove what a start, or a copy of a history, leaves that ended before its first checkpoint."""
        self.remove_temporary_files()
        for name in _COPIED_FIRST:
            (self.path / name).unlink(missing_ok=True)

    def _remove_empty(self, made: list[Path]) -> None:
        """Take back what a start that failed has made: its own files, and directories it created."""
        self._remove_unpublished()
        for name in ("config.yaml", "environment.json", "training_log.txt", "run.lock"):
            (self.path / name).unlink(missing_ok=True)
        for directory in (self.checkpoints, *made):
            if directory.is_dir() and not any(directory.iterdir()):
                directory.rmdir()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold an existing run's directory.

        Raises:
            BadInputError: there is no run in it, or another process holds it.
        """
        if not self.config_file.is_file():
            raise BadInputError(f"there is no run in {self.path}: it has no config.yaml")
        with self._hold():
            yield

    @contextmanager
    def _hold(self) -> Iterator[None]:
        with hold(self.path) as self.lease:
            try:
                yield
            finally:
                self.lease = None

    def check_held(self) -> None:
        """Return if a directory that this process holds is still its own; to be asked before publishing in it.

        Raises:
            LeaseLostError: another process holds it, or could have taken it.
        """
        if self.lease is not None:
            self.lease.check()

    def write_config(self, config: Config) -> None:
        """Write the resolved configuration, once for a new run, again when `epochs` is extended."""
        replace(self.config_file, config.to_yaml().encode())

    def read_config(self) -> Config:
        """Read the resolved configuration."""
        return make_config(read_config_file(self.config_file))

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Write `environment.json`."""
        replace(self.environment_file, (json.dumps(environment, indent=2) + "\n").encode())

    def read_environment(self) -> dict[str, Any]:
        """Read `environment.json`."""
        try:
            with open_text(self.environment_file, 16 * MIB) as file:
                return dict(json.load(file))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise BadInputError(f"{self.environment_file} cannot be read: {error}") from None

    def read_state(self, epoch: int) -> Checkpoint:
        """Read the state after an epoch.

        Raises:
            BadInputError: there is none, or it is damaged, or it is another epoch's.
        """
        found = list_checkpoints(self.checkpoints)
        if epoch not in found:
            which = f"epochs {min(found)} to {max(found)}" if found else "none"
            raise BadInputError(
                f"{self.path} has no checkpoint of epoch {epoch}\n  found:    {which}\n"
                "  give --from-epoch one of those"
            )
        checkpoint = read_checkpoint(found[epoch])
        if checkpoint.whole_state().epoch != epoch:
            raise BadInputError(
                f"{found[epoch].name} holds another epoch's state\n"
                f"  found:    epoch {checkpoint.whole_state().epoch}\n  expected: epoch {epoch}\n"
                "  put the files back under their own names"
            )
        return checkpoint

    def newest_epoch(self) -> int:
        """Return the newest epoch's number, whatever state its file is in.

        Raises:
            BadInputError: there is none.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise BadInputError(f"{self.path} has no checkpoint: it never began")
        return max(found)

    def newest_state(self, logger: logging.Logger) -> Checkpoint:
        """Find the newest whole state. A file that is damaged is named and set aside, and the one before it taken.

        Raises:
            BadInputError: there is none, or a file of a later version of this package is in the way.
        """
        found = {(epoch, 0): path for epoch, path in list_checkpoints(self.checkpoints).items()}
        found |= list_step_checkpoints(self.step_checkpoints)
        for position, path in sorted(found.items(), reverse=True):
            try:
                checkpoint = read_checkpoint(path)
                if checkpoint.state is None:
                    raise BadInputError(f"{path} holds only part of a state")
                reached = (checkpoint.state.epoch, checkpoint.state.step_in_epoch)
                if reached != position:
                    raise BadInputError(
                        f"{path} holds another state than its name says\n"
                        f"  found:    {reached[0]} epochs and {reached[1]} steps\n"
                        f"  expected: {position[0]} epochs and {position[1]} steps"
                    )
                return checkpoint
            except AnotherFormatError:
                raise
            except BadInputError as error:
                aside = _set_aside(path)
                logger.warning("Not a whole state, set aside as %s: %s", aside.name, error)
        raise BadInputError(
            f"{self.path} has no whole checkpoint to go on from\n"
            f"  found:    {len(found)} files, all refused; see the lines above\n"
            "  start the run again in a new --run-dir"
            if found
            else f"{self.path} has no checkpoint: it never began\n  start it again with `clip-hba train`"
        )

    def save_step(self, state: TrainingState, provenance: Mapping[str, Any]) -> None:
        """Save the state within an epoch; of those, the two newest stay."""
        save_step_checkpoint(self.step_checkpoints, state, provenance)
        for path in list(list_step_checkpoints(self.step_checkpoints).values())[:-2]:
            path.unlink()

    def remove_steps_before(self, epoch: int) -> None:
        """Remove the states within epochs that are complete: the epoch's own checkpoint is whole."""
        for (completed, _), path in list_step_checkpoints(self.step_checkpoints).items():
            if completed < epoch:
                path.unlink()

    def remove_checkpoints(self, policy: str, best: int) -> None:
        """Remove what `keep_checkpoints` does not keep.

        The first and the newest checkpoint, the best, and those that a fork began with always stay.
        """
        epochs = list(list_checkpoints(self.checkpoints))
        word, _, number = policy.partition(" ")
        if word == "all" or len(epochs) < 3:
            return
        keep = {epochs[0], epochs[-1], best, *self.forked_epochs()}
        if word == "last":
            keep.update(epochs[-int(number) :])
        elif word == "every":
            keep.update(epoch for epoch in epochs if epoch % int(number) == 0)
        for epoch in epochs:
            if epoch not in keep:
                checkpoint_path(self.checkpoints, epoch).unlink()

    def forked_epochs(self) -> set[int]:
        """Return the epochs that forks began with, as they wrote them down here."""
        try:
            lines = self.forks_file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return set()
        return {int(line.partition(" ")[0]) for line in lines if line.partition(" ")[0].isdecimal()}

    def note_fork(self, epoch: int, fork: Path) -> None:
        """Write down that a fork begins with the state after `epoch`, so that its checkpoint stays."""
        is_torn = self.forks_file.exists() and not self.forks_file.read_bytes().endswith(b"\n")
        with self.forks_file.open("a", encoding="utf-8") as file:
            file.write(("\n" if is_torn else "") + f"{epoch} {fork}\n")
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self.path)

    def check_space(self, needed: int) -> None:
        """Refuse to train on where the disk cannot hold what is to come.

        Raises:
            BadInputError: names both amounts.
        """
        free = shutil.disk_usage(self.path).free
        if free < needed:
            raise BadInputError(
                f"there is not enough space in {self.path}\n  found:    {free / 1e9:.2f} GB free\n"
                f"  expected: {needed / 1e9:.2f} GB, for all epochs\n"
                "  make space, or keep fewer checkpoints: keep_checkpoints"
            )

    def copy_history(self, source: "RunDirectory", epoch: int) -> None:
        """Copy another run's ledger, results and checkpoints up to an epoch, so that this run holds both."""
        for name in _COPIED_FIRST:
            if (source.path / name).exists():
                publish(self.path / name, (source.path / name).read_bytes())
        self.checkpoints.mkdir(exist_ok=True)
        for each, path in list_checkpoints(source.checkpoints).items():
            if each <= epoch:
                publish(self.checkpoints / path.name, path.read_bytes())

    def open_ledger(self, after: Position, supersede: bool = False) -> Ledger:
        """Open `steps.jsonl` for a run that goes on from the state `after`; see `RecordFile`."""
        return Ledger(self.path / "steps.jsonl", after, supersede)

    def open_results(self, after: Position, supersede: bool = False) -> RecordFile:
        """Open `training_res.csv` for a run that goes on from the state `after`; see `RecordFile`.

        Rows that are missing or torn are made again from the checkpoints, each of which holds its own.
        """
        path = self.path / "training_res.csv"
        header = ",".join(COLUMNS)
        results = RecordFile(path, after, _results_position, header, supersede)
        rows = {int(line.partition(",")[0]): line for line in results.kept_lines}
        checkpoints = list_checkpoints(self.checkpoints)
        first = min(checkpoints, default=0)  # the first state's row, if it has one, is its parent's
        lost = [epoch for epoch in checkpoints if first < epoch <= after[0] and epoch not in rows]
        if lost:
            for epoch in lost:
                rows[epoch] = format_row(self.read_state(epoch).whole_state().metrics) + "\n"
            results.close()
            lines = [rows[epoch] for epoch in sorted(rows)]
            replace(path, "".join([header + "\n", *lines]).encode())
            results = RecordFile(path, after, _results_position, header)
        return results

    def find_best(self, logger: logging.Logger) -> tuple[int, float]:
        """Return the recorded epoch with the lowest test loss, and that loss; the first state counts."""
        losses: dict[int, float] = {}
        first = min(list_checkpoints(self.checkpoints))
        try:
            losses[first] = float(self.read_state(first).whole_state().metrics["test_loss"])
        except BadInputError as error:
            logger.warning("The first state cannot be read, so it does not count for best.json: %s", error)
        with (self.path / "training_res.csv").open(newline="") as file:
            losses |= {int(row["epoch"]): float(row["test_loss"]) for row in csv.DictReader(file)}
        epoch = min(losses, key=lambda each: (losses[each], each), default=first)
        return epoch, losses.get(epoch, math.inf)

    def write_best(self, epoch: int, test_loss: float) -> None:
        """Name "the model" of the run in `best.json`: the epoch with the lowest test loss."""
        file = checkpoint_path(self.checkpoints, epoch).relative_to(self.path)
        best = {"epoch": epoch, "test_loss": test_loss, "checkpoint": str(file)}
        replace(self.path / "best.json", (json.dumps(best) + "\n").encode())


def format_row(metrics: dict[str, Any]) -> str:
    """Return a CSV row without its end; floats are written with repr and read back exactly."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(
        [repr(value) if isinstance(value, float) else value for value in (metrics[each] for each in COLUMNS)]
    )
    return text.getvalue()


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _set_aside(path: Path) -> Path:
    """Rename a refused file, so that it is out of the way and not lost."""
    number = 1
    while (aside := path.with_name(f"{path.name}.refused{number}")).exists():
        number += 1
    path.rename(aside)
    sync_directory(path.parent)
    return aside


def _results_position(line: str) -> Position | None:
    epoch = line.partition(",")[0]
    return (int(epoch), 0) if epoch.isdecimal() and line.count(",") == len(COLUMNS) - 1 else None
