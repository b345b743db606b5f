"""The zip archive of a bundle: the same files give the same bytes; a foreign one is read without trusting it."""

import errno
import filecmp
import hashlib
import io
import re
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from clip_hba_behavior.bundle.manifest import MANIFEST, README, Manifest, read_manifest
from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.reproducibility.state.archive import LOADING_ERRORS, open_archive, reason
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular, shown

MAX_BYTES = 64 * 1024 * MIB
_MAX_MANIFEST, _MAX_FILES = 64 * MIB, 100_000
_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest that the format knows
_MODE = stat.S_IFREG | 0o644
_UNIX = 3
# What no system takes for another folder, a device or a stream.
_PART = re.compile(r'[^\0-\x1f\x7f<>:"/\\|?*]*[^\0-\x1f\x7f<>:"/\\|?*. ]')

Source = Path | bytes


def silent(what: str, done: int, total: int) -> None:
    """Report nothing."""


def write_archive(file: IO[bytes], sources: Mapping[str, Source], report: Report = silent) -> dict[str, str]:
    """Write files into an archive, in their order, without times, owners or compression.

    What a compressor writes depends on its version; what is only stored does not.

    Args:
        file: the archive, open to be written.
        sources: by name within the archive, a file's path or its content.
        report: told of the progress.

    Returns:
        The SHA-256 of each file as it was written.
    """
    digests = {}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for done, (name, source) in enumerate(sources.items(), start=1):
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system, info.external_attr = _UNIX, _MODE << 16
            with _opened(source) as opened:
                info.file_size = opened.seek(0, io.SEEK_END)  # whether it needs the 64-bit form
                opened.seek(0)
                with archive.open(info, "w") as target:
                    digests[name] = _copy(opened, target)
            report("writing files", done, len(sources))
    return digests


def digest_of(source: Source) -> tuple[int, str]:
    """Return the number of bytes of a file, and its SHA-256."""
    with _opened(source) as opened:
        sha256 = _copy(opened, None)
        return opened.tell(), sha256


def refuse_names(names: Iterable[str], what: str) -> None:
    """Return if files of these names can lie beside each other on any system, below one directory.

    Raises:
        BadInputError: one cannot, or would lie elsewhere.
    """
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        if len(name) > 200 or not name.isprintable() or not all(_PART.fullmatch(part) for part in parts):
            raise BadInputError(f"{what} holds a name that not every system can have: {shown(name)}")
        if (other := seen.get(name.casefold())) is not None:
            raise BadInputError(f"{what} holds two files of one name: {shown(other)} and {shown(name)}")
        seen[name.casefold()] = name
    for name in seen:
        if above := next((str(each) for each in PurePosixPath(name).parents if str(each) in seen), None):
            raise BadInputError(f"{what} holds {shown(above)} both as a file and as a folder")


def unpack(path: Path, directory: Path, report: Report) -> tuple[Manifest | None, list[str]]:
    """Write the files of a bundle into a directory, each only if its content is the one that the manifest says.

    Args:
        path: of the archive.
        directory: an empty one.
        report: told of the progress.

    Returns:
        The manifest, None where it is damaged; and what differs from it, a sentence each.

    Raises:
        BadInputError: it is no bundle; nothing was written.
    """
    with open_archive(path, "bundle", MAX_BYTES) as (file, archive):
        found = _checked(archive.infolist(), file.seek(0, io.SEEK_END), path)
        if MANIFEST not in found:
            raise BadInputError(
                f"{path} is no bundle: it has no {MANIFEST}\n  expected: a file that `clip-hba bundle` wrote"
            )
        try:
            with archive.open(found.pop(MANIFEST)) as opened:
                content = opened.read(_MAX_MANIFEST + 1)
        except LOADING_ERRORS as error:
            return None, [f"{MANIFEST}: {reason(error)}"]
        manifest = read_manifest(content, path)
        refuse_names(manifest.files, str(path))
        faults = [f"{shown(name)} is not in the manifest" for name in found.keys() - manifest.files.keys()]
        for done, (name, (size, sha256)) in enumerate(manifest.files.items(), start=1):
            if name not in found:
                faults.append(f"{name} is missing")
            elif found[name].file_size != size:
                faults.append(f"{name}: {found[name].file_size} bytes found, {size} in the manifest")
            elif (why := _extract(archive, found[name], directory / name, sha256)) is not None:
                faults.append(f"{name}: {why}")
            report("checking files", done, len(manifest.files))
    if not faults and not _is_as_written(path, directory, content, manifest):
        faults.append(
            "the archive itself: other bytes than its files give (their order, their times, or bytes between them)"
        )
    return manifest, sorted(faults)


def _checked(infos: list[zipfile.ZipInfo], size: int, path: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the entries by name; before anything is read of them, whatever no bundle has is refused."""
    if len(infos) > _MAX_FILES:
        raise BadInputError(f"{path} is no bundle: it has {len(infos)} files, expected at most {_MAX_FILES}")
    refuse_names((info.orig_filename for info in infos), str(path))
    for info in infos:
        if info.flag_bits & 1:
            why = "it is encrypted"
        elif stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            why = "it is no regular file"
        elif info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            why = "it is compressed: was the bundle unpacked, and packed again?"
        else:
            continue
        raise BadInputError(f"{path} is no bundle: {shown(info.filename)}: {why}")
    if (total := sum(info.file_size for info in infos)) > size:  # files that lie within each other
        raise BadInputError(f"{path} is no bundle: of {size} bytes, it claims files of {total} bytes")
    return {info.orig_filename: info for info in infos}


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path, sha256: str) -> str | None:
    """Write a file of the archive; return why not, and leave nothing, if its content is another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    why: str | None = None
    with path.open("xb") as target:
        try:
            with archive.open(info) as opened:
                if (found := _copy(opened, target)) != sha256:
                    why = f"SHA-256 {found} found, {sha256} in the manifest"
        except LOADING_ERRORS as error:
            # a full disk, and not the content; a forged archive leads before its own beginning
            if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
                raise
            why = reason(error)
    if why is not None:
        path.unlink()
    return why


def _is_as_written(path: Path, directory: Path, manifest_content: bytes, manifest: Manifest) -> bool:
    """Whether an archive is, to the last byte, the one that would be written of its files."""
    sources: dict[str, Source] = {name: directory / name for name in manifest.files}
    with tempfile.TemporaryDirectory() as other:
        again = Path(other, "again.zip")
        with again.open("wb") as file:
            write_archive(file, in_order(sources, manifest_content))
        return filecmp.cmp(path, again, shallow=False)


def in_order(sources: Mapping[str, Source], manifest: bytes) -> dict[str, Source]:
    """Return all files of a bundle as they lie in it: first what a person, or a program, reads first."""
    first: dict[str, Source] = {name: sources[name] for name in sources if name == README}
    return first | {MANIFEST: manifest} | {name: sources[name] for name in sorted(sources) if name != README}


def _opened(source: Source) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source, MAX_BYTES)


def _copy(source: IO[bytes], target: IO[bytes] | None) -> str:
    total = hashlib.sha256()
    while chunk := source.read(MIB):
        total.update(chunk)
        if target is not None:
            target.write(chunk)
    return total.hexdigest()
