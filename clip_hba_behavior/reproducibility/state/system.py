"""What operating systems do differently with files, and what stands in for it where it is missing.

Linux has all of it. macOS has no `posix_fallocate`. Windows also lacks `fcntl`, `pread` and the freedom to rename
or remove a file that someone has open.
"""

import errno
import importlib
import io
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from clip_hba_behavior.reproducibility.state.errors import BadInputError

T = TypeVar("T")


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


_fcntl, _msvcrt = _module("fcntl"), _module("msvcrt")
IS_WINDOWS = _msvcrt is not None
# Without BINARY, Windows translates line ends. Without NONBLOCK, opening a pipe waits for its other end.
BINARY = getattr(os, "O_BINARY", 0)
READ_ONLY = os.O_RDONLY | BINARY
for _flag in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC"):
    READ_ONLY |= getattr(os, _flag, 0)
_LOCK_AT = 2**30  # Windows lets nobody else read a locked byte: one beyond all content
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)  # exFAT, some network file systems
_BLOCK = bytes(2**20)

_position = threading.Lock()


def lock_file(descriptor: int, wait: bool = False) -> bool:
    """Lock an open file for this process until it is closed, or its process ends, however it ends.

    Args:
        descriptor: of the file; opened for writing.
        wait: until whoever has it lets go.

    Returns:
        Whether it is locked now; False if another has it.

    Raises:
        BadInputError: this Python knows no locks that the system would release.
        OSError: the file system has no locks.
    """
    if _fcntl is not None:
        try:
            _fcntl.flock(descriptor, _fcntl.LOCK_EX | (0 if wait else _fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True
    if _msvcrt is None:
        raise BadInputError(
            "this Python cannot lock files, so nothing would keep a second process out\n"
            "  found:    neither the module fcntl nor msvcrt\n  expected: one of them\n"
            "  use a Python for Linux, macOS or Windows, such as one of python.org"
        )
    while True:
        try:
            with _position:
                os.lseek(descriptor, _LOCK_AT, os.SEEK_SET)
                _msvcrt.locking(descriptor, _msvcrt.LK_NBLCK, 1)
            return True
        except PermissionError:
            if not wait:
                return False
        time.sleep(0.1)


def unlock_file(descriptor: int) -> None:
    """Let go of a locked file before it is closed: Windows may be late in doing so by itself."""
    if _fcntl is None:
        with _position:
            os.lseek(descriptor, _LOCK_AT, os.SEEK_SET)
            _msvcrt.locking(descriptor, _msvcrt.LK_UNLCK, 1)


@contextmanager
def locked_directory(directory: Path, wait: Callable[[], None]) -> Iterator[bool]:
    """Lock a directory for this process within a `with` block; it ends with the process, however that ends.

    Args:
        directory: not one in which files are published meanwhile: `name_new` may lock it itself.
        wait: called again and again while another process has it.

    Returns:
        Whether it is locked; False on a system, or a file system, that has no locks of directories.
    """
    if IS_WINDOWS:
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        is_locked = True
        try:
            while not lock_file(descriptor):
                wait()
        except OSError:
            is_locked = False
        yield is_locked
    finally:
        os.close(descriptor)


def read_at(descriptor: int, num_bytes: int, offset: int) -> bytes:
    """Read from an open file, whatever other threads do with it."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, num_bytes, offset)
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, num_bytes)


def write_at(descriptor: int, content: bytes, offset: int) -> None:
    """Write into an open file by one call, whatever other threads do with it."""
    if hasattr(os, "pwrite"):
        os.pwrite(descriptor, content, offset)
        return
    with _position:
        os.lseek(descriptor, offset, os.SEEK_SET)
        os.write(descriptor, content)


def touch(descriptor: int, path: Path) -> None:
    """Set an open file's modification time to now, by the clock of its file system."""
    os.utime(descriptor if os.utime in os.supports_fd else path)


def sync_file(descriptor: int) -> None:
    """Return once what was written to a file would survive a power loss."""
    if _fcntl is not None and hasattr(_fcntl, "F_FULLFSYNC"):  # on macOS fsync leaves it in the disk's own cache
        try:
            _fcntl.fcntl(descriptor, _fcntl.F_FULLFSYNC)
            return
        except OSError:  # a file system that cannot
            pass
    os.fsync(descriptor)


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power loss, where a program can ask for it: not on Windows."""
    if IS_WINDOWS:
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that has it for files alone
            raise
    finally:
        os.close(descriptor)


def name_new(temporary: Path, path: Path) -> None:
    """Give a complete file its name, unless something has it already; at once, or not at all.

    Args:
        temporary: the file, in the same directory; may be left under this name too.
        path: the name.

    Raises:
        FileExistsError: the name is taken; what has it is left as it is.
    """
    if IS_WINDOWS:
        _patiently(lambda: os.rename(temporary, path))  # noqa: PTH104  # here it refuses to replace
        return
    try:
        os.link(temporary, path)  # unlike rename, link refuses to replace
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _rename_new(temporary, path)


def _rename_new(temporary: Path, path: Path) -> None:
    # Rename would replace, and to open the name exclusively and fill it then would show half a file. So those who
    # cannot link look and rename one after the other, under a lock of the directory that ends with its process.
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        lock_file(directory, wait=True)
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)
    finally:
        os.close(directory)


def replace_file(temporary: Path, path: Path) -> None:
    """Put a complete file in another's place: a reader sees the old one or the new one."""
    _patiently(lambda: temporary.replace(path))


def _patiently(work: Callable[[], T]) -> T:
    """Do what Windows refuses while a reader, or a virus scanner, has the file open; wait two seconds for it."""
    for seconds in (0.01, 0.05, 0.2, 0.5, 1.2) if IS_WINDOWS else ():
        try:
            return work()
        except PermissionError:
            time.sleep(seconds)
    return work()


def allocate(descriptor: int, num_bytes: int) -> None:
    """Make an open file so long, what it holds kept, and all of it on the disk: a full disk is an `OSError` here.

    In a hole that is mapped into memory it would kill the process.

    Args:
        descriptor: of the file; opened for appending.
        num_bytes: its length.
    """
    if hasattr(os, "posix_fallocate"):
        os.ftruncate(descriptor, num_bytes)
        os.posix_fallocate(descriptor, 0, num_bytes)
        return
    missing = num_bytes - os.fstat(descriptor).st_size
    if missing < 0:
        os.ftruncate(descriptor, num_bytes)
    while missing > 0:
        missing -= os.write(descriptor, _BLOCK[:missing])


def private_content(file: io.BufferedReader) -> mmap.mmap | bytearray:
    """Return a file's content as memory of this process's own, mapped where that keeps nobody from removing it."""
    if IS_WINDOWS:
        file.seek(0)
        return bytearray(file.read())
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
