"""What was read from files, kept for the next run of the process while the files stay as they were."""

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")
Mark = tuple[int, ...]

# A file that changed in the moment of reading could keep its time: file systems count in ticks of up to 2 seconds.
_TICK_NS = 2 * 10**9


@dataclass(frozen=True)
class _Reading(Generic[Value]):
    key: Hashable
    value: Value
    marks: dict[Path, Mark | None]


class Kept(Generic[Value]):
    """The last value that was read, with the marks of the files that it came from.

    A file is taken for unchanged while its size, times and place on the disk are the same. The time of its last
    change of any kind (`ctime`) cannot be set back by a program, so a file that is edited and then given its old
    time is noticed. On a network file system a change by another machine is noticed once the attributes that this
    machine remembers are out of date, in NFS up to a minute.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._reading: _Reading[Value] | None = None

    def get(self, key: Hashable, read: Callable[[], Value], files_of: Callable[[Value], Iterable[Path]]) -> Value:
        """Return what is kept, or read it.

        Args:
            key: what the value depends on beside the files.
            read: reads it.
            files_of: the files and directories that a value was read from.
        """
        kept = self._reading
        if (
            kept is not None
            and kept.key == key
            and all(mark_of(path) == mark for path, mark in kept.marks.items())
        ):
            return kept.value
        self._reading = kept = None  # before another is read: it may be large
        began = time.time_ns()
        value = read()
        marks = {path: mark_of(path) for path in files_of(value)}
        # What changed while it was read may have been read before it changed, so it is read again the next time.
        if all(mark is not None and max(mark[-2:]) < began - _TICK_NS for mark in marks.values()):
            self._reading = _Reading(key, value, marks)
        return value


def mark_of(path: Path) -> Mark | None:
    """Return what changes when a file is written to or replaced: place, size, times; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    # not st_dev: a network file system's is another on each machine, and after each start
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
