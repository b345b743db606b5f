"""Faults of a disk: it is full, fails, or cannot be written. The run ends clearly, and then as it should."""

import errno
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from fresh_process import Outcome
from run_tools import write_config
from torture.faults import Fault
from torture.runs import begin, must_end_as, start_or_resume, watched

ClipHba = Callable[..., Outcome]


IN_BETWEEN = [pytest.param(room, marks=pytest.mark.system) for room in (1_000, 40_000, 180_000)]


@pytest.mark.parametrize("room", [0, 8_000, 100_000, 230_000, *IN_BETWEEN])
def test_a_disk_that_gets_full_ends_the_run_with_74_and_with_space_again_it_ends_the_same(
    room: int, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    outcome = begin(keys, tmp_path / "run", tmp_path, room=room)
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 28] No space left on device" in outcome.output
    assert "make space, then go on by `clip-hba resume`" in outcome.output
    for path in list_checkpoints(tmp_path / "run" / "dora_params").values():
        assert path.read_bytes() == (uninterrupted / "dora_params" / path.name).read_bytes()
    must_end_as(uninterrupted, start_or_resume(clip_hba, tmp_path / "run", tmp_path), tmp_path / "run")


def fill_the_disk(directory: str, leave: int) -> None:
    """From the second epoch's end on, the disk has so few bytes left."""
    from clip_hba_behavior.training.trainer import Trainer

    real = Trainer.finish_epoch

    def finish_epoch(self: Trainer) -> dict[str, Any]:
        if self.epoch == 1:
            free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
            descriptor = os.open(f"{directory}/filler", os.O_WRONLY | os.O_CREAT)
            os.posix_fallocate(descriptor, 0, free - leave)
            os.close(descriptor)
        return real(self)

    Trainer.finish_epoch = finish_epoch


@pytest.mark.parametrize("leave", [0, pytest.param(4096, marks=pytest.mark.system), 32768])
def test_a_small_file_system_that_gets_full_does_so_too(
    leave: int,
    clip_hba: ClipHba,
    keys: dict[str, Any],
    uninterrupted: Path,
    small_disk: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    disk = small_disk("size=8m")
    outcome = begin(keys, disk / "run", tmp_path, defect=functools.partial(fill_the_disk, str(disk), leave))
    assert outcome.code == 74, outcome.output
    assert "No space left on device" in outcome.output
    assert "Traceback" not in outcome.output
    assert list(list_checkpoints(disk / "run" / "dora_params")) == [0, 1]
    (disk / "filler").unlink()
    must_end_as(uninterrupted, start_or_resume(clip_hba, disk / "run", tmp_path), disk / "run")


def test_a_disk_too_small_for_the_feature_cache_is_said_and_a_larger_one_goes_on(
    clip_hba: ClipHba,
    keys: dict[str, Any],
    uninterrupted: Path,
    small_disk: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    disk = small_disk("size=1m")
    outcome = begin(keys | {"cache_dir": str(disk)}, tmp_path / "run", tmp_path)
    assert outcome.code == 74, outcome.output
    assert "No space left on device" in outcome.output
    assert not (tmp_path / "run").exists()
    small_disk("size=32m")
    must_end_as(uninterrupted, start_or_resume(clip_hba, tmp_path / "run", tmp_path), tmp_path / "run")


FAILING = {
    "the second sync": Fault(2, "fsync", error=errno.EIO),
    "the ledger's second sync": Fault(2, "fsync", "ledger", error=errno.EIO),
    "a checkpoint's sync": Fault(3, "fsync", "checkpoint", error=errno.EIO),
    "the sync of a checkpoint's name": Fault(4, "fsync", "checkpoint", error=errno.EIO),
    "a step checkpoint's link": Fault(1, "link", "step checkpoint", error=errno.EIO),
    "the renaming of best.json": Fault(2, "replace", "best.json", error=errno.EIO),
    "the removal of a step checkpoint": Fault(3, "unlink", "step checkpoint", error=errno.EIO),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_disk_that_fails_ends_the_run_with_74_and_then_it_ends_the_same(
    what: str, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    outcome = begin(keys, tmp_path / "run", tmp_path, fault=FAILING[what])
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 5]" in outcome.output
    must_end_as(uninterrupted, start_or_resume(clip_hba, tmp_path / "run", tmp_path), tmp_path / "run")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("call", "place"), [("link", "checkpoint"), ("replace", "best.json")])
def test_a_kill_beside_the_call_that_makes_a_file_visible_leaves_it_whole_or_absent(
    call: str, place: str, when: Any, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = begin(keys, run, tmp_path, fault=Fault(2, call, place, when))
    assert outcome.code == -9, outcome.output
    assert (1 in list_checkpoints(run / "dora_params")) == (when == "after" or place == "best.json")
    must_end_as(uninterrupted, start_or_resume(clip_hba, run, tmp_path), run)


def test_a_run_directory_that_cannot_be_written_is_said_and_nothing_is_lost(
    clip_hba: ClipHba, run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    checkpoint_path(run / "dora_params", 3).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fault = Fault(1, error=errno.EROFS, lasting=True)
    outcome = watched(["resume", str(run)], tmp_path, fault=fault)
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 30] Read-only file system" in outcome.output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    must_end_as(uninterrupted, clip_hba("resume", run), run)


def test_a_file_system_that_is_mounted_read_only_is_said_and_nothing_is_lost(
    clip_hba: ClipHba, run: Path, uninterrupted: Path, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("size=8m")
    moved = Path(shutil.move(run, disk / "run"))
    checkpoint_path(moved / "dora_params", 3).unlink()
    small_disk("ro")
    outcome = clip_hba("resume", moved)
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 30] Read-only file system" in outcome.output
    small_disk("rw")
    must_end_as(uninterrupted, clip_hba("resume", moved), moved)


@pytest.mark.parametrize(
    "fault",
    [Fault(1, "link", "checkpoint"), Fault(1, "link", "CSV"), Fault(2, "write", "checkpoint", error=errno.ENOSPC)],
    ids=["killed before its first checkpoint", "killed before its results", "the disk is full"],
)
def test_a_continuation_elsewhere_that_broke_off_while_it_copied_can_be_repeated_or_resumed(
    fault: Fault, clip_hba: ClipHba, run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    arguments = ["resume", str(run), "--from-epoch", "2", "--run-dir", str(tmp_path / "new")]
    outcome = watched(arguments, tmp_path, fault=fault)
    assert outcome.code == (74 if fault.error else -9), outcome.output
    if list_checkpoints(tmp_path / "new" / "dora_params"):
        arguments = ["resume", str(tmp_path / "new")]
    must_end_as(uninterrupted, clip_hba(*arguments), tmp_path / "new")


def test_a_full_disk_while_a_history_is_copied_leaves_nothing(run: Path, tmp_path: Path) -> None:
    arguments = ["resume", str(run), "--from-epoch", "2", "--run-dir", str(tmp_path / "new")]
    outcome = watched(arguments, tmp_path, fault=Fault(1, "write", "CSV", error=errno.ENOSPC))
    assert outcome.code == 74, outcome.output
    assert not (tmp_path / "new").exists()


def test_a_run_whose_checkpoints_were_taken_away_is_not_started_over(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    assert clip_hba("train", config, "--run-dir", tmp_path / "own").code == 0
    shutil.move(tmp_path / "own" / "dora_params", tmp_path / "elsewhere")
    ledger = (tmp_path / "own" / "steps.jsonl").read_bytes()
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "own")
    assert outcome.code == 2, outcome.output
    assert "is not empty: it holds a run" in outcome.output
    assert (tmp_path / "own" / "steps.jsonl").read_bytes() == ledger
