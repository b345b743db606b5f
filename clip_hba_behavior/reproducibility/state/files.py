"""Files and directories that are complete or absent: publish and replace."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from clip_hba_behavior.reproducibility.state.system import name_new, replace_file, sync_directory, sync_file


@contextmanager
def _written_beside(
    path: Path, name_it: Callable[[Path, Path], None], is_lasting: bool = True
) -> Iterator[BinaryIO]:
    """Give a temporary file in the same directory to fill, which then gets its name; an error leaves nothing."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if is_lasting:
                file.flush()
                sync_file(file.fileno())
        temporary.chmod(0o644)
        name_it(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if is_lasting:
        sync_directory(path.parent)


@contextmanager
def published_file(path: Path) -> Iterator[BinaryIO]:
    """Give a file to fill, which appears with all its content, or not at all, and never in another's place.

    Raises:
        FileExistsError: the path exists; it is left as it is.
    """
    with _written_beside(path, name_new) as file:
        yield file


def publish(path: Path, content: bytes) -> None:
    """Make a file appear with all its content; as `published_file`."""
    with published_file(path) as file:
        file.write(content)


def replace(path: Path, content: bytes, is_lasting: bool = True) -> None:
    """Put new content in a file's place at once: a reader sees the old file or the new one.

    Args:
        path: the file; made if it is not there.
        content: all of it.
        is_lasting: whether it must survive a power loss; what is made again in a moment need not.
    """
    with _written_beside(path, replace_file, is_lasting) as file:
        file.write(content)


@contextmanager
def published_directory(path: Path) -> Iterator[Path]:
    """Give an empty directory to fill, which gets its name once it is complete; an error leaves nothing.

    Args:
        path: the name; directories above it are made.

    Raises:
        FileExistsError: something is there already; it is left as it is.
    """
    made = [each for each in path.parents if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                file.chmod(0o644)
                with file.open("rb+") as opened:
                    sync_file(opened.fileno())
        temporary.chmod(0o755)
        if path.exists():  # a rename would replace an empty directory
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        temporary.rename(path)
        sync_directory(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after the rename there is none
        for each in made:
            with suppress(OSError):  # it is not empty
                each.rmdir()
