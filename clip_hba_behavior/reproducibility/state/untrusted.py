"""Open a file that anyone may have put there: a regular one, of no more bytes than its kind can need.

A pipe or a device would be waited for, or read, without end. What is wrong with a file is an `OSError`
here; each reader makes a message of its own from it.
"""

import csv
import errno
import io
import os
import reprlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from clip_hba_behavior.reproducibility.state.system import READ_ONLY

MIB = 2**20
_MAX_ROW = 2**18  # characters; a row of 66 targets has some 1,300
_MAX_LINES = 1_000_000
_OTHER_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, max_bytes: int) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises:
        OSError: there is none, it cannot be opened, it is of another kind, or it is too large.
    """
    try:
        descriptor = os.open(path, READ_ONLY)
    except PermissionError:
        if path.is_dir():  # which Windows refuses to open
            raise _is_a_directory(path) from None
        raise
    except ValueError:  # a NUL, or half of a surrogate pair
        raise OSError("found a name that no file can have, expected a path") from None
    try:
        _refuse_unfit(os.fstat(descriptor), path, max_bytes)
        return os.fdopen(descriptor, "rb")
    except OSError:
        os.close(descriptor)
        raise


def _refuse_unfit(found: os.stat_result, path: Path, max_bytes: int) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise _is_a_directory(path)
    if not stat.S_ISREG(found.st_mode):
        kind = _OTHER_KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(f"found {kind}, expected a regular file")
    if found.st_size > max_bytes:
        raise OSError(f"found {found.st_size} bytes, expected at most {max_bytes}")


def _is_a_directory(path: Path) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))


def open_text(
    path: Path, max_bytes: int, encoding: str = "utf-8", newline: str | None = None, errors: str = "strict"
) -> TextIO:
    """Open a regular file as text. Raises as `open_regular`; the other arguments are those of `open`."""
    return io.TextIOWrapper(open_regular(path, max_bytes), encoding=encoding, newline=newline, errors=errors)


def read_rows(path: Path, max_bytes: int, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """Read a CSV file row by row, so that no more than one row is held.

    Args:
        path: of the file.
        max_bytes: more are refused.
        delimiter: what separates the cells.

    Yields:
        The number of the row's last line, and its cells.

    Raises:
        OSError: as `open_regular`.
        UnicodeDecodeError: it is not UTF-8.
        csv.Error: it is no CSV, a row is too long, or there are too many lines.
    """
    taken = num_lines = 0

    def lines(file: TextIO) -> Iterator[str]:
        nonlocal taken, num_lines
        while line := file.readline(_MAX_ROW + 1):
            taken += len(line)
            if taken > _MAX_ROW:
                raise csv.Error(f"found a row of more than {_MAX_ROW} characters")
            num_lines += 1
            if num_lines > _MAX_LINES:
                raise csv.Error(f"found more than {_MAX_LINES} lines")
            yield line

    with open_text(path, max_bytes, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(lines(file), delimiter=delimiter, strict=True)
        for cells in reader:
            taken = 0
            yield reader.line_num, cells


def quote(value: object) -> str:
    """Return `repr(value)`, cut short where it is long: a nested value's could fill the memory."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    short.maxlist = short.maxtuple = short.maxset = short.maxdict = 10
    short.maxlevel = 3
    try:
        text = short.repr(value)
    except ValueError:  # an integer of more digits than Python writes out
        return f"a value of type {type(value).__name__} that is too long to show"
    return text if len(text) <= 1000 else f"{text[:1000]}..."


def shown(name: str) -> str:
    """Return a name from a file as it stands if it is short and printable, else quoted."""
    return name if len(name) <= 200 and name.isprintable() else quote(name)
