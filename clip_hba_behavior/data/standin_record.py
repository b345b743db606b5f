"""What is on record of a synthetic data set: what it was drawn from, and the digest of its files.

The same numbers give the same files only with the same drawing, and with the same libraries that encode them; both
are part of the record.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular, open_text

RECORD = "dataset.json"
_MAX_RECORD_BYTES = 2**16
_MAX_FILE_BYTES = 256 * MIB  # the largest of the default data set has 0.6
_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("data/standin.py", "data/drawing.py", "reproducibility/state/philox.py")
_LIBRARIES = ("numpy", "pillow", "scipy")


def recorded_digest(directory: Path, numbers: Mapping[str, int]) -> str | None:
    """Return the digest of the files that were drawn in a directory from these numbers; None if none were."""
    try:
        with open_text(directory / RECORD, _MAX_RECORD_BYTES) as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):  # as good as none: the files are drawn, and it is written again
        return None
    if not isinstance(content, dict) or content.get("drawn_from") != _origin(numbers):
        return None
    return content["digest"] if isinstance(content.get("digest"), str) else None


def write_record(directory: Path, numbers: Mapping[str, int], digest: str) -> None:
    """Write down what files were drawn from, and their digest; after the files, whose digest it is."""
    content = {"drawn_from": _origin(numbers), "digest": digest}
    replace(directory / RECORD, (json.dumps(content, indent=1) + "\n").encode(), is_lasting=False)


def digest_on_disk(directory: Path, names: Sequence[str]) -> str | None:
    """Return the digest of some files in a directory; None if one is not there."""
    try:
        return digest_of(_read(directory, names))
    except OSError:
        return None


def digest_of(files: Iterable[tuple[str, bytes]]) -> str:
    """Return the SHA-256 over names and contents, in their order."""
    total = hashlib.sha256()
    for name, content in files:
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest()


def _read(directory: Path, names: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with open_regular(directory / name, _MAX_FILE_BYTES) as file:
            yield name, file.read()


def _origin(numbers: Mapping[str, int]) -> dict[str, Any]:
    sources = digest_of(_read(_PACKAGE, _SOURCES)) if (_PACKAGE / _SOURCES[0]).is_file() else None
    return {**numbers, "sources": sources, **{name: _version(name) for name in _LIBRARIES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
