"""What a bundle tells of the machine and of people: names of hosts and folders, as the run recorded them."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clip_hba_behavior.run.directory import RunDirectory


def names_within(
    run: RunDirectory, files: Mapping[str, Path], origins: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Find the names of hosts and folders in the files of a bundle.

    Args:
        run: whose configuration and environment say which names there are.
        files: their paths by name.
        origins: of the states' files the provenance: in tensors, a short name would be found by chance.

    Returns:
        For each name the files that hold it. What figures show is not looked at.
    """
    environment = run.read_environment()
    texts = _texts([environment, run.read_config().model_dump(), *origins.values(), *_certificates(files)])
    names = {str(each.get("host") or "") for each in (environment["machine"], *origins.values())}
    with suppress(RuntimeError):  # a container's user may have none
        names.add(str(Path.home()))
    names |= {*(each for each in texts if Path(each).is_absolute())}
    searched = {
        name: re.compile(rb"(?<![\w-])(" + rb"|".join(map(_pattern, _spellings(name))) + rb")(?![\w-])")
        for name in sorted(names)
        if len(name) > 1
    }
    found: dict[str, list[str]] = {name: [] for name in searched}
    for file, path in files.items():
        content = repr(origins[file]).encode() if file in origins else path.read_bytes()
        for name, pattern in searched.items():
            if pattern.search(content):
                found[name].append(file)
    return {name: held for name, held in found.items() if held}


def _spellings(name: str) -> list[bytes]:
    """Return a name as it stands in texts and YAML, and as JSON escapes it."""
    return [os.fsencode(name), json.dumps(name)[1:-1].encode()]


def _pattern(name: bytes) -> bytes:
    return rb"\s+".join(map(re.escape, name.split(b" ")))  # YAML folds long lines


def _certificates(files: Mapping[str, Path]) -> Iterator[Any]:
    for name, path in files.items():
        if "/" not in name and name.endswith(".json"):
            yield json.loads(path.read_bytes())


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
