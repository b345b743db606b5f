"""What was read from files is kept while they stay as they were, and read again when one changes."""

import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.run.kept import Kept, mark_of

LONG_AGO = time.time() - 3600


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_text("one")
    return path


@pytest.fixture
def read(file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """Read through one `Kept`, an hour after the file was written as the clock has it."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3600 * 10**9)
    kept: Kept[str] = Kept()
    return lambda key="key": kept.get(key, lambda: reads.append(key) or file.read_text(), lambda _: [file])


reads: list[str] = []


@pytest.fixture(autouse=True)
def _no_reads() -> None:
    reads.clear()


def test_the_second_asks_for_nothing_and_another_key_reads_anew(read: Callable[..., str]) -> None:
    assert [read(), read(), read("other"), read()] == ["one"] * 4
    assert reads == ["key", "other", "key"]  # the last alone is kept


@pytest.mark.parametrize("change", ["written", "written and given its old time", "replaced", "gone"])
def test_a_file_that_changes_is_read_again(change: str, file: Path, read: Callable[..., str]) -> None:
    assert read() == "one"
    before = file.stat()
    time.sleep(0.01)  # of a tick of the file system's clock
    if change.startswith("written"):
        file.write_text("two")
        if change != "written":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
            assert file.stat().st_mtime_ns == before.st_mtime_ns
    else:
        file.unlink()
        if change == "replaced":
            file.write_text("two")
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "gone":
        with pytest.raises(FileNotFoundError):
            read()
    else:
        assert read() == "two"


def test_what_changed_in_the_moment_of_reading_is_not_kept(file: Path) -> None:
    kept: Kept[str] = Kept()
    for _ in range(2):
        kept.get("key", lambda: reads.append("key") or file.read_text(), lambda _: [file])
    assert reads == ["key", "key"]


def test_a_value_is_let_go_before_another_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large model there is never a second one in memory."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3600 * 10**9)
    kept: Kept[set[str]] = Kept()
    made: list[weakref.ref[set[str]]] = []

    def read() -> set[str]:
        assert not made or made[-1]() is None
        value = set[str]()
        made.append(weakref.ref(value))
        return value

    for key in ("key", "key", "other"):
        kept.get(key, read, lambda _: [file])
    assert len(made) == 2


def test_a_mark_tells_files_apart_and_is_none_without_one(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("one")
    assert mark_of(file) == mark_of(file)
    assert mark_of(file) != mark_of(tmp_path / "other")
    assert mark_of(tmp_path / "none") is None
