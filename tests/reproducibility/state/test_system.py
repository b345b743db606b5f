import errno
import os
import random
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state import process, system
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.run import advice


def without_links(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_where_there_are_no_links_a_published_file_is_never_replaced_either(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch, number)
    publish(tmp_path / "state", b"first")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "state", b"second")
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("state", b"first")]


def test_another_error_of_link_is_not_taken_for_a_file_system_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "state", b"first")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_directory_that_cannot_be_synced_is_no_error_but_a_broken_disk_is(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.fsync

    def fsync(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(number, os.strerror(number))
        own(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output error"):
            publish(tmp_path / "state", b"first")
    else:
        publish(tmp_path / "state", b"first")
    assert (tmp_path / "state").read_bytes() == b"first"


def race(tmp_path: Path) -> list[str]:
    """Let eight publish one name at once; return what each came to."""
    begin = threading.Barrier(8)

    def attempt(number: int) -> str:
        begin.wait()
        try:
            publish(tmp_path / "state", b"%d" % number * 1000)
        except FileExistsError:
            return "refused"
        return str(number)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(attempt, range(8)))


def test_of_several_who_publish_one_name_without_links_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch, errno.EPERM)
    outcomes = race(tmp_path)
    (winner,) = set(outcomes) - {"refused"}
    assert (tmp_path / "state").read_bytes() == winner.encode() * 1000
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_without_the_directorys_lock_several_would_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_links(monkeypatch, errno.EPERM)
    found, looked = os.path.lexists, threading.Barrier(8)

    def all_look_first(path: Path) -> bool:
        is_there = found(path)
        looked.wait(10)
        return is_there

    monkeypatch.setattr(os.path, "lexists", all_look_first)
    monkeypatch.setattr(system, "lock_file", lambda descriptor, wait: True)
    assert "refused" not in race(tmp_path)


@pytest.mark.parametrize("before", [b"", b"abc", b"abc" * 500_000, b"abc" * 1_000_000])
def test_a_file_is_made_as_long_with_and_without_fallocate(
    before: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_bytes = 2_500_000
    for name in ("with", "without"):
        (tmp_path / name).write_bytes(before)
        if name == "without":
            monkeypatch.delattr(os, "posix_fallocate")
        with (tmp_path / name).open("ab") as file:
            system.allocate(file.fileno(), num_bytes)
    content = (tmp_path / "without").read_bytes()
    assert content == (tmp_path / "with").read_bytes() == before[:num_bytes].ljust(num_bytes, b"\0")
    assert (tmp_path / "without").stat().st_blocks * 512 >= num_bytes  # no hole


def test_threads_read_and_write_at_places_of_their_own_without_pread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pread", "pwrite"):
        monkeypatch.delattr(os, name)
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)

    def work(number: int) -> bool:
        own = b"%d" % number * 100
        for _ in range(200):
            system.write_at(descriptor, own, number * 100)
            if system.read_at(descriptor, 100, number * 100) != own:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))
    os.close(descriptor)


def test_a_file_that_is_open_for_a_moment_is_replaced_on_windows_once_it_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "IS_WINDOWS", True)
    own, refusals = Path.replace, []

    def replace(source: Path, target: Path) -> Path:
        if len(refusals) < 2:
            refusals.append(target)
            raise PermissionError(errno.EACCES, "The process cannot access the file", str(target))
        return own(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    (tmp_path / "new").write_bytes(b"new")
    system.replace_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    assert len(refusals) == 2


@pytest.mark.parametrize(
    ("is_windows", "expected"),
    [(False, "clip-hba resume '/a b/run' 'C:\\d'"), (True, 'clip-hba resume "/a b/run" C:\\d')],
)
def test_a_command_is_quoted_for_the_systems_shell(
    is_windows: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "IS_WINDOWS", is_windows)
    assert advice.command_line("resume", "/a b/run", "C:\\d") == expected


def test_naming_a_machine_without_proc_draws_nothing_from_the_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_card() -> int:
        return random.getrandbits(40) | 1 << 40  # as uuid does where it finds none

    def no_file(path: Path, **_: object) -> str:
        raise FileNotFoundError(str(path))

    monkeypatch.setattr(uuid, "getnode", no_card)
    monkeypatch.setattr(Path, "read_text", no_file)
    process._network_card.cache_clear()
    before = random.getstate()
    assert process.this_boot() == (socket.gethostname(), "")
    assert random.getstate() == before
    process._network_card.cache_clear()


def test_the_clock_of_the_lease_needs_nothing_of_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert abs(process.seconds_since_boot() - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
    monkeypatch.delattr(time, "clock_gettime")
    assert abs(process.seconds_since_boot() - time.monotonic()) < 60
