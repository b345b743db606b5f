"""A run's directory: which files it has, and how each is written so that it is whole or absent."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config, read_config_file
from clip_hba_behavior.reproducibility.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
)
from clip_hba_behavior.reproducibility.errors import BadInputError
from clip_hba_behavior.reproducibility.files import one_writer, publish, replace
from clip_hba_behavior.reproducibility.ledger import Ledger, Position, RecordFile

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


class RunDirectory:
    """Paths and files of one run. Files that record the run are never replaced, only added to."""

    def __init__(self, path: Path) -> None:
        """Name a run directory; nothing is read or made yet."""
        self.path = path
        self.checkpoints = path / "dora_params"
        self.log_file = path / "training_log.txt"
        self.config_file = path / "config.yaml"
        self.environment_file = path / "environment.json"

    @contextmanager
    def created(self) -> Iterator[None]:
        """Make the directory and hold it. If it stays without a first state, nothing of it is left.

        Raises:
            BadInputError: it holds a run already, or something else.
        """
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        self._refuse_if_used()
        self.path.mkdir(parents=True, exist_ok=True)
        with one_writer(self.path):
            self._refuse_if_used()  # another process may have come first
            try:
                yield
            finally:
                if not list_checkpoints(self.checkpoints):
                    self._remove_empty(made)

    def _refuse_if_used(self) -> None:
        found = [each.name for each in self.path.iterdir()] if self.path.is_dir() else []
        if self.path.exists() and (not self.path.is_dir() or set(found) - {"run.lock"}):
            holds = "a run" if self.config_file.exists() else "other files"
            raise BadInputError(
                f"the run directory {self.path} is not empty: it holds {holds}\n"
                f"  go on with it by `clip-hba resume {self.path}`, or give another --run-dir"
            )

    def _remove_empty(self, made: list[Path]) -> None:
        """Take back what a start that failed has made: its own files, and directories it created."""
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
        with one_writer(self.path):
            yield

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
            return dict(json.loads(self.environment_file.read_text()))
        except (OSError, ValueError) as error:
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
        """Return the newest checkpoint's epoch.

        Raises:
            BadInputError: there is none.
        """
        found = list_checkpoints(self.checkpoints)
        if not found:
            raise BadInputError(f"{self.path} has no checkpoint; start the run again in a new --run-dir")
        return max(found)

    def copy_history(self, source: "RunDirectory", epoch: int) -> None:
        """Copy another run's ledger, results and checkpoints up to an epoch, so that this run holds both."""
        for name in ("steps.jsonl", "training_res.csv"):
            if (source.path / name).exists():
                publish(self.path / name, (source.path / name).read_bytes())
        self.checkpoints.mkdir(exist_ok=True)
        for each, path in list_checkpoints(source.checkpoints).items():
            if each <= epoch:
                publish(self.checkpoints / path.name, path.read_bytes())

    def open_ledger(self, after: Position) -> Ledger:
        """Open `steps.jsonl` for a run that goes on from the state `after`."""
        return Ledger(self.path / "steps.jsonl", after)

    def open_results(self, after: Position) -> RecordFile:
        """Open `training_res.csv` for a run that goes on from the state `after`.

        Rows that are missing or torn are made again from the checkpoints, each of which holds its own.
        """
        path = self.path / "training_res.csv"
        results = RecordFile(path, after, _results_position, header=",".join(COLUMNS))
        rows = {int(line.partition(",")[0]): line for line in results.kept_lines}
        checkpoints = list_checkpoints(self.checkpoints)
        first = min(checkpoints, default=0)  # the first state's row, if it has one, is its parent's
        lost = [epoch for epoch in checkpoints if first < epoch <= after[0] and epoch not in rows]
        if lost:
            for epoch in lost:
                rows[epoch] = format_row(self.read_state(epoch).whole_state().metrics) + "\n"
            results.close()
            lines = [rows[epoch] for epoch in sorted(rows)]
            replace(path, "".join([",".join(COLUMNS) + "\n", *lines]).encode())
            results = RecordFile(path, after, _results_position, header=",".join(COLUMNS))
        return results

    def find_best(self) -> tuple[int, float]:
        """Return the recorded epoch with the lowest test loss, and that loss; the first state counts."""
        first = min(list_checkpoints(self.checkpoints))
        losses = {first: float(self.read_state(first).whole_state().metrics["test_loss"])}
        with (self.path / "training_res.csv").open(newline="") as file:
            losses |= {int(row["epoch"]): float(row["test_loss"]) for row in csv.DictReader(file)}
        epoch = min(losses, key=lambda each: (losses[each], each))
        return epoch, losses[epoch]

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


def _results_position(line: str) -> Position | None:
    epoch = line.partition(",")[0]
    return (int(epoch), 0) if epoch.isdecimal() and line.count(",") == len(COLUMNS) - 1 else None
