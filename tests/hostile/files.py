"""Hostile files and places in general: what is no regular file, and what every kind of file has."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 2**30
CANARY = "pwned"  # what code in a file would make in the working directory

Build = Callable[[Path], Path]


class RunsCode:
    """Unpickled, it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"import pathlib; pathlib.Path('{CANARY}').touch()",))


def pipe(directory: Path) -> Path:
    os.mkfifo(directory / "pipe")
    return directory / "pipe"


def endless_device(directory: Path) -> Path:
    return Path("/dev/zero")


def link_to_a_device(directory: Path) -> Path:
    (directory / "link").symlink_to("/dev/zero")
    return directory / "link"


def a_socket(directory: Path) -> Path:
    os.chdir(directory)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    return directory / "socket"


def a_directory(directory: Path) -> Path:
    (directory / "folder").mkdir()
    return directory / "folder"


def circle_of_links(directory: Path) -> Path:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    return directory / "a"


def name_too_long(directory: Path) -> Path:
    return directory / ("x" * 300)


def huge_hole(directory: Path) -> Path:
    return sparse(directory / "hole", 10 * GIB)


def empty(directory: Path) -> Path:
    (directory / "empty").touch()
    return directory / "empty"


def zeros(directory: Path) -> Path:
    (directory / "zeros").write_bytes(bytes(5000))
    return directory / "zeros"


PLACES: list[Build] = [
    pipe,
    endless_device,
    link_to_a_device,
    a_socket,
    a_directory,
    circle_of_links,
    name_too_long,
    huge_hole,
    empty,
    zeros,
]


def sparse(path: Path, size: int, start: bytes = b"", end: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)
    return path


def bytes_of(name: str, content: bytes | Callable[[], bytes]) -> Build:
    """A file with some content."""

    def build(directory: Path) -> Path:
        (directory / "file").write_bytes(content if isinstance(content, bytes) else content())
        return directory / "file"

    build.__name__ = name
    return build
