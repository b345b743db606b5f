"""Files of a run that grow line by line, and grow the same way again after a crash."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.digest import leaves
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text

# The state that a line leads to: (completed epochs, steps done of the epoch under way).
Position = tuple[int, int]
END_OF_EPOCH = "end"
_MAX_BYTES = 64 * MIB  # a long run's ledger has 20
_MAX_LINE = 1 * MIB  # characters


class RecordFile:
    """Appends lines, each of which leads to one state of the run.

    Lines beyond the state that a run is taken up from were written before an interruption. They are
    moved aside, and as the run comes by again it must write the same ones.
    """

    def __init__(
        self,
        path: Path,
        after: Position,
        position_of: Callable[[str], Position | None],
        header: str = "",
        supersede: bool = False,
    ) -> None:
        """Open a file for a run that continues from the state `after`.

        Args:
            path: the file; made if it is not there.
            after: the state that is taken up.
            position_of: reads a line's position; None if it is no whole line of this file.
            header: the first line, without its end.
            supersede: the run goes on in another way on purpose: lines beyond `after` are kept in a file
                of their own, and not compared.
        """
        self.path = path
        self.kept_lines: list[str] = []
        self._to_come: dict[Position, str] = {}
        found = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        lines = found.splitlines(keepends=True)
        for line in lines[1:] if header else lines:
            position = position_of(line) if line.endswith("\n") else None
            if position is None:
                break  # torn by a crash; what stood behind it is written again
            if position <= after:
                self.kept_lines.append(line)
            else:
                self._to_come[position] = line
        self._aside = path.with_name(f"{path.name}.aside")
        if self._aside.exists():  # an earlier repetition was itself interrupted before it had caught up
            for line in self._aside.read_text(encoding="utf-8").splitlines(keepends=True):
                position = position_of(line)
                if position is not None and position > after:
                    self._to_come.setdefault(position, line)
        if self._to_come and supersede:
            _keep(path.with_name(f"{path.name}.superseded"), self._to_come.values())
            self._to_come.clear()
        if self._to_come:
            replace(self._aside, "".join(self._to_come.values()).encode())
        else:
            self._aside.unlink(missing_ok=True)
        kept = (f"{header}\n" if header else "") + "".join(self.kept_lines)
        if kept != found:
            replace(path, kept.encode())
        self._file = path.open("ab")

    def append(self, position: Position, line: str) -> None:
        """Write a line, given without its end.

        Raises:
            NotReproducibleError: before the interruption, another line led to this state.
        """
        line += "\n"
        before = self._to_come.pop(position, line)
        if before != line:
            raise NotReproducibleError(
                f"{self.path.name}: the run did not repeat what it had recorded\n{_difference(before, line)}\n"
                "  the data, the software or the machine changed; start a new run"
            )
        self._file.write(line.encode())
        self._file.flush()

    def commit(self) -> None:
        """Return once every line so far is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; once every line moved aside was written again, their copy goes."""
        self._file.close()
        if not self._to_come:
            self._aside.unlink(missing_ok=True)


class Ledger(RecordFile):
    """`steps.jsonl`: a JSON object a step, and one at each epoch's end."""

    def __init__(self, path: Path, after: Position, supersede: bool = False) -> None:
        """Open the ledger of a run that continues from the state `after`; see `RecordFile`."""
        super().__init__(path, after, _ledger_position, supersede=supersede)

    def record(self, epoch: int, step: int | str, entry: Mapping[str, Any]) -> None:
        """Write the line of one step (both counted from 1) or of `END_OF_EPOCH`."""
        self.append(_leads_to(epoch, step), json.dumps({"epoch": epoch, "step": step, **entry}))


def recorded_end(path: Path, epoch: int) -> dict[str, Any] | None:
    """Return what a ledger says of an epoch's end; None if it has no such line, or there is no ledger.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    found = None
    with open_text(path, _MAX_BYTES, errors="replace") as file:
        while line := file.readline(_MAX_LINE):
            if f'"{END_OF_EPOCH}"' in line and _ledger_position(line) == (epoch, 0):
                found = dict(json.loads(line))
    return found


def _keep(path: Path, lines: Iterable[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())


def _difference(before: str, now: str) -> str:
    """Return the two lines under each other; of two JSON lines, the first values that differ."""
    try:
        old: dict[str, object] = dict(leaves(json.loads(before)))
        new: dict[str, object] = dict(leaves(json.loads(now)))
    except ValueError:
        return f"  recorded: {before.strip()}\n  now:      {now.strip()}"
    names = [name for name in old.keys() | new.keys() if repr(old.get(name)) != repr(new.get(name))]
    names.sort(key=list(old | new).index)
    lines = [f"  in epoch {old.get('epoch')}, step {old.get('step')}, {len(names)} values differ"]
    for name in names[:3]:
        lines.append(f"  {name}\n    recorded: {old.get(name)!r}\n    now:      {new.get(name)!r}")
    return "\n".join(lines)


def _leads_to(epoch: int, step: int | str) -> Position:
    return (epoch, 0) if step == END_OF_EPOCH else (epoch - 1, int(step))


def _ledger_position(line: str) -> Position | None:
    try:
        entry = json.loads(line)
        return _leads_to(int(entry["epoch"]), entry["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
