"""The archive of a bundle: every byte of it counts, and a hostile one writes nothing anywhere."""

import errno
import hashlib
import io
import os
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from clip_hba_behavior.bundle.archive import in_order, silent, unpack, write_archive
from clip_hba_behavior.bundle.manifest import MANIFEST, README, Manifest
from clip_hba_behavior.reproducibility.state.errors import BadInputError

FILES = {README: b"read me\n", "config.yaml": b"epochs: 3\n", "report/index.html": b"<html>\n"}
GOLDEN = "c2aabf5a7daade672e8b4726998c7163d18fe0a9d2e9310d082e46cfcbbbef3c"
Build = Callable[[zipfile.ZipFile], None]


def archived(files: dict[str, bytes]) -> bytes:
    entries = {name: (len(each), hashlib.sha256(each).hexdigest()) for name, each in sorted(files.items())}
    file = io.BytesIO()
    write_archive(file, in_order(files, Manifest({}, (), entries).to_bytes()))
    return file.getvalue()


def read(content: bytes, directory: Path) -> list[str]:
    """Unpack a bundle; return what differs."""
    path, target = directory / "some.zip", directory / "unpacked"
    path.write_bytes(content)
    target.mkdir(exist_ok=True)
    return unpack(path, target, silent)[1]


def test_an_archive_has_these_bytes_forever() -> None:
    content = archived(FILES)
    assert hashlib.sha256(content).hexdigest() == GOLDEN


def test_files_come_back_and_nothing_else(tmp_path: Path) -> None:
    assert read(archived(FILES), tmp_path) == []
    unpacked = tmp_path / "unpacked"
    found = {each.relative_to(unpacked).as_posix(): each for each in unpacked.rglob("*") if each.is_file()}
    assert {name: path.read_bytes() for name, path in found.items()} == FILES  # the manifest is read, not written


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    content = archived(FILES)
    silent_bits = []
    for position in range(len(content)):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        directory = tmp_path / str(position)
        directory.mkdir()
        try:
            if not read(bytes(flipped), directory):
                silent_bits.append(position)
        except BadInputError:
            continue
    assert silent_bits == []
    assert read(content, tmp_path) == []


def test_a_file_that_differs_is_named_though_the_archive_is_consistent(tmp_path: Path) -> None:
    manifest = zipfile.ZipFile(io.BytesIO(archived(FILES))).read(MANIFEST)
    for number, (name, content, message) in enumerate(
        [
            ("config.yaml", b"epochs: 4\n", "config.yaml: SHA-256"),
            ("config.yaml", b"epochs: 30\n", "config.yaml: 11 bytes found, 10 in the manifest"),
            ("report/index.html", None, "report/index.html is missing"),
            ("more.txt", b"more", "more.txt is not in the manifest"),
        ]
    ):
        files = {**FILES, name: content}
        file = io.BytesIO()
        write_archive(file, in_order({key: each for key, each in files.items() if each is not None}, manifest))
        (tmp_path / str(number)).mkdir()
        (fault,) = read(file.getvalue(), tmp_path / str(number))
        assert fault.startswith(message)


def test_bytes_that_are_nobodys_are_found(tmp_path: Path) -> None:
    """Another order, a comment on an entry, or bytes between two files: each file is right, the archive is not."""
    content = archived(FILES)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        held = {info.filename: archive.read(info) for info in archive.infolist()}
    other = io.BytesIO()
    write_archive(other, dict(reversed(held.items())))
    (fault,) = read(other.getvalue(), tmp_path)
    assert fault.startswith("the archive itself")


def hostile(change: Build) -> bytes:
    """A bundle with something more in it."""
    file = io.BytesIO(archived(FILES))
    with zipfile.ZipFile(file, "a") as archive:
        change(archive)
    return file.getvalue()


def add(name: str, mode: int = stat.S_IFREG | 0o644, **options: int) -> Build:
    def change(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        archive.writestr(info, b"\0" * 10_000_000 if options else b"target", **options)

    return change


HOSTILE = {
    "a path above": (add("../evil"), "a name that not every system can have: ../evil"),
    "a path above within": (add("report/../../evil"), "a name that not every system can have"),
    "an absolute path": (add("/tmp/evil"), "a name that not every system can have: /tmp/evil"),
    "a drive": (add("C:evil"), "a name that not every system can have"),
    "a backslash": (add("..\\evil"), "a name that not every system can have"),
    "a folder": (add("folder/", stat.S_IFDIR | 0o755), "a name that not every system can have"),
    "a control character": (add("evil\x1b[2J"), "a name that not every system can have: 'evil\\x1b[2J'"),
    "a text turned round": (
        add("evil\u202egpj.exe"),
        "a name that not every system can have: 'evil\\u202egpj.exe'",
    ),
    "the same name": (add("config.yaml"), "two files of one name: config.yaml and config.yaml"),
    "the same name to some systems": (add("CONFIG.yaml"), "two files of one name: config.yaml and CONFIG.yaml"),
    "a file as a folder": (add("config.yaml/evil"), "config.yaml both as a file and as a folder"),
    "a link": (add("link", stat.S_IFLNK | 0o777), "link: it is no regular file"),
    "a bomb": (add("zeros", compress_type=zipfile.ZIP_DEFLATED), "zeros: it is compressed"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_writes_nothing(case: str, tmp_path: Path) -> None:
    change, message = HOSTILE[case]
    with pytest.raises(BadInputError) as refused:
        read(hostile(change), tmp_path)
    assert message in str(refused.value)
    assert list((tmp_path / "unpacked").iterdir()) == []
    assert sorted(each.name for each in tmp_path.iterdir()) == ["some.zip", "unpacked"]


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    content = bytearray(archived(FILES))
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = content.rfind(signature)
        content[at + offset] |= 1
    with pytest.raises(BadInputError, match=r"report/index\.html: it is encrypted"):
        read(bytes(content), tmp_path)


def test_files_within_each_other_are_refused(tmp_path: Path) -> None:
    """A directory whose entries all point to the same large file claims more than there is."""
    file = io.BytesIO()
    write_archive(file, {"large": b"\0" * 100_000, MANIFEST: b"{}"})
    content = file.getvalue()
    at = content.rfind(b"PK\1\2")  # the manifest's entry: give it the large file's place and size
    forged = bytearray(content)
    struct.pack_into("<LL", forged, at + 20, 100_000, 100_000)
    struct.pack_into("<L", forged, at + 42, 0)
    with pytest.raises(BadInputError, match="claims files of 200000 bytes"):
        read(bytes(forged), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no bundle, or a torn one"),
        (b"PK\3\4", "no bundle, or a torn one"),
        (archived(FILES)[:-7], "no bundle, or a torn one"),
        (archived(FILES) + b"more", "no bundle, or a torn one"),
    ],
)
def test_what_is_no_archive_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        read(content, tmp_path)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (None, "has no manifest.json"),
        (b"[1, 2", "its manifest.json cannot be read"),
        (b'{"kind": "another"}', "its kind is 'another'"),
        (b'{"kind": "clip_hba_behavior bundle", "format_version": 2}', "has another format"),
        (b'{"kind": "clip_hba_behavior bundle", "format_version": 1, "facts": 3}', "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (
            b'{"kind": "clip_hba_behavior bundle", "format_version": 1, "facts": {}, "left_out": [],'
            b' "files": {"a": {"bytes": Infinity, "sha256": ""}}}',
            "cannot be read",
        ),
        (Manifest({}, (), {"../evil": (1, "")}).to_bytes(), "a name that not every system can have: ../evil"),
    ],
)
def test_what_has_no_manifest_is_no_bundle(manifest: bytes | None, message: str, tmp_path: Path) -> None:
    file = io.BytesIO()
    write_archive(file, {"config.yaml": b"epochs: 3\n"} | ({} if manifest is None else {MANIFEST: manifest}))
    with pytest.raises(BadInputError, match=message):
        read(file.getvalue(), tmp_path)
    assert list((tmp_path / "unpacked").iterdir()) == []


def test_a_disk_that_is_full_is_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: IO[bytes], target: IO[bytes] | None) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = archived(FILES)
    monkeypatch.setattr("clip_hba_behavior.bundle.archive._copy", full)
    with pytest.raises(OSError, match="No space left"):
        read(content, tmp_path)
