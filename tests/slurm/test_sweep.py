"""A sweep on a real SLURM: preempted, cancelled and resumed, it gives the local engine's bytes."""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fresh_process
from fresh_process import Outcome
from run_tools import trained

ClipHba = Callable[..., Outcome]
SMALL = {"epochs": 6, "batch_size": 2, "checkpoint_every_steps": 20}


def write_sweep(tmp_path: Path, baseline: Path, name: str, **slurm: Any) -> Path:
    given = {
        "baseline": str(baseline),
        "directory": str(tmp_path / name),
        "epochs": [2, 3, 4],
        "kinds": ["random_target", "label_shuffle", "image_noise", "uniform_images"],
        "lengths": [1, 2],
        "processes": 2,
        "slurm": {"partition": "low", "time": "00:10:00", "throttle": 2, "signal_seconds": 60} | slurm,
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(given))
    return path


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 900) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.2)


def logs(directory: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(directory.glob("slurm/*/task_*.log")))


@pytest.mark.timeout(1800)
def test_a_preempted_and_cancelled_sweep_ends_in_the_local_engines_bytes(
    slurm: Any, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    baseline = trained(clip_hba, tmp_path, small_config | SMALL, "baseline")
    sweep, directory = write_sweep(tmp_path, baseline, "cluster"), tmp_path / "cluster"
    outcome = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    assert "2 tasks, 15 chains, 27 runs" in outcome.output  # as many as `throttle` lets run at once
    job = outcome.output.split("job ")[1].split(":")[0]
    again = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert again.code == 2
    assert "still waiting or running" in again.output

    watched = tmp_path / "watched.txt"
    watch = fresh_process.start(fresh_process.clip_hba, ["sweep", "status", str(sweep), "--watch"], output=watched)

    # a job of the higher partition takes every processor: the running tasks save and requeue themselves
    wait_for(lambda: any(directory.glob("runs/*/steps.jsonl")), "no run began")
    high = slurm.submit("#!/bin/bash\nsleep 5\n", "--partition=high", "--cpus-per-task=4", "--output=/dev/null")
    wait_for(lambda: "stopped by SIGUSR2" in logs(directory), "nobody was preempted")
    slurm.wait(high)
    wait_for(lambda: len(list(directory.glob("runs/*/best.json"))) >= 6, "the sweep did not continue")

    outcome = clip_hba("sweep", "cancel", sweep)
    assert outcome.code == 0, outcome.output
    assert "cancelled" in outcome.output
    wait_for(
        lambda: not any(each in ("RUNNING", "COMPLETING", "PENDING") for each in slurm.states(job).values()),
        "busy",
    )
    watch.join(60)  # nothing works on it any more
    told = watched.read_text()
    assert watch.exitcode == 1, told
    assert "epochs (runs: 0 done, " in told.splitlines()[0] + told.splitlines()[1]
    assert re.search(r"^jobs \(\d running, \d waiting\): 0 of 2$", told, flags=re.MULTILINE), told
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1, outcome.output
    assert "there is no accounting here (sacct was refused by SLURM: " in outcome.output
    assert f"{directory}/slurm/1/task_0.log" in outcome.output
    outcome = clip_hba("sweep", "resume", sweep, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    slurm.wait(outcome.output.split("job ")[1].split(":")[0], timeout=900)

    outcome = clip_hba("sweep", "table", sweep)
    assert outcome.code == 0, outcome.output + logs(directory)
    assert "27 of 27 runs are done" in outcome.output
    assert "controls equal to the baseline byte for byte: 3 of 3" in outcome.output
    options = ("sweep", "verify", sweep, "--sample", 3)
    outcome = clip_hba(*options, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    slurm.wait(outcome.output.split("job ")[1].split(":")[0], timeout=300)
    outcome = clip_hba(*options, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    for line in clip_hba(*options).output.splitlines():
        assert line in outcome.output or line.startswith("replaying epoch")

    local = write_sweep(tmp_path, baseline, "local")
    outcome = clip_hba("sweep", "run", local)
    assert outcome.code == 0, outcome.output
    for name in ("sweep.csv", "sweep.parquet"):
        assert (directory / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


@pytest.mark.timeout(1800)
def test_a_chain_that_outlasts_the_time_limit_requeues_itself_until_it_is_done(
    slurm: Any, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    baseline = trained(clip_hba, tmp_path, small_config | SMALL, "baseline", epochs=40)
    sweep, directory = write_sweep(tmp_path, baseline, "limited", time="00:02:00"), tmp_path / "limited"
    # one chain of a dozen runs, more than the two minutes of one job
    keys = {"epochs": [2], "kinds": ["label_shuffle"], "lengths": list(range(1, 13)), "controls": False}
    sweep.write_text(yaml.safe_dump(yaml.safe_load(sweep.read_text()) | keys))
    outcome = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    job = outcome.output.split("job ")[1].split(":")[0]
    states = slurm.wait(job, timeout=1200)
    assert set(states.values()) == {"COMPLETED"}, logs(directory)
    assert "stopped by SIGUSR2" in logs(directory)  # the limit's signal, up to 90 s before its end
    assert clip_hba("sweep", "status", sweep).code == 0
    outcome = clip_hba("sweep", "verify", sweep, "--sample", 3)
    assert outcome.code == 0, outcome.output
