"""Tasks of a job array, where no cluster is: what they read, and the limits of time that are understood."""

import json
import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep import cluster, slurm
from clip_hba_behavior.sweep.plan import SlurmSettings, make_sweep_file, seconds_of
from clip_hba_behavior.sweep.sweep import read_sweep
from fresh_process import Outcome
from sweep_tools import clip_hba_with_signal, epochs_on_disk, table, write_sweep

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]
CHAIN = {"epochs": [2], "kinds": ["random_target"], "controls": False}


def test_a_task_that_waits_does_not_see_an_edit_of_the_sweeps_file(
    own_baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, own_baseline, settings={"weight_decay": 0.02}, **CHAIN)
    outcome = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    assert "job 7: 1 task, 1 chain, 2 runs; logs in " in outcome.output
    write_sweep(tmp_path, own_baseline, settings={"weight_decay": 0.03}, **CHAIN | {"lengths": [3]})
    assert clip_hba("resume", own_baseline, "--set", "epochs=5").code == 0
    outcome = clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", 0)
    assert outcome.code == 0, outcome.output
    assert epochs_on_disk(tmp_path / "sweep") == {
        "e002_random_target_l1_s0": [1, 2, 3, 4],
        "e002_random_target_l2_s0": [2, 3, 4],
    }
    for run in (tmp_path / "sweep/runs").iterdir():
        assert RunDirectory(run).read_config().weight_decay == 0.02


def test_a_task_that_was_killed_keeps_what_the_longer_run_begins_with(
    baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, settings={"keep_checkpoints": "last 1"}, **CHAIN)
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    arguments = ["sweep", "task", str(tmp_path / "sweep/slurm/1"), "--index", "0"]
    outcome = fresh_process.call(
        clip_hba_with_signal, arguments, "Epoch 2/4", signal.SIGKILL, output=tmp_path / "killed.txt"
    )
    assert outcome.code == -signal.SIGKILL
    shorter = RunDirectory(tmp_path / "sweep/runs/e002_random_target_l1_s0")
    shorter.forks_file.unlink(missing_ok=True)  # as if it had been killed before its first epoch's end
    outcome = clip_hba(*arguments)
    assert outcome.code == 0, outcome.output
    assert 2 in epochs_on_disk(tmp_path / "sweep")["e002_random_target_l1_s0"]


THREE_CHAINS: dict[str, Any] = {"epochs": [3], "kinds": ["random_target", "uniform_images"], "lengths": [1]}


def test_a_task_takes_many_chains_and_a_run_that_fails_ends_its_own_alone(
    own_baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, own_baseline, **THREE_CHAINS, slurm={"time": "02:00:00"})
    sized = "a task takes up to 3 chains, about 0 s of its 02:00:00 by the baseline's seconds per epoch"
    outcome = clip_hba("sweep", "plan", sweep)
    assert (
        re.sub(r"about \d+ (s|min)", "about 0 s", outcome.output)
        .splitlines()[-1]
        .startswith(f"on SLURM: 1 task; {sized}")
    )
    outcome = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert "job 7: 1 task, 3 chains, 3 runs; logs in " in outcome.output
    assert sized in re.sub(r"about \d+ (s|min)", "about 0 s", outcome.output)
    assert "--array=0-0\n" in (tmp_path / "sweep/slurm/1/job.sh").read_text()
    (tmp_path / "sweep/runs").mkdir()
    (tmp_path / "sweep/runs/e003_random_target_l1_s0").write_text("in the way")
    outcome = clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", 0)
    assert outcome.code == 1, outcome.output
    assert "e003_none: done\n" in outcome.output
    assert "e003_random_target_l1_s0: failed\n" in outcome.output
    assert "e003_uniform_images_l1_s0: done\n" in outcome.output


def test_a_preempted_task_goes_on_with_what_is_left_and_what_is_done_counts_at_once(
    baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, **THREE_CHAINS)
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    arguments = ["sweep", "task", str(tmp_path / "sweep/slurm/1"), "--index", "0"]
    outcome = fresh_process.call(
        clip_hba_with_signal, arguments, "Epoch 4/4", signal.SIGUSR2, output=tmp_path / "task.txt"
    )
    assert outcome.code == 75, outcome.output
    assert requeued.read_text() == "requeue 7_0\n"
    assert "1 done, 2 missing" in clip_hba("sweep", "status", sweep).output
    assert "1 of 3 runs are done" in clip_hba("sweep", "table", sweep).output
    assert [row["run"] for row in table(tmp_path / "sweep")] == ["e003_none"] * 2
    log = (tmp_path / "sweep/runs/e003_none/training_log.txt").read_text()
    outcome = clip_hba(*arguments)
    assert outcome.code == 0, outcome.output
    assert outcome.output.startswith("e003_none: done\n")
    assert (tmp_path / "sweep/runs/e003_none/training_log.txt").read_text() == log
    assert "3 done" in clip_hba("sweep", "status", sweep).output


@pytest.mark.parametrize("has_plans", [True, False])
def test_tasks_that_were_submitted_before_they_took_several_chains_are_understood(
    has_plans: bool, baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, **THREE_CHAINS)
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    file = tmp_path / "sweep/slurm/1/chains.json"
    content = json.loads(file.read_text())
    content["chains"] = content.pop("tasks")[0]
    if not has_plans:  # as 0.2.0 wrote it
        (plan,) = content.pop("plans")
        content |= {key: plan[key] for key in ("baseline", "last_epoch", "arithmetic")}
        content["chains"] = [chain["runs"] for chain in content["chains"]]
    file.write_text(json.dumps(content))
    outcome = clip_hba("sweep", "task", file.parent, "--index", 2)
    assert outcome.code == 0, outcome.output
    assert list(epochs_on_disk(tmp_path / "sweep")) == ["e003_uniform_images_l1_s0"]
    outcome = clip_hba("sweep", "task", file.parent, "--index", 3)
    assert outcome.code == 2
    assert f"{file.parent} has no task 3" in outcome.output
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1, outcome.output
    assert f"{file.parent}/task_1.log\n" in outcome.output
    assert f"{file.parent}/task_2.log\n" not in outcome.output
    assert "2 missing, 1 done" in outcome.output


def test_tasks_that_0_2_0_submitted_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "baseline"
    (run / "dora_params").mkdir(parents=True)
    (run / "config.yaml").write_text("epochs: 2\nnum_threads: 1\n")
    for epoch in range(3):
        (run / f"dora_params/epoch{epoch}_dora_params.pth").touch()
    monkeypatch.setattr(cluster, "run_command", lambda command: "7\n" if command[0] == "sbatch" else "")
    sweep = read_sweep(write_sweep(tmp_path, run, epochs=[1, 2], kinds=[], slurm={"chains_per_task": 1}))
    slurm.submit(sweep)
    file = tmp_path / "sweep/slurm/1/chains.json"
    plans = [slurm._read_task(file.parent, index) for index in (0, 1)]
    content = json.loads(file.read_text())
    ((plan,), tasks) = content.pop("plans"), content.pop("tasks")
    content |= {key: plan[key] for key in ("baseline", "last_epoch", "arithmetic")}
    content["chains"] = [chain["runs"] for (chain,) in tasks]
    file.write_text(json.dumps(content))
    assert [slurm._read_task(file.parent, index) for index in (0, 1)] == plans
    told = "\n".join(slurm.describe_jobs(sweep, {"e002_none"}))
    assert (
        told == f"job 7_1 left runs undone: SLURM's accounts do not have it\n  its log: {file.parent}/task_1.log"
    )
    file.write_text("{")
    with pytest.raises(BadInputError, match=f"{file} cannot be read"):
        list(slurm.describe_jobs(sweep, {"e002_none"}))


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("01:30:15", 5415),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-12:30:15", 131415),
        ("UNLIMITED", math.inf),
        ("infinite", math.inf),
        ("0", math.inf),
    ],
)
def test_all_forms_of_a_time_limit_are_understood(limit: str, seconds: float) -> None:
    assert seconds_of(limit) == seconds
    assert SlurmSettings.model_validate({"time": limit}).time == limit


@pytest.mark.parametrize("limit", ["x-01:00", "-01:00", "1-", "", "1:2:3:4", "1-1-1", "01:00h", "²", "1.5"])
def test_a_time_limit_that_is_none_is_refused(
    limit: str, baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, slurm={"time": limit}, **CHAIN)
    outcome = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert outcome.code == 2, outcome.output
    assert f"slurm.time: found {limit!r}, expected such as 90, 90:00, 01:30:00, 1-12" in outcome.output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"time": 7200}, "put it in quotes"),
        ({"time": "00:01:30"}, "time 00:01:30 leaves no time to work"),
        ({"time": "1-00", "signal_seconds": 86400}, "expected: at least 86460 s"),
    ],
)
def test_a_time_limit_that_ends_too_soon_is_refused(slurm: dict[str, Any], message: str, baseline: Path) -> None:
    given = {"baseline": str(baseline), "directory": "sweep", "kinds": ["random_target"], "slurm": slurm}
    with pytest.raises(BadInputError, match=message):
        make_sweep_file(given)
