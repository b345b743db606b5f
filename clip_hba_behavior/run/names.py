"""What runs and sweeps are called where several are told apart."""

from collections.abc import Sequence
from pathlib import Path


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of paths, as many as tell them apart."""
    parts = [path.absolute().with_suffix("").parts if path.is_file() else path.absolute().parts for path in paths]
    for number in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-number:]) for each in parts]
        if len(set(names)) == len(names):
            return [_readable(name) for name in names]
    return [_readable(str(path)) for path in paths]


def _readable(name: str) -> str:
    """Return a name with a question mark for each byte that is no UTF-8, and cannot be written as text."""
    return name.encode(errors="replace").decode()
