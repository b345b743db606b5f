"""What a sweep's commands do where SLURM does not answer, and how much it is asked for at once."""

import json
import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep import cluster, commands, sample, sample_tasks, slurm, watch
from clip_hba_behavior.sweep.cluster import Task, accounts_of, array_option, run_command
from clip_hba_behavior.sweep.plan import SlurmSettings
from clip_hba_behavior.sweep.sample import Sample
from clip_hba_behavior.sweep.sweep import Sweep, read_sweep
from sweep_tools import write_sweep


def no_answer(*_: Any, **__: Any) -> Any:
    raise BadInputError("squeue: no answer")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of a sweep of one run."""
    run = tmp_path / "baseline"
    (run / "dora_params").mkdir(parents=True)
    (run / "config.yaml").write_text("epochs: 1\nnum_threads: 1\n")
    for epoch in range(2):
        (run / f"dora_params/epoch{epoch}_dora_params.pth").touch()
    return write_sweep(tmp_path, run, kinds=[], epochs=[1], slurm={"throttle": 2})


@pytest.fixture
def planned(file: Path) -> Sweep:
    """The same sweep."""
    return read_sweep(file)


def test_status_says_what_slurm_cannot_be_asked_and_how_far_the_runs_are(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "busy_tasks", no_answer)
    assert commands.status(file) == 1
    output = capsys.readouterr().out
    assert "which jobs wait or run cannot be told: squeue: no answer\n" in output
    assert output.splitlines()[-1] == "1 missing"


def test_cancel_tells_what_it_did_here_before_slurm_refuses(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(slurm, "busy_tasks", no_answer)
    with pytest.raises(BadInputError, match="squeue: no answer"):
        commands.cancel(file)
    assert capsys.readouterr().out == "no process of this machine executes the sweep\n"


def test_watching_goes_on_where_slurm_does_not_answer_once(
    planned: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[Callable[[], list[Task]]] = [lambda: [Task("7", 0, "RUNNING")], no_answer, lambda: []]
    monkeypatch.setattr(watch, "busy_tasks", lambda _: answers.pop(0)())
    for name in ("_SECONDS_BETWEEN_QUESTIONS", "_SECONDS_BETWEEN_SIGNALS"):
        monkeypatch.setattr(watch, name, 0.0)
    with caplog.at_level(logging.WARNING):
        watch.watch(planned, Session(logging.getLogger("watched")))
    assert not answers
    assert "squeue: no answer; the jobs are as they were, and asked for again" in caplog.text


def test_a_command_that_hangs_is_an_answer_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hang(command: list[str], timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(BadInputError, match="squeue: SLURM gave no answer for 120 s"):
        run_command(["squeue"])
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not cluster._requeue()
    assert "scontrol requeue 7: " in capsys.readouterr().err


def test_accounts_are_asked_for_by_job_not_by_task(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(cluster, "run_command", lambda command: asked.append(list(command)) or "")
    assert accounts_of([f"{job}_{index}" for job in (7, 8) for index in range(9)]) == {}
    assert asked[0][-1] == "--jobs=7,8"


def test_what_is_submitted_again_is_throttled_too() -> None:
    assert array_option(SlurmSettings.model_validate({"throttle": 2}), "3,5") == "--array=3,5%2"
    assert array_option(SlurmSettings.model_validate({}), "3,5") == "--array=3,5"


def test_a_large_sample_is_one_array_that_slurm_takes(planned: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "run_command", lambda command: "7\n")
    baseline = str(planned.plans[0].baseline)
    samples = [Sample(f"run{number}", "nowhere", 1, 1, baseline, "") for number in range(2500)]
    sample_tasks.submit_or_collect(planned, samples, "again")
    folder = planned.directory / "slurm/1"
    tasks = json.loads((folder / "samples.json").read_text())["tasks"]
    assert [number for task in tasks for number in task] == list(range(2500))
    assert f"--array=0-{len(tasks) - 1}%2\n" in (folder / "job.sh").read_text()
    assert len(tasks) == 834


@pytest.mark.parametrize("name", ["steps.jsonl", "training_res.csv", "dora_params/epoch0_dora_params.pth"])
def test_a_sample_is_not_current_once_a_file_that_it_is_compared_with_has_changed(
    name: str, planned: Sweep
) -> None:
    run = RunDirectory(planned.plans[0].baseline)
    (run.path / "steps.jsonl").touch()
    (run.path / "training_res.csv").touch()
    chosen = Sample("run", str(run.path), 1, 1, str(run.path), sample._marks(run, 1))
    assert chosen.is_current()
    (run.path / name).write_text("another")
    assert not chosen.is_current()


def test_what_killed_processes_left_is_removed_of_every_baseline(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    for each in (tmp_path / "baseline").iterdir():
        (second / each.name).symlink_to(each)
    text = file.read_text().replace(
        f"baseline: {tmp_path}/baseline\n", f"baseline: [{tmp_path}/baseline, {second}]\n"
    )
    file.write_text(text)
    left = [tmp_path / f"sweep/{folder}/second/.e001.x.tmp" for folder in ("finished", "failed")]
    for each in left:
        each.parent.mkdir(parents=True)
        each.touch()
    monkeypatch.setattr(commands, "run_locally", lambda *_: None)
    monkeypatch.setattr(commands, "_write_table", lambda _: 0)
    assert commands.run(file, "local") == 0
    assert not any(each.exists() for each in left)
