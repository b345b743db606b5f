"""What a source records of an epoch, and the one comparison of two sources."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, Record, Step
from clip_hba_behavior.reproducibility.record.protocol import State
from clip_hba_behavior.reproducibility.state.compare import compare_leaves

_PARTS_OF_STATE = ("parameters", "optimizer_state", "rng_state")  # whose digests are in a ledger
Source = Literal["records", "ledger", "state", "results"]


@dataclass(frozen=True)
class Contradiction:
    """Where one source's own records of an epoch contradict each other, or a file is not what it was.

    Attributes:
        kind: `file`: it is damaged, or another's; `start`, `end`: the state before or after the epoch is not the
            one in the ledger; `results`: a row is not what the state holds; `setting`: it was another than the
            run's, and nothing on record allows that.
        text: for a person.
    """

    kind: Literal["file", "start", "end", "results", "setting"]
    text: str


@dataclass(frozen=True)
class Epoch:
    """What one source records of one epoch; whatever it is silent about is None or empty.

    Attributes:
        number: counted from 1; epoch 0 has an end alone.
        settings: under which it was trained.
        start: the state before its first step.
        end: the state after it, complete or in part.
        steps: the ledger's records.
        row: its results by column.
        contradictions: between the source's own records.
    """

    number: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    start: State | None = None
    end: State | None = None
    steps: Mapping[Step, Record] = field(default_factory=dict)
    row: Mapping[str, float] = field(default_factory=dict)
    contradictions: tuple[Contradiction, ...] = ()


class History(Protocol):
    """A source: a run's files, or their replay. States are loaded when an epoch is asked for."""

    def epochs(self) -> Sequence[int]:
        """Return the epochs that it knows of, ascending."""

    def steps(self, number: int) -> Mapping[Step, Record]:
        """Return the ledger's records of an epoch; no state is loaded."""

    def epoch(self, number: int) -> Epoch:
        """Return what it records of an epoch."""


@dataclass(frozen=True)
class Difference:
    """One value that is not the same in two sources.

    Attributes:
        step: when it shows: a step, or `END_OF_EPOCH`.
        source: where: in the ledger, the state, the results; `records` for a contradiction within the first.
        name: `batch`, `loss`, `state_digest`, a part of the state such as `parameters/...`, a column; of a
            contradiction its text.
        first: the value in the first source; of tensors None.
        second: the value in the second.
        text: of a part of the state, what differs for a person.
        largest: of tensors the largest absolute difference.
        is_tensor: whether it is a tensor of the state.
    """

    step: Step
    source: Source
    name: str
    first: Any = None
    second: Any = None
    text: str = ""
    largest: float | None = None
    is_tensor: bool = False

    def part(self) -> str:
        """Return the first part of the name."""
        return self.name.partition("/")[0]

    def is_tensor_of_ledger(self) -> bool:
        """Whether it is the digest of a part of the state after the epoch, as the ledger has them."""
        return self.source == "ledger" and self.step == END_OF_EPOCH and self.part() in _PARTS_OF_STATE

    def relative(self) -> float | None:
        """Return the relative difference of two numbers."""
        if isinstance(self.first, float) and isinstance(self.second, float) and self.first:
            return abs(self.second / self.first - 1)
        return None


def compare_epochs(first: Epoch, second: Epoch) -> tuple[Difference, ...]:
    """Compare all that both sources record of an epoch, bit for bit, in the order of time.

    Where a source is silent nothing differs; the first source's contradictions count as differences.
    """
    return (
        *(Difference(END_OF_EPOCH, "records", each.text) for each in first.contradictions),
        *_compare_steps(first.steps, second.steps),
        *compare_states(first.end, second.end),
        *(
            Difference(END_OF_EPOCH, "results", name, value, second.row[name])
            for name, value in first.row.items()
            if name in second.row and repr(value) != repr(second.row[name])
        ),
    )


def _compare_steps(first: Mapping[Step, Record], second: Mapping[Step, Record]) -> Iterator[Difference]:
    both = first.keys() & second.keys()
    steps: list[Step] = sorted(step for step in both if step != END_OF_EPOCH)
    for step in [*steps, *(both & {END_OF_EPOCH})]:
        left, right = first[step], second[step]
        for key in ("batch", "loss", "state", "metrics", "state_digest"):
            if key not in left or key not in right:
                continue
            if isinstance(left[key], dict) and isinstance(right[key], dict):
                names = {**right[key], **left[key]}
                prefix = "" if key == "state" else f"{key}/"
                pairs = [(f"{prefix}{name}", left[key].get(name), right[key].get(name)) for name in names]
            else:
                pairs = [(key, left[key], right[key])]
            for name, a, b in pairs:
                if repr(a) != repr(b):
                    yield Difference(step, "ledger", name, a, b)


def compare_states(first: State | None, second: State | None) -> Iterator[Difference]:
    """Compare two states leaf by leaf; of a state in part, what both have."""
    if first is None or second is None:
        return
    both = first.as_dict().keys() & second.as_dict().keys()
    left, right = (
        {name: leaf for name, leaf in each.leaves() if name.partition("/")[0] in both} for each in (first, second)
    )
    for each in compare_leaves(left, right).differences:
        yield Difference(
            END_OF_EPOCH, "state", each.name, each.first, each.second, each.what, each.largest, each.is_tensor
        )
