"""What a run left behind, read without changing it and without trusting it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.digest import leaf_digest, leaves
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text
from clip_hba_behavior.run.checkpoint import (
    AlteredCheckpointError,
    Checkpoint,
    list_checkpoints,
    read_checkpoint,
)
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.results_table import ResultsTable, read_results_table

Entry = dict[str, Any]
_MAX_LEDGER_BYTES = 64 * MIB  # a long run's has 20
_MAX_LINE = 1 * MIB  # characters
_MAX_BAD_LINES = 20


@dataclass(frozen=True)
class Recorded:
    """One checkpoint file as it is found.

    Attributes:
        epoch: the number in its name.
        checkpoint: its content; None where there is no file or it cannot be read.
        problem: what is wrong with the file; None if nothing is.
    """

    epoch: int
    checkpoint: Checkpoint | None
    problem: str | None

    def sound(self) -> Checkpoint | None:
        """Return the content of a file with nothing wrong: only such a state may be continued."""
        return self.checkpoint if self.problem is None else None


@dataclass(frozen=True)
class History:
    """A run, or a bare directory of checkpoints.

    Attributes:
        path: the run's directory, or the checkpoints'.
        files: checkpoint files by epoch.
        config: of `config.yaml`; None where there is none.
        environment: of `environment.json`; None where there is none.
        ledger: the entry of each `(epoch, step)`, where step is a number or `END_OF_EPOCH`.
        results: the results CSV; None where there is none.
        problems: what is wrong with these files.
        notes: what is not there, and need not be.
    """

    path: Path
    files: dict[int, Path]
    config: Config | None = None
    environment: dict[str, Any] | None = None
    ledger: dict[tuple[int, int | str], Entry] = field(default_factory=dict)
    results: ResultsTable | None = None
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def read(self, epoch: int) -> Recorded:
        """Read one checkpoint, whatever state it is in."""
        path = self.files.get(epoch)
        if path is None:
            return Recorded(epoch, None, f"there is no checkpoint of epoch {epoch}")
        try:
            checkpoint = read_checkpoint(path)
        except AlteredCheckpointError as error:
            return Recorded(epoch, error.altered, str(error).rsplit("\n", 1)[0])
        except (BadInputError, OSError) as error:
            return Recorded(epoch, None, str(error))
        if checkpoint.state is not None and (checkpoint.state.epoch, checkpoint.state.step_in_epoch) != (epoch, 0):
            step = checkpoint.state.step_in_epoch
            found = f"epoch {checkpoint.state.epoch}" + (f" and {step} steps" if step else "")
            problem = (
                f"{path.name} holds another state than its name says: the one after {found}; "
                "was it renamed, or exchanged with another?"
            )
            return Recorded(epoch, checkpoint, problem)
        return Recorded(epoch, checkpoint, None)

    def end_of(self, epoch: int) -> Entry | None:
        """Return the ledger's entry of an epoch's end."""
        return self.ledger.get((epoch, END_OF_EPOCH))

    def num_steps(self, epoch: int) -> int:
        """Return how many steps of an epoch the ledger has."""
        return sum(1 for each, step in self.ledger if each == epoch and step != END_OF_EPOCH)

    def leaves_beside_the_ledger(self, state: TrainingState) -> list[str] | None:
        """Name the parts of a state that the ledger recorded with another digest at this epoch's end.

        Returns:
            None where the ledger does not have this epoch's end.
        """
        end = self.end_of(state.epoch)
        if end is None or "state" not in end:
            return None
        now = {name: value[:16] for name, value in ledger_leaves(state).items()}
        return sorted(name for name in now.keys() | end["state"].keys() if now.get(name) != end["state"].get(name))

    def epoch_with_parameters(self, state: TrainingState) -> int | None:
        """Return the epoch at whose end the ledger recorded these very parameters."""
        now = {name: value[:16] for name, value in ledger_leaves(state).items() if name.startswith("parameters/")}
        for (epoch, step), entry in self.ledger.items():
            if step == END_OF_EPOCH and now.items() <= entry.get("state", {}).items():
                return epoch
        return None

    def epoch_with_batch(self, batch: str) -> int | None:
        """Return the epoch in whose first step the ledger recorded this very batch."""
        found = (
            epoch for (epoch, step), entry in self.ledger.items() if step == 1 and entry.get("batch") == batch
        )
        return next(found, None)


def ledger_leaves(state: TrainingState) -> dict[str, str]:
    """Return the digests of the parts that a ledger records, under its names (see `Trainer.leaf_digests`)."""
    parts = {
        "parameters": state.parameters,
        "optimizer_state": state.optimizer_state.get("state", {}),
        "rng_state": state.rng_state,
    }
    return {name: leaf_digest(leaf) for name, leaf in leaves(parts)}


def read_history(path: Path) -> History:
    """Read a run's directory, its `dora_params`, or any directory of checkpoints.

    Raises:
        BadInputError: there are no checkpoints.
    """
    path = path.expanduser().absolute()
    if path.name == "dora_params" and (path.parent / "config.yaml").is_file():
        path = path.parent
    directory = RunDirectory(path)
    if not directory.config_file.is_file() or not directory.checkpoints.is_dir():
        files = list_checkpoints(directory.checkpoints) or list_checkpoints(path)
        if not files:
            raise BadInputError(
                f"{path} holds no checkpoints\n  expected: a run's directory, or one with epochN_dora_params.pth"
            )
        return History(path, files)

    problems: list[str] = []

    def attempt(read: Any) -> Any:
        try:
            return read()
        except (BadInputError, OSError) as error:
            problems.append(str(error))
            return None

    files = list_checkpoints(directory.checkpoints)
    if not files:
        raise BadInputError(f"{directory.checkpoints} holds no checkpoints")
    csv_file = path / "training_res.csv"
    ledger = path / "steps.jsonl"
    missing = [each for each in (ledger, csv_file) if not each.exists()]
    entries = _read_ledger(ledger, problems) if ledger.exists() else {}
    results = attempt(lambda: read_results_table(csv_file)) if csv_file.exists() else None
    return History(
        path=path,
        files=files,
        config=attempt(directory.read_config),
        environment=attempt(directory.read_environment),
        ledger=entries,
        results=results,
        problems=tuple(problems),
        notes=(
            *(f"{each} is not there; what it recorded is not compared" for each in missing),
            *_lost_lines(files, entries, results),
        ),
    )


def _lost_lines(
    files: Mapping[int, Path], ledger: Mapping[tuple[int, int | str], Entry], results: ResultsTable | None
) -> list[str]:
    """Name epochs that have a checkpoint, but not all of their lines; these are written before it."""
    epochs = [epoch for epoch in files if epoch > min(files)]  # the first state's lines are its parent's
    num_lines = Counter(epoch for epoch, _ in ledger)
    lost = {
        "steps.jsonl": [epoch for epoch in epochs if ledger and num_lines[epoch] < max(num_lines.values())],
        "training_res.csv": [epoch for epoch in epochs if results is not None and epoch not in results.rows],
    }
    return [
        f"{name} lacks lines of epoch {', '.join(map(str, found))}; what they recorded is not compared"
        for name, found in lost.items()
        if found
    ]


def _read_ledger(path: Path, problems: list[str]) -> dict[tuple[int, int | str], Entry]:
    entries: dict[tuple[int, int | str], Entry] = {}
    num_bad = 0
    try:
        with open_text(path, _MAX_LEDGER_BYTES, errors="replace") as file:
            number = 0
            while (line := file.readline(_MAX_LINE)) and num_bad < _MAX_BAD_LINES:
                number += 1
                try:
                    entry = _entry(json.loads(line))
                except (ValueError, KeyError, TypeError, RecursionError):
                    num_bad += 1
                    problems.append(f"{path.name}, line {number}: not a whole line of the ledger")
                    continue
                entries[entry["epoch"], entry["step"]] = entry
    except OSError as error:
        problems.append(f"{path} cannot be read: {error}")
    if num_bad == _MAX_BAD_LINES:
        problems.append(f"{path.name} is not read further: {num_bad} of its lines are none of a ledger")
    return entries


def _entry(found: Any) -> Entry:
    """Return a ledger's entry, if it is one: numbers, texts, and dicts of them."""
    epoch, step = found["epoch"], found["step"]
    if type(epoch) is not int or (type(step) is not int and step != END_OF_EPOCH):
        raise ValueError
    for name, value in found.items():
        inner = value.values() if isinstance(value, dict) and name in ("state", "metrics") else [value]
        if any(isinstance(each, dict | list) for each in inner) or (name == "state" and inner == [value]):
            raise ValueError
    return dict(found)
