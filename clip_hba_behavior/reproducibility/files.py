"""Files that are whole or absent: publish, replace, append, and one writer a directory."""

import fcntl
import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clip_hba_behavior.reproducibility.errors import BadInputError


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _temporary_beside(path: Path, content: bytes) -> Iterator[Path]:
    """Write content to a synced temporary file in the same directory; remove it in the end."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def publish(path: Path, content: bytes) -> None:
    """Make a file appear with all its content, or not at all, and never in another's place.

    Raises:
        FileExistsError: the path exists; it is left as it is.
    """
    with _temporary_beside(path, content) as temporary:
        os.link(temporary, path)  # unlike rename, link refuses to replace
    sync_directory(path.parent)


def replace(path: Path, content: bytes) -> None:
    """Put new content in a file's place at once: a reader sees the old file or the new one."""
    with _temporary_beside(path, content) as temporary:
        temporary.replace(path)
        # `_temporary_beside` finds nothing left to remove
    sync_directory(path.parent)


@contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Hold a directory for this process; the kernel lets go of it when the process ends.

    Raises:
        BadInputError: another process holds it; names its host and process.
    """
    path = directory / "run.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "unknown"
            raise BadInputError(
                f"the run directory {directory} is in use\n"
                f"  by:      {holder}\n"
                f"  this is: {_whoami()}\n"
                "  wait for it to end, or give another --run-dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _whoami().encode() + b"\n", 0)
        yield
    finally:
        os.close(descriptor)


def _whoami() -> str:
    return json.dumps({"host": socket.gethostname(), "process": os.getpid()})
