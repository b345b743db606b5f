from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.files import publish, published_directory, replace


def test_a_published_file_is_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state"
    publish(path, b"first")
    with pytest.raises(FileExistsError):
        publish(path, b"second")
    assert path.read_bytes() == b"first"
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def test_a_replaced_file_has_the_new_content_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    replace(path, b"first")
    replace(path, b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in tmp_path.iterdir()] == ["state"]


def write_theirs(directory: Path) -> None:
    directory.mkdir()
    (directory / "theirs").write_text("theirs")


def fill(path: Path, then: Callable[[], object] = lambda: None) -> None:
    with published_directory(path) as directory:
        (directory / "one").write_text("1")
        assert not path.exists()
        then()


def test_a_directory_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "above" / "out"
    fill(out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"one": "1"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    with pytest.raises(ZeroDivisionError):
        fill(tmp_path / "failed", lambda: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["above"]


def test_a_directory_takes_no_others_place(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):  # another process came first
        fill(tmp_path / "empty", (tmp_path / "empty").mkdir)
    with pytest.raises(FileExistsError):
        fill(tmp_path / "full", lambda: write_theirs(tmp_path / "full"))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "full", "theirs"]
