"""`sweep status --watch`: runs, jobs, epochs and time left, until nothing works on the sweep any more."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import fresh_process
from clip_hba_behavior.reproducibility.record.lease import hold
from clip_hba_behavior.run import log
from clip_hba_behavior.sweep import progress, watch
from fresh_process import Outcome
from sweep_tools import write_sweep

ClipHba = Callable[..., Outcome]


def watch_closely(arguments: list[str]) -> None:
    """Run a `clip-hba` command line as this process, which looks, asks and tells as often as it can."""
    log.SECONDS_BETWEEN_LINES = 0.0
    progress.SECONDS_BETWEEN_LOOKS = 0.0
    watch._SECONDS_BETWEEN_QUESTIONS = 0.2
    fresh_process.clip_hba(arguments)


def wait_for_line(path: Path, line: str) -> None:
    deadline = time.monotonic() + 120
    while not (path.exists() and line in path.read_text()):
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)


def test_a_sweep_is_watched_from_its_first_job_to_its_last(
    baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    keys = {"epochs": [3, 4], "kinds": ["label_shuffle"], "lengths": [1], "controls": False}
    sweep = write_sweep(tmp_path, baseline, **keys, slurm={"chains_per_task": 1})
    assert "2 tasks, 2 chains, 2 runs" in clip_hba("sweep", "run", sweep, "--engine", "slurm").output
    squeue = requeued.parent / "commands/squeue"

    def answer(lines: str) -> None:
        squeue.with_name("new").write_text(f"#!/bin/sh\nprintf '{lines}'\n")
        squeue.with_name("new").chmod(0o755)
        squeue.with_name("new").replace(squeue)

    answer("7 0 RUNNING\\n7 1 PENDING\\n")
    output = tmp_path / "watched.txt"
    process = fresh_process.start(watch_closely, ["sweep", "status", str(sweep), "--watch"], output=output)
    wait_for_line(output, "epochs (runs: 0 done, 0 under way, 2 left): 0 of 3\n")
    assert "jobs (1 running, 1 waiting): 0 of 2\n" in output.read_text()
    assert clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", 0).code == 0
    answer("7 1 RUNNING\\n")
    wait_for_line(output, "epochs (runs: 1 done, 0 under way, 1 left): 2 of 3 (67 %), ")
    wait_for_line(output, "jobs (1 running, 0 waiting): 1 of 2 (50 %), ")
    outcome = clip_hba("sweep", "table", sweep)  # what is done counts at once
    assert "1 of 2 runs are done" in outcome.output
    assert len((tmp_path / "sweep/sweep.csv").read_text().splitlines()) == 1 + 2
    assert clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", 1).code == 0
    answer("")
    process.join(120)
    lines = output.read_text().splitlines()
    assert process.exitcode == 0, lines
    assert lines[-1] == "2 done"
    assert any(re.fullmatch(r"epochs \(runs: 2 done, .*\): 3 of 3 \(100 %\), 0 s left", line) for line in lines)


def test_a_run_that_fails_is_named_while_the_others_go_on_and_a_signal_leaves_them_alone(
    baseline: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[3], kinds=["label_shuffle"], lengths=[1])
    failure = tmp_path / "sweep/failed/e003_none.txt"
    failure.parent.mkdir(parents=True)
    output = tmp_path / "watched.txt"
    with hold(tmp_path / "sweep"):  # as the process that executes it does
        process = fresh_process.start(watch_closely, ["sweep", "status", str(sweep), "--watch"], output=output)
        wait_for_line(output, "epochs (runs: 0 done, 0 under way, 2 left): 0 of 4\n")
        failure.write_text("no space\n")
        wait_for_line(output, f"e003_none failed: see {failure}\n")
        wait_for_line(output, "epochs (runs: 0 done, 1 failed, 0 under way, 1 left): 2 of 4 (50 %), ")
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    told = output.read_text()
    assert process.exitcode == 75, told
    assert told.count("e003_none failed") == 1
    again = f"the sweep goes on; watch it again: clip-hba sweep status {sweep} --watch\n"
    assert f"stopped by SIGTERM; there was nothing to save yet\n  {again}" in told


def test_where_nothing_works_it_says_how_far_the_sweep_is_and_ends(
    baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[3], kinds=["label_shuffle"], lengths=[1])
    outcome = clip_hba("sweep", "status", sweep, "--watch")
    assert outcome.code == 1, outcome.output
    assert outcome.output.splitlines()[0] == "epochs (runs: 0 done, 0 under way, 2 left): 0 of 4"
    assert outcome.output.splitlines()[-1] == "2 missing"
