from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.files import publish, replace


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
