"""What a kill leaves of a sweep, at the instants that are rarely hit: the next call puts it right, and once."""

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.reproducibility.record.lease import describe_this_process
from clip_hba_behavior.reproducibility.record.signals import StopRequest
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError, StoppedError
from clip_hba_behavior.reproducibility.state.system import locked_directory
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep import local, work
from clip_hba_behavior.sweep.plan import make_plan, read_sweep_file
from clip_hba_behavior.sweep.sweep import read_sweep
from clip_hba_behavior.verification import missing_states
from fresh_process import Outcome
from sweep_tools import write_sweep

ClipHba = Callable[..., Outcome]


def test_a_run_that_was_killed_behind_its_last_checkpoint_is_brought_to_its_end(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[3], kinds=["random_target"], lengths=[1])
    assert clip_hba("sweep", "run", sweep).code == 0
    run = tmp_path / "sweep/runs/e003_none"
    best = (run / "best.json").read_bytes()
    table = (tmp_path / "sweep/sweep.csv").read_bytes()
    # what the process had still to do, and had not: name the best, remove, give back the directory
    (tmp_path / "sweep/finished/e003_none.json").unlink()
    (run / "best.json").write_text('{"epoch": 2, "test_loss": 99.0, "checkpoint": "dora_params/x.pth"}\n')
    temporary = run / "dora_params/.epoch4_dora_params.pth.x.tmp"
    temporary.touch()
    (run / "run.lock").write_text(json.dumps(describe_this_process() | {"process": 2**22 + 1, "started": 1}))
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1
    assert "e003_none: begun at epoch 4 of 4" in outcome.output
    outcome = clip_hba("sweep", "resume", sweep)
    assert outcome.code == 0, outcome.output
    assert (run / "best.json").read_bytes() == best
    assert not temporary.exists()
    assert (run / "run.lock").read_bytes() == b""
    assert (tmp_path / "sweep/sweep.csv").read_bytes() == table


def test_what_was_not_published_is_removed_by_the_next_call(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[4], kinds=["random_target"], lengths=[1])
    left = [
        tmp_path / "sweep" / name for name in (".sweep.csv.x.tmp", "finished/.a.json.x.tmp", "failed/.a.txt.x.tmp")
    ]
    for each in left:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.touch()
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    assert [each for each in left if each.exists()] == []


def test_a_sweep_that_another_process_executes_keeps_its_file(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[4], kinds=["random_target"], lengths=[1])
    copied = tmp_path / "sweep/sweep.yaml"
    copied.parent.mkdir()
    copied.write_text("the other's\n")
    (copied.parent / "run.lock").write_text(json.dumps(describe_this_process() | {"token": "x"}))
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 2, outcome.output
    assert "is in use" in outcome.output
    assert copied.read_text() == "the other's\n"


def test_a_fork_that_begins_again_is_noted_once(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.forks_file.touch()  # by another fork that is about to write
    for epoch in (1, 1, 2, 1):
        run.note_fork(epoch, tmp_path / "fork")
    assert run.forks() == [f"1 {tmp_path / 'fork'}", f"2 {tmp_path / 'fork'}"]


def test_workers_that_are_killed_again_and_again_stop_the_sweep(
    baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = write_sweep(tmp_path, baseline)
    passes = []

    def killed(sweep: object, chains: list[object], *rest: object) -> None:
        passes.append(len(chains))
        raise local._BrokenPassError(chains[len(passes) == 2 :])  # type: ignore[arg-type]  # the second ends a chain

    monkeypatch.setattr(local, "_pass", killed)
    with pytest.raises(StoppedError) as told:
        local.run_locally(read_sweep(sweep), StopRequest(), lambda run, status: None, lambda: None)
    assert len(passes) == 5
    assert "3 times a worker was killed" in str(told.value)
    assert "is there memory for 2 at once?" in str(told.value)
    assert f"go on with: clip-hba sweep resume {tmp_path / 'sweep/sweep.yaml'}" in str(told.value)


def test_a_state_that_another_process_puts_back_is_waited_for(
    own_baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(own_baseline)
    run.write_config(run.read_config().model_copy(update={"keep_checkpoints": "best"}))
    file = checkpoint_path(run.checkpoints, 2)
    kept = Path(shutil.move(file, tmp_path / "kept"))
    left = file.parent / f".{file.name}.x.tmp"
    left.touch()  # by one that was killed
    made = []
    monkeypatch.setattr(missing_states, "make_again", lambda missing, *others: made.append(missing.epoch))
    with locked_directory(run.path, lambda: None):
        waiting = threading.Thread(target=missing_states.put_back, args=(file,))
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        os.link(kept, file)
    waiting.join(60)
    assert made == []
    assert not left.exists()
    file.unlink()
    missing_states.put_back(file)  # where nobody does, it is made
    assert made == [2]


def test_a_state_that_cannot_be_made_again_fails_its_run_with_the_message_alone(
    own_baseline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*arguments: Any) -> None:
        raise NotReproducibleError("another state was reached\n  find out why: verify")

    monkeypatch.setattr(work, "put_back", cannot)
    plan = make_plan(read_sweep_file(write_sweep(tmp_path, own_baseline, epochs=[2], lengths=[1])))
    status = work.execute(plan, plan.runs()[0])
    assert (status.state, status.detail) == ("failed", "another state was reached\n  find out why: verify")
