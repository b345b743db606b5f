"""What runs and sweeps are called where several are told apart."""

from collections.abc import Sequence
from pathlib import Path


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart; none begins with a slash or has a `..`."""
    given = [path.with_suffix("") if path.is_file() else path for path in paths]
    parts = [(path.resolve() if ".." in path.parts else path.absolute()).parts[1:] for path in given]
    for number in range(1, max(map(len, parts)) + 1):
        names = [_readable("/".join(each[-number:])) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [_readable(str(path)) for path in paths]


def _readable(name: str) -> str:
    """Return a name with a question mark for each byte that is no UTF-8, and cannot be written as text."""
    return name.encode(errors="replace").decode()
