"""A file of a run that grows line by line, read without trusting it: the one reader of ledger and results."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular

# The state that a line leads to: (completed epochs, steps done of the epoch under way).
Position = tuple[int, int]

MAX_BYTES = 512 * MIB  # 500 epochs of 1,444 steps have 90
_MAX_LINE = MIB
# A file with more ranges of invalid lines, or more of such lines, is none of a run.
_MAX_FAULTS, _MAX_INVALID = 20, 10_000


@dataclass(frozen=True)
class Schema:
    """What a file's lines are.

    Attributes:
        kind: what a person calls such a file, for messages.
        position_of: the position that a line, given without its end, leads to; raises ValueError if it is not
            a valid line of this file.
        can_begin: whether a line can begin with this text: then a last one that has no end was cut short by a
            crash while it was written.
        header: the first line, without its end; empty for none.
    """

    kind: str
    position_of: Callable[[str], Position]
    can_begin: Callable[[str], bool]
    header: str = ""


@dataclass(frozen=True)
class Fault:
    """Lines that cannot stay as they are.

    Attributes:
        first_line: counted from 1.
        last_line: the same for a single line.
        why: what is wrong with them.
        after: the last valid position before them; None at the file's start.
        before: the first valid position after them; None at the file's end.
    """

    first_line: int
    last_line: int
    why: str
    after: Position | None = None
    before: Position | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what a repair record tells of it."""
        return {"first_line": self.first_line, "last_line": self.last_line, "why": self.why}

    def __str__(self) -> str:
        """Name the lines and what is wrong."""
        several = self.last_line > self.first_line
        lines = f"lines {self.first_line} to {self.last_line}" if several else f"line {self.first_line}"
        return f"{lines}: {self.why}"


@dataclass(frozen=True)
class Lines:
    """What a file holds.

    Attributes:
        path: where it was read.
        found: each valid line without its end, by position and in the order of positions.
        faults: what else stands in it.
        torn: a last line that was cut short while it was written; empty if there is none.
        num_lines: of all kinds.
        sha256: of the whole file; None where there is no file.
        is_read: whether it was read to its end; not with very many faults.
    """

    path: Path
    found: dict[Position, str]
    faults: tuple[Fault, ...] = ()
    torn: str = ""
    num_lines: int = 0
    sha256: str | None = None
    is_read: bool = True

    def left_out(self) -> list[str]:
        """Name what stands in the file and is not in `found`, for who reads the rest."""
        notes = [f"{self.path.name}, {fault}: left out" for fault in self.faults]
        if self.torn:
            notes.append(f"{self.path.name}: its last line was cut short, and is left out")
        return notes


def read_lines(path: Path, schema: Schema) -> Lines:
    """Read a file of lines; whatever is unreadable, doubled or out of order is a fault, and nothing is left out.

    Of two different lines for one position neither can be trusted; of two equal ones one is kept.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large.
    """
    try:
        file = open_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return Lines(path, {})
    reader, total = _Reader(schema), hashlib.sha256()
    with file:
        while (content := file.readline(_MAX_LINE)) and not reader.gives_up():
            total.update(content)
            reader.take(content)
            while len(content) == _MAX_LINE and not content.endswith(b"\n"):  # the rest of a line too long
                content = file.readline(_MAX_LINE)
                total.update(content)
    return reader.lines(path, total.hexdigest())


class _Reader:
    """Sorts the lines of a file, one by one, into valid ones and faults."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._number = 0
        self._found: dict[Position, str] = {}
        self._line_of: dict[Position, int] = {}
        self._contradicted: set[Position] = set()
        self._last: Position | None = None
        self._faults: list[Fault] = []
        self._open = 0  # from this fault on, no valid line has come after
        self._num_invalid = 0
        self._torn = ""

    def gives_up(self) -> bool:
        return len(self._faults) > _MAX_FAULTS or self._num_invalid > _MAX_INVALID

    def take(self, content: bytes) -> None:
        self._number += 1
        if not content.endswith(b"\n") and len(content) < _MAX_LINE:
            # a power loss leaves zeros where bytes had not reached the disk; a file of nothing else is no run's
            text = content.decode(errors="replace").rstrip("\0")
            if self._schema.can_begin(text) if text else self._number > 1:
                self._torn = text
                return
        try:
            line = content.removesuffix(b"\n").decode()
            if self._number == 1 and self._schema.header:
                if line != self._schema.header:
                    self._fault(f"not the header {self._schema.header}")
                return
            position = self._schema.position_of(line)
        except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
            self._fault(f"not a valid line of {self._schema.kind}")
            return
        if position in self._line_of:
            if self._found[position] == line:
                self._fault(f"the same as line {self._line_of[position]}")
            else:
                self._contradicted.add(position)
                self._fault(f"another line for the state of line {self._line_of[position]}")
            return
        if self._last is not None and position < self._last:
            self._fault("out of order")
        else:
            self._faults[self._open :] = [replace(each, before=position) for each in self._faults[self._open :]]
            self._open = len(self._faults)
            self._last = position
        self._found[position], self._line_of[position] = line, self._number

    def _fault(self, why: str) -> None:
        self._num_invalid += 1
        last = self._faults[-1] if self._faults else None
        if last is not None and (last.last_line, last.why) == (self._number - 1, why):
            self._faults[-1] = replace(last, last_line=self._number)
        else:
            self._faults.append(Fault(self._number, self._number, why, after=self._last))

    def lines(self, path: Path, sha256: str) -> Lines:
        if self.gives_up():
            why = f"not read further: too many of them are not valid lines of {self._schema.kind}"
            return Lines(path, {}, (Fault(1, self._number, why),), sha256=sha256, is_read=False)
        for position in self._contradicted:
            del self._found[position]
        found = dict(sorted(self._found.items()))
        return Lines(path, found, tuple(self._faults), self._torn, self._number, sha256)
