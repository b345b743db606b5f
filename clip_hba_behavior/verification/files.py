"""A run's files as a history: read without changing them and without trusting them."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.reproducibility.record.epoch import Contradiction, Epoch
from clip_hba_behavior.reproducibility.record.ledger import LEDGER, Ledger, Record, Step, read_ledger
from clip_hba_behavior.reproducibility.record.lines import Lines, read_lines
from clip_hba_behavior.reproducibility.record.quarantine import describe, read_records
from clip_hba_behavior.reproducibility.record.record_file import has_pending, recorded_epochs_beyond
from clip_hba_behavior.reproducibility.state.digest import leaf_digest, leaves
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint import AlteredCheckpointError, Checkpoint, read_named
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.results import METRICS, RESULTS, parse_row
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.found import find_checkpoints
from clip_hba_behavior.verification.results_table import ResultsTable

T = TypeVar("T")


@dataclass(frozen=True)
class File:
    """One checkpoint file as it is found.

    Attributes:
        epoch: the number in its name.
        checkpoint: its content; None where there is no file or it cannot be read.
        problem: what is wrong with the file; None if nothing is.
    """

    epoch: int
    checkpoint: Checkpoint | None
    problem: str | None

    @property
    def state(self) -> TrainingState | None:
        """Return the complete state that it holds, right or wrong."""
        return self.checkpoint.state if self.checkpoint is not None else None

    @property
    def origin(self) -> Mapping[str, Any]:
        """Return the provenance; empty where the file has none."""
        return self.checkpoint.provenance if self.checkpoint is not None else {}


class RunFiles:
    """What a run, or a bare directory of checkpoints, records.

    Attributes:
        found: where they are.
        path: the run's directory, or the checkpoints'.
        files: checkpoint files by epoch.
        has_gaps: whether states were left out on purpose; the ledger has their digests.
        config: of `config.yaml`; None where there is none.
        environment: of `environment.json`; empty where there is none.
        ledger: of `steps.jsonl`.
        rows: of the run's own CSV, or the one given, the results by epoch.
        table: a results CSV that was given to be compared; None for the run's own.
        problems: what is wrong with the run's files, or contradicts itself in them.
        notes: what is not there and need not be, and what was repaired.
    """

    def __init__(
        self, path: Path, table: ResultsTable | None = None, states: Collection[int] | None = None
    ) -> None:
        """Read all but the checkpoints.

        Args:
            path: the run's directory, or the checkpoints'.
            table: a results CSV to be compared, in place of the run's own.
            states: the epochs whose states there are, as in a bundle; the others are left out on purpose, and
                their files are not read. None: all that are found.

        Raises:
            BadInputError: there are no checkpoints.
        """
        self.found = find_checkpoints(path)
        run, self.files = self.found.run, self.found.files
        self.path, self.table, self.has_gaps = run.path, table, states is not None
        if states is not None:
            self.files = {epoch: path for epoch, path in self.files.items() if epoch in states}
        self.config: Config | None = None
        self.environment: dict[str, Any] = {}
        self.ledger = Ledger(Lines(run.ledger_file, {}))
        self._cells: dict[int, dict[str, str]] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.file = lru_cache(maxsize=2)(self._read_file)  # the end of one epoch is the start of the next
        if self.found.is_run:
            self._read_run(run)
        self.rows = {epoch: {name: float(cells[name]) for name in METRICS} for epoch, cells in self._cells.items()}
        if table is not None:
            self.rows = table.rows

    def _read_run(self, run: RunDirectory) -> None:
        self.config = self._attempt(run.read_config, run.config_file)
        self.has_gaps |= self.config is not None and self.config.keep_checkpoints != "all"
        self.environment = self._attempt(run.read_environment, run.environment_file) or {}
        self.ledger = self._attempt(lambda: read_ledger(run.ledger_file), run.ledger_file) or self.ledger
        results = self._attempt(lambda: read_lines(run.results_file, RESULTS), run.results_file)
        results = results or Lines(run.results_file, {})
        self._cells = {epoch: parse_row(line) for (epoch, _), line in results.found.items()}
        for lines, schema in ((self.ledger.lines, LEDGER), (results, RESULTS)):
            name, kind = lines.path.name, schema.kind
            self.problems += [f"{name}, {fault}" for fault in lines.faults]
            if not lines.path.exists():
                self.notes.append(f"{lines.path} is not there; what it recorded is not compared")
            if lines.torn:
                self.notes.append(f"{name} ends in a line of {kind} that was cut short; it is not compared")
            if has_pending(lines.path):
                pending = recorded_epochs_beyond(lines.path, schema, max(lines.found, default=(0, 0)))
                self.notes.append(
                    f"{name}: recorded lines of epoch {', '.join(map(str, sorted(pending)))} are pending: "
                    f"`{command_line('resume', self.path)}` must write them again"
                )
        self.notes += self._lost_lines(bool(results.found))
        self.notes += [f"quarantined {describe(record)}" for record in read_records(self.path)]

    def _attempt(self, read: Callable[[], T], path: Path) -> T | None:
        try:
            return read()
        except BadInputError as error:
            self.problems.append(str(error))
        except OSError as error:
            self.problems.append(f"{path} cannot be read: {error}")
        return None

    def _lost_lines(self, has_results: bool) -> list[str]:
        """Name epochs that have a checkpoint, but not all of their lines; these are written before it."""
        epochs = [epoch for epoch in self.files if epoch > min(self.files)]  # the first state's are its parent's
        num_lines = Counter(completed + (step > 0) for completed, step in self.ledger.lines.found)
        lost = {
            "steps.jsonl": [each for each in epochs if num_lines and num_lines[each] < max(num_lines.values())],
            "training_res.csv": [each for each in epochs if has_results and each not in self._cells],
        }
        return [
            f"{name} lacks lines of epoch {', '.join(map(str, found))}; what they recorded is not compared"
            for name, found in lost.items()
            if found
        ]

    def _read_file(self, epoch: int) -> File:
        path = self.files.get(epoch)
        if self.is_left_out(epoch):
            return File(epoch, None, None)
        if path is None:
            return File(epoch, None, f"there is no checkpoint of epoch {epoch}")
        try:
            return File(epoch, read_named(path), None)
        except AlteredCheckpointError as error:
            return File(epoch, error.altered, str(error).partition("\n")[0])
        except (BadInputError, OSError) as error:
            return File(epoch, None, str(error))

    def is_left_out(self, epoch: int) -> bool:
        """Whether an epoch's state was left out on purpose, and the ledger has its digest."""
        is_between = min(self.files) < epoch < max(self.files)
        return self.has_gaps and is_between and epoch not in self.files and self.ledger.end(epoch) is not None

    def origin(self, epoch: int) -> Mapping[str, Any]:
        """Return the provenance of an epoch's state; of one that was left out, the next file's."""
        if self.is_left_out(epoch):
            epoch = min((each for each in self.files if each > epoch), default=epoch)
        return self.file(epoch).origin

    def state_digest(self, epoch: int) -> str | None:
        """Return the digest of the state after an epoch: of its file, or of one left out as the ledger has it."""
        if self.is_left_out(epoch):
            return str((self.ledger.end(epoch) or {})["state_digest"])
        checkpoint = self.file(epoch).checkpoint
        return checkpoint.state_digest if checkpoint is not None else None

    # --- as a history -------------------------------------------------------------------------------

    def epochs(self) -> Sequence[int]:
        """Return the epochs of which there is a checkpoint."""
        return list(self.files)

    def steps(self, number: int) -> dict[Step, Record]:
        """Return the ledger's records of an epoch; no state is loaded."""
        return self.ledger.steps(number)

    def epoch(self, number: int) -> Epoch:
        """Return all that is recorded of an epoch, and where the records contradict each other."""
        before, after = self.file(number - 1), self.file(number)
        origin = after.origin
        found: list[Contradiction] = []
        if after.problem is not None and after.checkpoint is not None:
            found.append(Contradiction("file", after.problem))
        for kind, file in (("start", before), ("end", after)):
            if (text := self._beside_the_ledger(file)) is not None:
                found.append(Contradiction("start" if kind == "start" else "end", text))
        found += [Contradiction("results", text) for text in self._beside_the_results(after)]
        for key, value, own in self._undeclared(origin):
            text = f"{key} was {value!r} in epoch {number}, its file says; the run's is {own!r}"
            found.append(Contradiction("setting", text))
        return Epoch(
            number,
            settings=settings_of(self.origin(number)),
            start=before.checkpoint.recorded() if before.checkpoint is not None else None,
            end=after.checkpoint.recorded() if after.checkpoint is not None else None,
            steps=self.steps(number),
            row=self.rows.get(number, {}),
            contradictions=tuple(found),
        )

    def origins(self) -> dict[int, Mapping[str, Any]]:
        """Return the provenance of each file that says where it comes from; every file is read."""
        return {epoch: origin for epoch in self.files if "config" in (origin := self.file(epoch).origin)}

    def drift(self) -> list[str]:
        """Return what changed on the run's way and was allowed."""
        return list(self.environment.get("drift", []))

    def _undeclared(self, origin: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
        """Return settings of an epoch that are not the run's, though nothing on record allows them."""
        if self.config is None or "config" not in origin:
            return []
        known = make_config({}).trajectory() | origin["config"]  # a key added later had its default's effect
        return [
            (key, known[key], value)
            for key, value in self.config.trajectory().items()
            if key in known and known[key] != value and not self._allows(key, known[key], value)
        ]

    def _allows(self, key: str, then: Any, now: Any) -> bool:
        """Whether the drift on record leads from one value of a key to another."""
        reached = {str(then)}
        for each in self.drift():
            for value in list(reached):
                start = f"{key} was {value}, is "
                if each.startswith(start):
                    reached.add(each.removeprefix(start))
        return str(now) in reached

    def _beside_the_ledger(self, file: File) -> str | None:
        """Say where a file's state is not the one that the ledger records."""
        end = self.ledger.end(file.epoch)
        if file.state is None or end is None:
            return None
        now, recorded = ledger_leaves(file.state), end.get("state")
        others = []
        if isinstance(recorded, dict):
            others = sorted(name for name in now.keys() | recorded.keys() if now.get(name) != recorded.get(name))
        if not others and end.get("state_digest") not in (None, file.state.digest()):
            others = ["the state digest"]
        if not others:
            return None
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        return f"the file of epoch {file.epoch} and the ledger disagree: {others[0]}{more}"

    def _beside_the_results(self, file: File) -> list[str]:
        """Name the columns of the run's own CSV whose cell is not what the file holds."""
        cells = self._cells.get(file.epoch, {})
        kept = file.state.metrics if file.state is not None else {}
        others = [
            name
            for name, cell in cells.items()
            if kept.get(name) is not None
            and (repr(float(cell)) != repr(float(kept[name])) if name in METRICS else cell != str(kept[name]))
        ]
        return [
            f"{name} of epoch {file.epoch}: training_res.csv and the checkpoint disagree\n"
            f"    in the CSV:        {cells[name]}\n    in the checkpoint: {kept[name]}"
            for name in others
        ]

    def disagreements(self, origins: Mapping[int, Mapping[str, Any]]) -> list[str]:
        """Name where the records of the whole run contradict each other; no replay is needed to see it."""
        problems = list(self.problems)
        first = min(self.files)
        own = {epoch: origin for epoch, origin in origins.items() if epoch > first}
        for epoch, origin in own.items():
            for key, value, setting in self._undeclared(origin):
                problems.append(_disagreement(key, setting, value, epoch))
            for key, value in self.environment.get("digests", {}).items():
                then = origin["digests"].get(key)
                if then != value and not self._allows(key, then, value):
                    problems.append(
                        _disagreement(f"the digest of the {key}", value, origin["digests"].get(key), epoch)
                    )
        if self.config is not None:
            problems += [
                f"{key}: config.yaml and environment.json disagree\n"
                f"    in config.yaml:      {kept!r}\n    in environment.json: {value!r}"
                for key, value in self.environment.get("trajectory", {}).items()
                if (kept := getattr(self.config, key, None)) != value
            ]
        parent = self.environment.get("parent") or {}
        began_with = parent.get("first_state_digest") or parent.get("state_digest")
        checkpoint = self.file(first).checkpoint
        if began_with and checkpoint is not None and checkpoint.state_digest != began_with:
            which = "the one that the fork began with" if parent.get("first_state_digest") else "the parent's"
            problems.append(
                f"the first state is not {which}\n"
                f"    in environment.json: {began_with}\n    in the file:         {checkpoint.state_digest}"
            )
        return problems


def settings_of(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys under which an epoch was trained, as its checkpoint records them."""
    return dict(origin["config"]) | {"device": origin["device"]} if "config" in origin else {}


def ledger_leaves(state: TrainingState) -> dict[str, str]:
    """Return the digests of the parts that a ledger records, under its names (see `Trainer.leaf_digests`)."""
    parts = {
        "parameters": state.parameters,
        "optimizer_state": state.optimizer_state.get("state", {}),
        "rng_state": state.rng_state,
    }
    return {name: leaf_digest(leaf)[:16] for name, leaf in leaves(parts)}


def _disagreement(what: str, in_run: Any, in_checkpoint: Any, epoch: int) -> str:
    return (
        f"{what}: the run's files and its checkpoints disagree\n    in the run's files: {in_run!r}\n"
        f"    in the checkpoint:  {in_checkpoint!r} (epoch {epoch})"
    )
