"""The ledger, `steps.jsonl`: a JSON object for each step, and one at each epoch's end."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip_hba_behavior.reproducibility.record.lines import Fault, Lines, Position, Schema, read_lines

END_OF_EPOCH: Literal["end"] = "end"
Step = int | Literal["end"]  # within an epoch, counted from 1
Record = dict[str, Any]  # what the ledger holds of one step

LEDGER_NAME = "steps.jsonl"
# By whether a line is of an epoch's end: what it must hold, and what it may.
_REQUIRED = ({"batch", "loss"}, {"metrics", "state_digest", "state"})
_KEYS = ({"batch", "loss", "state"}, _REQUIRED[1])


def parse_record(line: str) -> tuple[int, Step, Record]:
    """Read one line of the ledger.

    Returns:
        The epoch and the step that it is of, and the rest: numbers, texts, and dicts of them.

    Raises:
        ValueError: it is not a valid line.
    """
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    epoch, step = record.pop("epoch", None), record.pop("step", None)
    if type(epoch) is not int or epoch < 1 or not (step == END_OF_EPOCH or (type(step) is int and step > 0)):
        raise ValueError("neither a step nor an epoch's end")
    if not (record.keys() >= _REQUIRED[step == END_OF_EPOCH] and record.keys() <= _KEYS[step == END_OF_EPOCH]):
        raise ValueError("not the values of a step, or of an epoch's end")
    if line != line.strip():
        raise ValueError("with white space around it")
    for name, value in record.items():
        is_nested = name in ("state", "metrics")
        inner = value.values() if isinstance(value, dict) and is_nested else [value]
        if any(isinstance(each, dict | list) for each in inner) or (name == "state" and inner == [value]):
            raise ValueError(f"{name} is not of this kind")
    return epoch, step, record


def format_record(epoch: int, step: Step, record: Mapping[str, Any]) -> str:
    """Return the ledger's line of a step, without its end."""
    return json.dumps({"epoch": epoch, "step": step, **record})


def position_of(epoch: int, step: Step) -> Position:
    """Return the state that a line leads to: (completed epochs, steps done of the epoch under way)."""
    return (epoch, 0) if step == END_OF_EPOCH else (epoch - 1, int(step))


def _position_of_line(line: str) -> Position:
    epoch, step, _ = parse_record(line)
    return position_of(epoch, step)


def _can_begin(text: str) -> bool:
    start = '{"epoch": '
    return text.startswith(start[: len(text)])


LEDGER = Schema("the ledger", _position_of_line, _can_begin)


@dataclass(frozen=True)
class Ledger:
    """A ledger as it is found.

    Attributes:
        lines: its valid lines.
    """

    lines: Lines

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Return what else stands in the file."""
        return self.lines.faults

    def steps(self, epoch: int) -> dict[Step, Record]:
        """Return what it records of an epoch, in the order of its steps."""
        found: dict[Step, Record] = {}
        for (completed, step), line in self.lines.found.items():
            if (completed == epoch - 1 and step > 0) or (completed == epoch and step == 0):
                _, name, record = parse_record(line)
                found[name] = record
        return found

    def end(self, epoch: int) -> Record | None:
        """Return what it records of an epoch's end; None if it has no such line."""
        line = self.lines.found.get((epoch, 0))
        return None if line is None else parse_record(line)[2]

    def ends(self) -> Iterator[tuple[int, Record]]:
        """Yield each recorded epoch's end."""
        for (epoch, step), line in self.lines.found.items():
            if step == 0:
                yield epoch, parse_record(line)[2]

    def first_steps(self) -> Iterator[tuple[int, Record]]:
        """Yield each epoch's first step."""
        for (completed, step), line in self.lines.found.items():
            if step == 1:
                yield completed + 1, parse_record(line)[2]

    def epochs(self) -> list[int]:
        """Return the epochs of which there is any line."""
        return sorted({completed + 1 if step else completed for completed, step in self.lines.found})

    def num_lines(self, epoch: int) -> int:
        """Return how many lines an epoch has."""
        return sum((e == epoch - 1 and s > 0) or (e, s) == (epoch, 0) for e, s in self.lines.found)


def read_ledger(path: Path) -> Ledger:
    """Read a ledger; an absent one is empty. Raises as `read_lines`."""
    return Ledger(read_lines(path, LEDGER))
