"""A file of lines that a run writes: after an interruption it grows the same way again, or the run stops."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.lines import Fault, Lines, Position, Schema, read_lines
from clip_hba_behavior.reproducibility.record.quarantine import keep_content
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.process import join_command
from clip_hba_behavior.reproducibility.state.system import sync_file

# Lines that are missing, by position: the line made again, and from what it was made.
Remade = dict[Position, tuple[str, str]]
Remake = Callable[[Lines, tuple[Fault, ...]], Remade]
Accept = Callable[[int], str]


class RecordFile:
    """Appends lines, each of which leads to one state of the run.

    Lines beyond the state that a run is resumed from were written before an interruption. They are pending, in
    a file of their own, and as the run comes by again it must write the same ones: a pending line is released
    only by an equal one.
    """

    def __init__(self, path: Path, after: Position, schema: Schema, accept: Accept | None = None) -> None:
        """Open a file for a run that continues from the state `after`.

        Args:
            path: the file; made if it is not there. It holds no faults: see `repair`.
            after: the state that the run is resumed from.
            schema: what its lines are.
            accept: returns how a person decides for the new lines of an epoch.
        """
        self.path = path
        resume = join_command(["clip-hba", "resume", str(path.parent)])
        self._accept = accept or (lambda epoch: f"{resume} --accept-mismatch {epoch}")
        self._schema = schema
        self._pending_file = _pending_file(path)
        found, self._torn = _recorded(path, schema)
        self.kept = {position: line for position, line in found.items() if position <= after}
        self._pending = {position: line for position, line in found.items() if position > after}
        if self._pending or self._torn:
            self._write_pending()
        _write(path, schema, list(self.kept.values()))
        self._remove_pending()
        self._file = path.open("ab")

    def append(self, position: Position, line: str) -> None:
        """Write a line, given without its end.

        Raises:
            NotReproducibleError: before the interruption, another line led to this state.
        """
        expected = self._pending.get(position, line)
        is_next = bool(self._torn) and not self._pending  # the torn line was the last of all
        if expected != line or (is_next and not line.startswith(self._torn)):
            if is_next:
                expected = self._torn
            epoch = position[0] + (position[1] > 0)
            raise NotReproducibleError(
                f"{self.path.name}: the run did not repeat what it had recorded\n{_difference(expected, line)}\n"
                "  data, software, machine or the record itself changed; the recorded lines stay, to be repeated\n"
                f"  find out what changed, or go on with the new lines, on record: {self._accept(epoch)}"
            )
        self._file.write(f"{line}\n".encode())
        self._file.flush()
        self._pending.pop(position, None)
        if is_next:
            self._torn = ""

    def commit(self) -> None:
        """Return once every line so far is on the disk."""
        sync_file(self._file.fileno())

    def close(self) -> None:
        """Close the file; of the pending lines those stay that were not written again."""
        self.commit()
        self._file.close()
        if self._pending or self._torn:
            self._write_pending()
        self._remove_pending()

    def _write_pending(self) -> None:
        _write(self._pending_file, _without_header(self._schema), list(self._pending.values()), self._torn)

    def _remove_pending(self) -> None:
        """Remove the pending file once nothing is pending, and its old name in any case."""
        if not self._pending and not self._torn:
            self._pending_file.unlink(missing_ok=True)
        _old_pending_file(self.path).unlink(missing_ok=True)


def _pending_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.pending")


def _old_pending_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.aside")  # its name in version 0.1.0


def _recorded(path: Path, schema: Schema) -> tuple[dict[Position, str], str]:
    """Return the lines of a file and those that are pending, and the last one if it was cut short."""
    found: dict[Position, str] = {}
    torn = []
    for lines in _files(path, schema):
        found = lines.found | found
        torn.append(lines.torn)
    # a torn line that begins a complete one was being written again when the run was killed
    torn = [each for each in torn if each and not any(line.startswith(each) for line in found.values())]
    return dict(sorted(found.items())), max(torn, key=len, default="")


def _files(path: Path, schema: Schema) -> Iterator[Lines]:
    """Read a file and its pending lines, which have no header."""
    yield read_lines(path, schema)
    for pending in (_pending_file(path), _old_pending_file(path)):
        yield read_lines(pending, _without_header(schema))


def _without_header(schema: Schema) -> Schema:
    return dataclasses.replace(schema, header="")


def keep_apart(path: Path, schema: Schema, after: Position, why: str) -> dict[str, Any] | None:
    """Move what is recorded beyond a state into the quarantine: the run goes on in another way on purpose.

    Returns:
        The quarantine's record; None if nothing is recorded beyond that state.
    """
    found, torn = _recorded(path, schema)
    beyond = [line for position, line in found.items() if position > after]
    if not beyond and not torn:
        return None
    content = "".join(f"{line}\n" for line in beyond) + torn
    record = keep_content(path.parent, path.name, content.encode(), {"why": why})
    # what is not beyond goes into the file itself: whoever resumes from an earlier state makes it pending again
    _write(path, schema, [line for position, line in found.items() if position <= after])
    for pending in (_pending_file(path), _old_pending_file(path)):
        pending.unlink(missing_ok=True)
    return record


def has_pending(path: Path) -> bool:
    """Whether lines of a file have still to be written again."""
    return _pending_file(path).exists() or _old_pending_file(path).exists()


def recorded_epochs_beyond(path: Path, schema: Schema, after: Position) -> set[int]:
    """Return the epochs of which there are lines beyond a state, a torn one included."""
    found, torn = _recorded(path, schema)
    epochs = {completed + (step > 0) for completed, step in found if (completed, step) > after}
    return epochs | ({max([after, *found])[0] + 1} if torn else set())


def repair(
    path: Path, schema: Schema, first: Position, after: Position, remake: Remake
) -> Iterator[dict[str, Any]]:
    """Make a file of lines valid again. What it was stays complete in the quarantine.

    Args:
        path: the file.
        schema: what its lines are.
        first: the run's first state, to which no line leads.
        after: the state that the run is resumed from; a torn line that does not follow it is damage.
        remake: given the file's lines and faults, makes missing lines again: the line and its source by position.

    Yields:
        The quarantine's record of each file that was repaired.

    Raises:
        BadInputError: so many lines are invalid that the file is not read to its end.
    """
    recorded: dict[Position, str] = {}
    for lines in _files(path, schema):
        if not lines.is_read:
            raise BadInputError(
                f"{lines.path} has too many lines that are not valid lines of {schema.kind}\n"
                "  put back a copy of it, or move it away; nothing was changed"
            )
        faults, torn, valid = lines.faults, lines.torn, dict(lines.found)
        is_main = lines.path == path
        for position, line in lines.found.items():
            if recorded.setdefault(position, line) != line:
                faults = (
                    *faults,
                    Fault(1, lines.num_lines, f"another line for {_name(position)} than {path.name}"),
                )
                del valid[position]
        if torn and is_main and after != first and all(position < after for position in lines.found):
            number = lines.num_lines
            faults = (*faults, Fault(number, number, "cut short", max(lines.found, default=None)))
            torn = ""
        remade = remake(lines, faults) if is_main else {}
        if not (faults or remade):
            continue
        record = {
            "why": "; ".join(str(each) for each in faults) or "lines are missing",
            "faults": [each.as_dict() for each in faults],
            "remade": [{**_name(position), "source": source} for position, (_, source) in sorted(remade.items())],
        }
        if lines.sha256 is not None:
            yield keep_content(path.parent, lines.path.name, lines.path.read_bytes(), record)
        found = valid | {position: line for position, (line, _) in remade.items()}
        own = schema if is_main else _without_header(schema)
        _write(lines.path, own, [line for _, line in sorted(found.items())], torn)


def _name(position: Position) -> dict[str, Any]:
    completed, step = position
    return {"epoch": completed + 1, "step": step} if step else {"epoch": completed, "step": "end"}


def _write(path: Path, schema: Schema, lines: Sequence[str], torn: str = "") -> None:
    content = "".join(f"{line}\n" for line in [schema.header, *lines] if line) + torn
    if not path.exists() or content.encode() != path.read_bytes():
        replace(path, content.encode())


def _difference(before: str, now: str) -> str:
    """Return the two lines under each other; of two JSON lines, the first values that differ."""
    from clip_hba_behavior.reproducibility.state.digest import leaves  # needs torch; who lists runs does not

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
