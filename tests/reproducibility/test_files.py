import os
import signal
import time
from pathlib import Path

import pytest

import fresh_process
from clip_hba_behavior.reproducibility.errors import BadInputError
from clip_hba_behavior.reproducibility.files import one_writer, publish, replace


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


def hold(directory: str, held: str) -> None:
    with one_writer(Path(directory)):
        Path(held).touch()
        time.sleep(60)


def test_a_second_writer_is_refused_by_name_until_the_first_is_killed(tmp_path: Path) -> None:
    held = tmp_path / "held"
    first = fresh_process.start(hold, str(tmp_path), str(held), output=tmp_path / "output.txt")
    while not held.exists():
        time.sleep(0.01)
    with pytest.raises(BadInputError, match=f"is in use(.|\n)*{first.pid}"), one_writer(tmp_path):
        pass
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    with one_writer(tmp_path):
        pass
