"""Event files, as TensorBoard's own readers find them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run import event_file
from clip_hba_behavior.run.event_file import record_of, refuse_foreign, refuse_no_tensorboard, write_events
from clip_hba_behavior.run.scalars import STEP_LOSS, Scalars, longest_epoch, of_step, scalars_of
from tracker_tools import Points, Watching, served

NUM_STEPS = 3


def points(epochs: int, value: float = 1.0) -> Iterator[Scalars]:
    for epoch in range(1, epochs + 1):
        for step in range(1, NUM_STEPS + 1):
            yield of_step(epoch, step, value, NUM_STEPS)
        yield Scalars(epoch, {"loss/test": value})


def expected(epochs: int, value: float = 1.0, more_steps: int = 0) -> Points:
    return {
        STEP_LOSS: [(step, value) for step in range(1, NUM_STEPS * epochs + more_steps + 1)],
        "loss/test": [(epoch, value) for epoch in range(1, epochs + 1)],
    }


def test_an_open_tensorboard_sees_each_point_once_whatever_is_written_again(tmp_path: Path) -> None:
    path = write_events(tmp_path / "run", {}, points(4))
    watching = Watching(tmp_path / "run")
    assert watching.both() == [expected(4)] * 2
    with path.open("ab") as file:  # as a run does that is killed within a record
        file.write(record_of(of_step(5, 1, 1.0, NUM_STEPS)) + record_of(of_step(5, 2, 1.0, NUM_STEPS))[:-3])
    assert watching.both() == [expected(4, more_steps=1)] * 2
    path = write_events(tmp_path / "run", {}, points(2, 7.0))  # from an earlier state, with other values
    assert watching.both() == [expected(2, 7.0)] * 2
    with path.open("ab") as file:
        file.write(b"".join(map(record_of, list(points(3, 7.0))[2 * (NUM_STEPS + 1) :])))
    assert watching.both() == [expected(3, 7.0)] * 2
    assert Watching(tmp_path / "run").both() == [expected(3, 7.0)] * 2
    assert served(tmp_path, tmp_path / "port") == {"run": expected(3, 7.0)}


def test_without_the_purge_it_would_see_points_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_file, "_begins", lambda: event_file._event(file_version="brain.Event:2"))
    write_events(tmp_path, {}, points(2))
    watching = Watching(tmp_path)
    watching.both()
    write_events(tmp_path, {}, points(2, 7.0))
    for found in watching.both():
        assert [step for step, _ in found["loss/test"]] == [1, 2, 1, 2]


def test_of_a_file_that_was_removed_it_would_wait_for_ever(tmp_path: Path) -> None:
    """Why older files stay, empty."""
    older = write_events(tmp_path, {}, points(2))
    watching = Watching(tmp_path)
    watching.both()
    write_events(tmp_path, {}, points(3, 7.0))
    assert older.read_bytes() == b""
    older.unlink()
    assert watching.both() == [expected(2)] * 2


def test_the_same_points_give_the_same_bytes_and_leave_the_file_as_it_is(tmp_path: Path) -> None:
    settings = {f"key{number}": number for number in range(20)} | {"lr": 0.1, "text": "a", "on": True}
    path = write_events(tmp_path / "one", settings, points(2))
    before = path.stat()
    assert write_events(tmp_path / "one", settings, points(2)) == path
    assert path.stat() == before
    assert write_events(tmp_path / "two", settings, points(2)).read_bytes() == path.read_bytes()
    assert write_events(tmp_path / "one", settings | {"lr": 0.2}, points(2)).read_bytes() != b""
    assert [each.stat().st_size > 0 for each in sorted((tmp_path / "one").iterdir())] == [False, True]


def test_a_directory_with_anything_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    write_events(tmp_path / "run", {}, points(1))
    refuse_foreign(tmp_path / "run")
    refuse_foreign(tmp_path / "none")
    theirs = tmp_path / "run/events.out.tfevents.1700000000.host.1.0"
    theirs.write_bytes(b"theirs")
    with pytest.raises(BadInputError, match=r"it holds events\.out\.tfevents\.1700000000\.host\.1\.0"):
        write_events(tmp_path / "run", {}, points(2))
    assert len(list((tmp_path / "run").iterdir())) == 2
    with pytest.raises(BadInputError, match="it is no directory"):
        refuse_foreign(theirs)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".events.out.tfevents.0000000001.clip-hba.abcd_123.tmp"
    left.write_bytes(b"half")
    path = write_events(tmp_path, {}, points(1))
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_package_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_no_tensorboard("tracking: tensorboard")
    monkeypatch.setattr(event_file, "_PACKAGE", "tensorboard_of_nobody")
    message = r"tracking: tensorboard needs .*\n.*pip install 'clip-hba-behavior\[tensorboard\]'"
    with pytest.raises(BadInputError, match=message):
        refuse_no_tensorboard("tracking: tensorboard")
    (tmp_path / "tensorboard_of_nobody").mkdir()  # such as a run's own folder, where the command is started
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(BadInputError, match=message):
        refuse_no_tensorboard("tracking: tensorboard")


def test_no_two_steps_share_a_place_when_epochs_have_unequal_numbers_of_them() -> None:
    lengths = [3, 5, 2]
    ledger = {
        (epoch, step): f'{{"epoch": {epoch + 1}, "step": {step}, "batch": "", "loss": {epoch}.5}}'
        for epoch, length in enumerate(lengths)
        for step in range(1, length + 1)
    }
    found = [each.step for each in scalars_of(ledger, {}, longest_epoch(ledger))]
    assert found == [1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    assert list(scalars_of({}, {}, longest_epoch({}))) == []
