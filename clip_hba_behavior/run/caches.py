"""The caches of frozen features on this machine: what each takes, and which runs it belongs to."""

import json
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.model.cache_names import INDEX_NAME, KEY_NAME, LOCK_NAME, ROWS_NAME
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.system import IS_WINDOWS, lock_file
from clip_hba_behavior.reproducibility.state.untrusted import quote
from clip_hba_behavior.run.directory import RunDirectory

# Of a cache's key and of a run's settings: what both name.
_SETTINGS = ("num_threads", "deterministic", "tf32", "sdpa_backend", "chunk_size")


@dataclass(frozen=True)
class Cache:
    """One cache.

    Attributes:
        path: its folder.
        kind: `images` or `prompts`.
        num_bytes: of its files.
        age_seconds: since it was filled.
        is_complete: whether it is filled to its end.
        runs: of those that were looked at, the ones that use it.
    """

    path: Path
    kind: str
    num_bytes: int
    age_seconds: float
    is_complete: bool
    runs: tuple[str, ...]


def list_caches(cache_dir: Path, runs: Iterable[Path]) -> tuple[list[Cache], list[str]]:
    """Return the caches in a directory, the largest first, and a line for each cache or run that is damaged.

    Args:
        cache_dir: where caches are.
        runs: directories of runs that may use them.

    Raises:
        BadInputError: there is no such directory.
    """
    if not cache_dir.is_dir():
        raise BadInputError(f"there is no directory of caches {cache_dir}\n  give --cache-dir")
    users: list[tuple[str, dict[str, Any]]] = []
    found, faults = [], []
    for run in runs:
        try:
            users.append((str(run), RunDirectory(run).read_environment()))
        except BadInputError as error:
            faults.append(f"{run}: not known which caches it uses: {str(error).replace(chr(10), ';')}")
    for folder in sorted(cache_dir.iterdir()):
        try:
            key = json.loads((folder / KEY_NAME).read_bytes())
        except (OSError, ValueError):
            continue  # no cache: such as the synthetic data set
        if not isinstance(key, dict):
            faults.append(f"{folder}: {KEY_NAME} is damaged: found {quote(key)}")
            continue
        files = [each.stat() for each in folder.iterdir()]
        found.append(
            Cache(
                path=folder,
                kind="images" if "images" in key else "prompts",
                num_bytes=sum(each.st_size for each in files),
                age_seconds=max(0.0, time.time() - max(each.st_mtime for each in files)),
                is_complete=(folder / INDEX_NAME).is_file(),
                runs=tuple(name for name, environment in users if _is_of(key, environment)),
            )
        )
    return sorted(found, key=lambda each: -each.num_bytes), faults


def remove(caches: Iterable[Cache]) -> tuple[list[Cache], list[Cache]]:
    """Remove caches; they are filled again when a run needs them.

    Returns:
        Those that were removed, and those that a process is filling, or on Windows reading, which stay.
    """
    removed: list[Cache] = []
    busy: list[Cache] = []
    for each in caches:
        with (each.path / LOCK_NAME).open("ab") as file:
            is_free = lock_file(file.fileno()) and _empty(each.path)
        if is_free:
            with suppress(OSError):  # Windows removes no open file: so it goes last, and may be another's by now
                (each.path / LOCK_NAME).unlink()
                each.path.rmdir()
        (removed if is_free else busy).append(each)
    return removed, busy


def _empty(folder: Path) -> bool:
    """Remove a cache's files but its lock's, the rows first; False if Windows sees that a run has them open."""
    files = sorted(folder.iterdir(), key=lambda path: path.name != ROWS_NAME)
    try:
        for path in files:
            if path.name != LOCK_NAME:
                path.unlink()
    except PermissionError:
        if not IS_WINDOWS:
            raise
        return False
    return True


def _is_of(key: Mapping[str, Any], environment: Mapping[str, Any]) -> bool:
    """Whether a run reads a cache: data, weights, settings, processor and versions are those of its key."""
    from clip_hba_behavior.reproducibility.state.digest import digest

    trajectory, digests = environment["trajectory"], environment["digests"]
    if key.get("weights") != digests.get("weights"):
        return False
    if key.get("arithmetic", "native") != trajectory.get("arithmetic", "native"):
        return False
    if "arithmetic" not in key and not _is_of_this_machine(key, environment):
        return False
    if "images" in key:
        same_layers = key.get("vision_layers") == trajectory.get("vision_layers")
        return bool(same_layers and digest(list(key["images"])) == digests.get("images"))
    same_layers = key.get("transformer_layers") == trajectory.get("transformer_layers")
    return bool(same_layers and key.get("prompts") == digests.get("prompts"))


def _is_of_this_machine(key: Mapping[str, Any], environment: Mapping[str, Any]) -> bool:
    """Whether settings, processor and versions of a native run are those of a cache."""
    settings = environment["trajectory"] | {"tf32": environment["trajectory"].get("precision") == "tf32"}
    if any(key.get(name) != settings.get(name) for name in _SETTINGS):
        return False
    if key.get("device_model") != environment["machine"].get("device_model"):
        return False
    versions = {name: environment["versions"].get(name) for name in ("torch", "numpy")}
    return all(key.get("versions", {}).get(name) == value for name, value in versions.items())


def as_table(caches: list[Cache]) -> str:
    """Return a line for each cache, and the sum."""
    lines = []
    for each in caches:
        state = "" if each.is_complete else ", not complete"
        users = ", ".join(each.runs) if each.runs else "no run that was looked at"
        lines.append(
            f"{each.path.name}  {each.kind}, {each.num_bytes / 1e6:.1f} MB{state}, "
            f"{each.age_seconds / 86400:.0f} d old; used by {users}"
        )
    total = sum(each.num_bytes for each in caches)
    return "\n".join([*lines, f"{len(caches)} cache{'s' if len(caches) != 1 else ''}, {total / 1e6:.1f} MB"])
