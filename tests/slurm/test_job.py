"""One run as a job of a real SLURM: preempted in the middle, it comes back and ends in the same bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fresh_process import Outcome
from run_tools import trained, write_config
from slurm.test_sweep import wait_for

ClipHba = Callable[..., Outcome]
SMALL = {"epochs": 30, "batch_size": 2, "checkpoint_every_steps": 20}


@pytest.mark.timeout(1200)
def test_a_preempted_job_comes_back_and_ends_in_the_same_bytes(
    slurm: Any, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    complete = trained(clip_hba, tmp_path, small_config | SMALL, "complete")
    run, log = tmp_path / "job", tmp_path / "job.slurm.log"
    config = write_config(tmp_path / "job.yaml", small_config | SMALL)
    resources = ("--partition", "low", "--time", "00:10:00")
    arguments = ("slurm", config, "--run-dir", run, *resources)
    printed = clip_hba(*arguments)
    assert printed.output.startswith("#!/bin/bash\n#SBATCH --job-name=job\n")
    outcome = clip_hba(*arguments, "--submit")
    assert outcome.code == 0, outcome.output
    job = outcome.output.split("job ")[1].split(":")[0]
    assert (tmp_path / "job.slurm.sh").read_text() == printed.output

    ledger = run / "steps.jsonl"
    wait_for(lambda: ledger.exists() and ledger.read_bytes().count(b"\n") > 30, "no step was done", 300)
    high = slurm.submit("#!/bin/bash\nsleep 5\n", "--partition=high", "--cpus-per-task=4", "--output=/dev/null")
    wait_for(lambda: log.exists() and "stopped by SIGUSR2" in log.read_text(), "it was not preempted", 300)
    slurm.wait(high)
    assert set(slurm.wait(job, timeout=600).values()) == {"COMPLETED"}, log.read_text()
    assert "it is in SLURM's queue again, and goes on by itself" in log.read_text()
    for name in ("steps.jsonl", "training_res.csv"):
        assert (run / name).read_bytes() == (complete / name).read_bytes()
