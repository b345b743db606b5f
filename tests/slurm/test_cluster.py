"""What SLURM itself does to a job; README.md draws the conclusions for our engine."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slurm import recorder
from slurm.cluster import Cluster

SURVIVES = ("--signal=B:USR2@60", "--requeue", "--open-mode=append")


@dataclass(frozen=True)
class Recording:
    """A job that writes down what happens to it."""

    job: str
    folder: Path

    def events(self, task: int | None = None) -> list[dict[str, Any]]:
        path = self.folder / ("record.jsonl" if task is None else f"record{task}.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def signals(self) -> list[str]:
        """The signals that it got, less the CONT that SLURM sends along with each."""
        return [each["signal"] for each in self.events() if each["event"] == "signal" and each["signal"] != "CONT"]

    def starts(self) -> list[str | None]:
        """SLURM_RESTART_COUNT at each start."""
        return [each["restart"] for each in self.events() if each["event"] == "start"]


@pytest.fixture
def submit(slurm: Cluster, tmp_path: Path) -> Callable[..., Recording]:
    """Submit a recorder that works for some seconds and acts on signals, such as `USR2=requeue:0`."""

    def submit(*options: str, seconds: float, actions: str = "", before: str = 'trap "" USR2') -> Recording:
        folder = tmp_path / f"job{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        program = shlex.join([sys.executable, "-I", recorder.__file__])
        record = shlex.quote(f"{folder}/record") + "${SLURM_ARRAY_TASK_ID-}.jsonl"
        script = f"#!/bin/bash\n{before}\nexec {program} {record} {seconds} {actions}\n"
        return Recording(slurm.submit(script, f"--output={folder}/%A_%a.out", *SURVIVES, *options), folder)

    return submit


def wait_for_start(slurm: Cluster, recording: Recording) -> None:
    """Until Python has its handlers."""
    slurm.wait(recording.job, "RUNNING")
    slurm.wait_for(lambda: bool(recording.events()), f"job {recording.job} has started no Python")


def test_array_of_three_jobs_runs_to_its_end(slurm: Cluster, submit: Callable[..., Recording]) -> None:
    array = submit("--array=0-2%2", seconds=1)
    assert slurm.wait(array.job) == {f"{array.job}_{task}": "COMPLETED" for task in range(3)}
    for task in range(3):
        start, end = array.events(task)
        assert start["slurm"]["SLURM_ARRAY_TASK_ID"] == str(task)
        assert start["slurm"]["SLURM_ARRAY_JOB_ID"] == array.job
        assert (start["restart"], end["event"]) == (None, "end")


def test_preempted_job_gets_its_signal_requeues_itself_and_runs_again(
    slurm: Cluster, submit: Callable[..., Recording]
) -> None:
    low = submit("--partition=low", "--cpus-per-task=4", seconds=60, actions="USR2=requeue:0")
    wait_for_start(slurm, low)
    high = submit("--partition=high", "--cpus-per-task=4", seconds=1)
    slurm.wait(high.job, "COMPLETED")
    slurm.wait(low.job, "COMPLETED")
    assert low.signals() == ["USR2"]
    assert low.starts() == [None, "1"]
    assert [each["event"] for each in low.events()][-1] == "end"


def test_preempted_array_tasks_requeue_themselves_alone(slurm: Cluster, submit: Callable[..., Recording]) -> None:
    low = submit("--partition=low", "--cpus-per-task=2", "--array=3,7", seconds=60, actions="USR2=requeue:0")
    slurm.wait(low.job, "RUNNING")
    slurm.wait_for(lambda: bool(low.events(3) and low.events(7)), "no Python has started")
    high = submit("--partition=high", "--cpus-per-task=4", seconds=1)
    slurm.wait(high.job, "COMPLETED")
    assert slurm.wait(low.job) == {f"{low.job}_{task}": "COMPLETED" for task in (3, 7)}
    for task in (3, 7):
        assert [each["restart"] for each in low.events(task) if each["event"] == "start"] == [None, "1"]


def test_preempted_job_without_grace_is_killed_and_requeued_by_slurm(
    slurm: Cluster, submit: Callable[..., Recording]
) -> None:
    low = submit("--partition=low_without_grace", "--cpus-per-task=4", seconds=60)
    wait_for_start(slurm, low)
    high = submit("--partition=high", "--cpus-per-task=4", seconds=1)
    slurm.wait(high.job, "COMPLETED")
    slurm.wait(low.job, "COMPLETED")
    assert sorted(low.signals()) == ["TERM", "USR2"]  # within some milliseconds, so in either order
    assert low.starts() == [None, "1"]


def test_time_limit_sends_the_signal_before_the_end(slurm: Cluster, submit: Callable[..., Recording]) -> None:
    job = submit("--time=1", "--signal=B:USR2@30", seconds=300, actions="USR2=requeue:0")
    slurm.wait(job.job, "COMPLETED", timeout=120)
    signal = next(each for each in job.events() if each["event"] == "signal" and each["signal"] == "USR2")
    # At 30 s it is due; the controller looks every 30 s, and sends what would be due until it looks again.
    assert signal["after"] < 32
    assert job.signals() == ["USR2"]
    assert job.starts() == [None, "1"]


def test_cancelled_job_gets_term_and_stays_cancelled(slurm: Cluster, submit: Callable[..., Recording]) -> None:
    job = submit(seconds=60, actions="TERM=exit:0")
    wait_for_start(slurm, job)
    slurm.command("scancel", job.job)
    slurm.wait(job.job, "CANCELLED")
    assert job.signals() == ["TERM"]
    assert job.starts() == [None]


def test_cancelled_job_that_requeues_itself_runs_again(slurm: Cluster, submit: Callable[..., Recording]) -> None:
    job = submit(seconds=60, actions="TERM=requeue:0")
    wait_for_start(slurm, job)
    slurm.command("scancel", job.job)
    slurm.wait(job.job, "COMPLETED")
    assert job.signals() == ["TERM"]
    assert job.starts() == [None, "1"]


def test_job_requeued_from_outside_gets_term_and_runs_again(
    slurm: Cluster, submit: Callable[..., Recording]
) -> None:
    job = submit(seconds=60, actions="TERM=exit:0")
    wait_for_start(slurm, job)
    slurm.command("scontrol", "requeue", job.job)
    slurm.wait(job.job, "COMPLETED")
    assert job.signals() == ["TERM"]
    assert job.starts() == [None, "1"]


@pytest.mark.parametrize(("before", "state"), [("", "FAILED"), ('trap "" USR2', "COMPLETED")])
def test_signal_before_python_has_a_handler_fails_the_job_unless_bash_ignores_it(
    slurm: Cluster, before: str, state: str, tmp_path: Path
) -> None:
    script = f"#!/bin/bash\n{before}\ntouch started\nexec {sys.executable} -c 'import time; time.sleep(5)'\n"
    job = slurm.submit(script, f"--chdir={tmp_path}", "--output=output.txt", *SURVIVES)
    slurm.wait_for((tmp_path / "started").exists, "the job has not started")
    slurm.command("scancel", "--batch", "--signal=USR2", job)
    slurm.wait(job, state)
