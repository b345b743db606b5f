"""The directory of a tracked run, and the states in it: those of any training loop."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.epoch import Contradiction, Epoch
from clip_hba_behavior.reproducibility.record.ledger import LEDGER_NAME, Ledger, Record, Step, read_ledger
from clip_hba_behavior.reproducibility.record.lines import Position
from clip_hba_behavior.reproducibility.state import safe_load
from clip_hba_behavior.reproducibility.state.digest import leaf_digest
from clip_hba_behavior.reproducibility.state.errors import AnotherFormatError, BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import publish, replace
from clip_hba_behavior.reproducibility.state.rng import RngState
from clip_hba_behavior.reproducibility.state.tree import Tree, to_bytes, tree_digest, tree_leaves
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text

FORMAT_VERSION = 1
RULES = 2  # see `rules_of`
_FORMAT = "state of a tracked run"
_STATE_FILE = re.compile(r"epoch(\d+)(?:_step(\d+))?\.pth")
_MAX_RECORD = 16 * MIB
_RECORD_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("digests", "versions", "variables", "numerics", "parts"), (dict,)),
    "settings": (dict, type(None)),  # none yet in a fork that was not opened
    "parent": (dict, type(None)),
    "drift": (list,),
}
_STATE_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("parts", "rng_state", "metrics"), (dict,)),
    "key": (str,),
    **dict.fromkeys(("epoch", "step_in_epoch", "num_samples"), (int,)),
    "loss_sum": (float,),
    "batches": (list, type(None)),
    "epoch_start_rng_state": (dict, type(None)),
}
_MAX_STATE_BYTES = 1024 * 1024 * MIB
_MAX_LEAVES = 1_000  # of the ledger's lines: they would outgrow the states


@dataclass(frozen=True)
class TrackedState:
    """Everything that changes while a loop trains; shares no memory with the live objects.

    Attributes:
        parts: each part's state by name.
        rng_state: every global random stream now.
        key: the run's own, from which orders and `Run.generator` follow; it never changes.
        epoch: number of completed epochs.
        step_in_epoch: steps done of the epoch under way.
        loss_sum: sum of loss x samples over these steps, in float64.
        num_samples: how many samples it covers.
        batches: what `Run.batches` was asked for in the epoch under way: samples, batch size, shuffled, last
            dropped.
        epoch_start_rng_state: the streams when the epoch under way began; None at an epoch's boundary.
        metrics: what the last completed epoch reported.
    """

    parts: dict[str, Tree]
    rng_state: RngState
    key: str
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    num_samples: int = 0
    batches: list[int] | None = None
    epoch_start_rng_state: RngState | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, not copied."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def leaves(self) -> Iterator[tuple[str, Any]]:
        """Return every tensor and scalar by its path."""
        return ((path.removeprefix("/"), leaf) for path, leaf in tree_leaves(self.as_dict()))

    def digest(self) -> str:
        """Return the digest of the tree of all fields."""
        return tree_digest(self.as_dict())

    def position(self) -> Position:
        """Return where it stands: (completed epochs, steps done of the epoch under way)."""
        return self.epoch, self.step_in_epoch


def rules_of(record: Mapping[str, Any]) -> int:
    """Return by which rules a run records: 1, or 2, the present ones.

    By rule 1 the ledger names every leaf, however many there are; a batch weighs by its length, which of a tuple
    or dict of tensors is how many these are; and a metric may have any name.
    """
    return 1 if record.get("rules", 1) == 1 else RULES


def ledger_leaves(parts: Mapping[str, Tree], rng_state: RngState, rules: int = RULES) -> dict[str, str]:
    """Return a short digest of every tensor of the parts and of each random stream, for the ledger.

    Of parts with very many leaves it is one digest for each part; see `rules_of`.
    """
    leaves = {f"{name}{path}": leaf for name, value in parts.items() for path, leaf in tree_leaves(value)}
    if len(leaves) > _MAX_LEAVES and rules > 1:
        found = {name: tree_digest(value)[:16] for name, value in parts.items()}
    else:
        found = {path: leaf_digest(leaf)[:16] for path, leaf in leaves.items()}
    return found | {f"rng_state/{name}": tree_digest(stream)[:16] for name, stream in rng_state.items()}


class TrackedDirectory:
    """Paths and files of one run."""

    def __init__(self, path: Path) -> None:
        """Name a directory; nothing is read or made yet."""
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.ledger_file = path / LEDGER_NAME
        self.log_file = path / "log.txt"
        self.record_file = path / "run.json"
        self.forks_file = path / "forks.txt"

    def holds_run(self) -> bool:
        """Whether a run began here."""
        return self.record_file.is_file()

    def refuse_if_no_run(self) -> None:
        """Return if there is a run here.

        Raises:
            BadInputError: there is none.
        """
        if not self.holds_run():
            raise BadInputError(f"there is no tracked run in {self.path}: it has no run.json")

    def states(self) -> dict[Position, Path]:
        """Return the files of states by position, ascending."""
        found = {}
        for path in self.checkpoints.iterdir() if self.checkpoints.is_dir() else []:
            if match := _STATE_FILE.fullmatch(path.name):
                # epoch3_step5: of the third epoch, as a person counts
                found[(int(match[1]) - 1, int(match[2])) if match[2] else (int(match[1]), 0)] = path
        return dict(sorted(found.items()))

    def state_file(self, position: Position) -> Path:
        """Return the path of the state at a position."""
        epoch, step = position
        return self.checkpoints / (f"epoch{epoch + 1}_step{step}.pth" if step else f"epoch{epoch}.pth")

    def forked_epochs(self) -> set[int]:
        """Return the epochs whose states forks began with."""
        lines = self.forks_file.read_text(encoding="utf-8").splitlines() if self.forks_file.is_file() else []
        return {int(line.partition(" ")[0]) for line in lines if line.partition(" ")[0].isdecimal()}

    def write_state(self, state: TrackedState, provenance: Mapping[str, Any]) -> None:
        """Publish a state; one that is there already must be the same.

        Raises:
            NotReproducibleError: another state is there.
        """
        path = self.state_file(state.position())
        self.checkpoints.mkdir(exist_ok=True)
        try:
            publish(path, state_bytes(path, state, provenance))
        except FileExistsError as error:
            found, now = read_state(path)[0].digest(), state.digest()
            if found != now:
                raise NotReproducibleError(
                    f"{path} holds another state than this run reached\n  in the file: {found}\n"
                    f"  now:         {now}"
                ) from error

    def read_record(self) -> dict[str, Any]:
        """Return `run.json`.

        Raises:
            BadInputError: it cannot be read, or is no record of a run.
        """
        try:
            with open_text(self.record_file, _MAX_RECORD) as file:
                record = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            raise BadInputError(f"{self.record_file} cannot be read: {error}") from error
        for key, kind in _RECORD_KINDS.items():
            if not isinstance(record, dict) or key not in record or not isinstance(record[key], kind):
                raise BadInputError(
                    f"{self.record_file} is no record of a run: {key} is missing or of another kind\n"
                    "  put back a copy of it; every state holds the same under provenance: clip-hba inspect"
                )
        return dict(record) | {"drift": [str(each) for each in record["drift"]]}

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Put `run.json` in its place."""
        replace(self.record_file, (json.dumps(dict(record), indent=1) + "\n").encode())


def state_bytes(path: Path, state: TrackedState, provenance: Mapping[str, Any]) -> bytes:
    """Return the content of a state's file.

    Raises:
        BadInputError: it has more parts than `read_state` takes; `path` is named.
    """
    content = to_bytes(
        {
            "format": _FORMAT,
            "format_version": FORMAT_VERSION,
            "state": state.as_dict(),
            "state_digest": state.digest(),
            "provenance": dict(provenance),
        }
    )
    safe_load.refuse_unreadable(content, path, _FORMAT)
    return content


def is_state(path: Path) -> bool:
    """Whether a file says that it is the state of a tracked run. Raises as `safe_load.load` does."""
    return safe_load.load(path, max_bytes=_MAX_STATE_BYTES).get("format") == _FORMAT


def read_state(path: Path) -> tuple[TrackedState, dict[str, Any]]:
    """Read a state and its provenance.

    Raises:
        AnotherFormatError: it is of a later version of this package.
        UnreadableError: it cannot be read just now.
        BadInputError: it is not there, damaged, or no such state.
    """
    content = safe_load.load(path, max_bytes=_MAX_STATE_BYTES)
    if content.get("format") != _FORMAT:
        raise BadInputError(f"{path} is no {_FORMAT}")
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise AnotherFormatError(
            f"{path} has a format that this version does not know\n  found:    {version!r}\n"
            f"  expected: {FORMAT_VERSION}"
        )
    tree, provenance = content.get("state"), content.get("provenance")
    names = {each.name for each in fields(TrackedState)}
    if not isinstance(tree, dict) or tree.keys() != names or not isinstance(provenance, dict):
        raise BadInputError(f"{path} is no {_FORMAT}: parts of it are missing")
    for name, kinds in _STATE_KINDS.items():
        if type(tree[name]) not in kinds:
            raise BadInputError(f"{path} is no {_FORMAT}: {name} is a {type(tree[name]).__name__}")
    state = TrackedState(**tree)
    found = state.digest()
    if found != content.get("state_digest"):
        raise BadInputError(
            f"{path} is damaged: it does not hold the state that was saved\n"
            f"  recorded digest: {content.get('state_digest')}\n  of its content:  {found}"
        )
    return state, provenance


class TrackedFiles:
    """What a tracked run records, as a history."""

    def __init__(self, path: Path) -> None:
        """Read all but the states.

        Raises:
            BadInputError: there is no run.
        """
        self.directory = TrackedDirectory(path)
        self.directory.refuse_if_no_run()
        self.record = self.directory.read_record()
        self.ledger: Ledger = read_ledger(self.directory.ledger_file)
        self.files = {epoch: file for (epoch, step), file in self.directory.states().items() if step == 0}
        self.problems = [f"{LEDGER_NAME}, {fault}" for fault in self.ledger.faults]
        ends = {epoch for epoch, _ in self.ledger.ends()}
        lacking = sorted(epoch for epoch in self.files if epoch > min(self.files) and epoch not in ends)
        self.notes = [
            f"{LEDGER_NAME} lacks the end of epoch {each}: its state alone is compared" for each in lacking
        ]

    def epochs(self) -> Sequence[int]:
        """Return the epochs of which anything is recorded."""
        return sorted({*self.files, *(epoch for epoch, _ in self.ledger.ends())})

    def steps(self, number: int) -> dict[Step, Record]:
        """Return the ledger's records of an epoch; no state is loaded."""
        return self.ledger.steps(number)

    def state(self, number: int) -> TrackedState | None:
        """Return the state after an epoch; None where there is no file.

        Raises:
            BadInputError: the file is damaged.
        """
        return self.read(number)[0] if number in self.files else None

    def read(self, number: int) -> tuple[TrackedState | None, dict[str, Any]]:
        """Return the state after an epoch, and its provenance; None and nothing where there is no file.

        Raises:
            BadInputError: the file is damaged.
        """
        return read_state(self.files[number]) if number in self.files else (None, {})

    def epoch(self, number: int) -> Epoch:
        """Return all that is recorded of an epoch, and where the records contradict each other."""
        found: list[Contradiction] = []
        end = None
        try:
            end = self.state(number)
        except BadInputError as error:
            found.append(Contradiction("file", str(error)))
        recorded = self.ledger.end(number)
        if end is not None and end.epoch != number:
            found.append(Contradiction("file", f"{self.files[number]} holds the state after epoch {end.epoch}"))
        elif end is not None and recorded is not None and recorded.get("state_digest") != end.digest():
            now = ledger_leaves(end.parts, end.rng_state, rules_of(self.record))
            then = recorded.get("state", {})
            others = sorted(name for name in now.keys() | then.keys() if now.get(name) != then.get(name))
            text = f"the file of epoch {number} and the ledger disagree: {(others or ['the state digest'])[0]}"
            found.append(Contradiction("end", text))
        return Epoch(number, end=end, steps=self.steps(number), contradictions=tuple(found))
