"""Where a report is written: a directory that holds nothing else, and is replaced by a new report alone."""

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from clip_hba_behavior.reproducibility.record.lease import LOCK_NAME, hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular, open_text, quote

MANIFEST = "manifest.json"  # of each file of the report its SHA-256, so that nobody else's is ever replaced
_KIND = "clip_hba_behavior report"
_CUT_SHORT = re.compile(r"\.(.+)\.\w{8}\.tmp")  # what a process that was killed leaves beside the file it wrote


def refuse_foreign(directory: Path) -> None:
    """Return if a report may be written into a directory: it is not there, is empty, or holds an older report.

    Raises:
        BadInputError: it holds something else, or a report's file was changed since.
    """
    there = next(each for each in (directory, *directory.absolute().parents) if each.exists() or each.is_symlink())
    if not there.is_dir():
        what = "a link to nothing" if there.is_symlink() else "a file"
        raise BadInputError(f"--out {directory}: {there} is {what}\n  give a new directory")
    if not directory.is_dir():
        return
    written = _read_manifest(directory)
    # a link to a directory leads to files that are somebody else's
    for path in sorted(each for each in directory.rglob("*") if each.is_symlink() or not each.is_dir()):
        name = path.relative_to(directory).as_posix()
        if (name == MANIFEST and written) or _is_lock(path) or _is_cut_short(path, directory, written):
            continue
        if name not in written:
            raise BadInputError(
                f"{directory} holds what no report wrote: {name}\n  move it, or give another directory with --out"
            )
        if (found := _digest_of(path)) != written[name]:
            raise BadInputError(
                f"{path} was changed since the report was written, and is not replaced\n"
                f"  SHA-256 found:   {found}\n  SHA-256 written: {written[name]}\n"
                "  move it, or give another directory with --out"
            )


def names_written(directory: Path) -> list[str]:
    """Return the names of a report's files, its manifest apart; none where there is no report.

    Raises:
        BadInputError: what is there is no report's manifest.
    """
    return list(_read_manifest(directory))


def write_report(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write a report in the place of an older one; the manifest names every file before it is there.

    Raises:
        BadInputError: as `refuse_foreign`, or another process writes a report there.
    """
    refuse_foreign(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with hold(directory):
        refuse_foreign(directory)  # another report may have been written meanwhile
        _write(directory, files)
        with suppress(OSError):  # some systems remove no open file; the next report passes it over
            (directory / LOCK_NAME).unlink()


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    written = _read_manifest(directory)
    for path in [each for each in directory.rglob(".*.tmp") if _is_cut_short(each, directory, written)]:
        path.unlink(missing_ok=True)
    for name in written:
        (directory / name).unlink(missing_ok=True)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(files.items())}
    manifest = json.dumps({"kind": _KIND, "files": digests}, indent=1) + "\n"
    replace(directory / MANIFEST, manifest.encode(), is_lasting=False)
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, content, is_lasting=False)


def _is_lock(path: Path) -> bool:
    """Return whether a file keeps a second report out, or is left of one that did."""
    return path.name.removeprefix(".").startswith(LOCK_NAME) and path.is_file() and not path.is_symlink()


def _is_cut_short(path: Path, directory: Path, written: Mapping[str, str]) -> bool:
    """Return whether a file was being written when its process was killed."""
    match = _CUT_SHORT.fullmatch(path.name)
    name = path.with_name(match[1]).relative_to(directory).as_posix() if match is not None else ""
    return (name == MANIFEST or name in written) and path.is_file() and not path.is_symlink()


def _read_manifest(directory: Path) -> dict[str, str]:
    """Return what an older report wrote; empty where there is none."""
    path = directory / MANIFEST
    if not path.is_file():
        return {}
    try:
        with open_text(path, MIB) as file:
            content = json.load(file)
        if content["kind"] != _KIND:
            raise ValueError(f"its kind is {quote(content['kind'])}")
        files = {str(name): str(digest) for name, digest in content["files"].items()}
        if any(Path(name).is_absolute() or ".." in Path(name).parts for name in files):
            raise ValueError("it names files elsewhere")
        if folders := [name for name in files if (directory / name).is_dir()]:
            raise ValueError(f"it names a directory: {quote(folders[0])}")
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BadInputError(
            f"{path} is not a report's: {error}\n  move it, or give another directory with --out"
        ) from None
    return files


def _digest_of(path: Path) -> str:
    try:
        with open_regular(path, 1024 * MIB) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error}\n  give another directory with --out") from None
