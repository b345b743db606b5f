"""`sweep verify --engine slurm`, where no cluster is: submitted, verified by tasks, collected by a second call."""

import json
import re
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import fresh_process
from fresh_process import Outcome
from sweep_tools import write_sweep
from verification import sabotage

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


@pytest.fixture
def done(baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path) -> Path:
    """A sweep of four runs, all done by a task."""
    keys = {"kinds": ["random_target"], "lengths": [1], "slurm": {"chains_per_task": 2}}
    sweep = write_sweep(tmp_path, baseline, **keys)
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    for index in (0, 1):
        assert clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", index).code == 0
    return sweep


def test_what_tasks_find_is_what_this_machine_finds(
    done: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    options = ("sweep", "verify", done, "--sample", 3, "--engine", "slurm")
    outcome = clip_hba(*options)
    folder = tmp_path / "sweep/slurm/2"
    assert outcome.code == 0, outcome.output
    assert f"job 7: 2 tasks, 3 epochs to verify; logs in {folder}\n" in outcome.output
    again = f"clip-hba sweep verify {tmp_path / 'sweep/sweep.yaml'} --sample 3 --seed 0 --engine slurm"
    assert f"see what they find: {again}\n" in outcome.output

    assert clip_hba("sweep", "task", folder, "--index", 0).code == 0
    (requeued.parent / "commands/squeue").write_text('#!/bin/sh\necho "7 1 RUNNING"\n')
    outcome = clip_hba(*options)
    assert outcome.code == 1, outcome.output
    assert outcome.output.count("reproducible: 1 of 1 epochs repeat to the last bit") == 2
    assert "1 of 3 sampled epochs are not verified yet\njobs that wait or run: 1; see " in outcome.output

    (requeued.parent / "commands/squeue").write_text("#!/bin/sh\n")
    (requeued.parent / "commands/sbatch").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/sbatch.txt; echo 8\n')
    outcome = clip_hba(*options)
    assert outcome.code == 1, outcome.output
    assert f"no job works on them: submitted again as job 8; logs in {folder}" in outcome.output
    assert (tmp_path / "sbatch.txt").read_text() == f"--parsable --array=1 {folder}/job.sh\n"
    assert (folder / "job_id").read_text() == "7\n8\n"

    assert clip_hba("sweep", "task", folder, "--index", 1).code == 0
    outcome = clip_hba(*options)
    assert outcome.code == 0, outcome.output
    here = clip_hba("sweep", "verify", done, "--sample", 3)
    assert here.code == 0, here.output
    others = "to verify others, give another --seed; to verify these again, remove it"
    said = re.sub(
        r"^replaying epoch.*\n", "", here.output, flags=re.MULTILINE
    )  # how far it is, where that takes long
    assert said + f"as {folder} has it; {others}\n" == outcome.output
    assert "3 of 3 sampled epochs are reproducible\n" in here.output


def test_an_epoch_that_differs_is_found_and_one_that_cannot_be_verified_is_named(
    done: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    options = ("sweep", "verify", done, "--sample", 4, "--engine", "slurm")
    assert clip_hba(*options).code == 0
    samples = json.loads((tmp_path / "sweep/slurm/2/samples.json").read_text())["samples"]
    for each, lost in zip(samples[:2], (False, True), strict=True):
        run = Path(each["path"])
        if lost:
            sabotage.edit_config(run, img_dir=str(tmp_path / "nowhere"))
        else:
            sabotage.forge(run, each["epoch"], partial(sabotage.with_one_bit_flipped, bit=22))
    outcome = clip_hba(*options)  # a file changed: what was submitted for the other one is not taken for it
    assert outcome.code == 0, outcome.output
    folder = tmp_path / "sweep/slurm/3"
    assert f"logs in {folder}" in outcome.output
    codes = [clip_hba("sweep", "task", folder, "--index", index).code for index in (0, 1)]
    assert codes == [1, 0]
    outcome = clip_hba(*options)
    assert outcome.code == 1, outcome.output
    assert f"{samples[0]['run']}: not reproducible: of 1 epoch 1 not reproducible; first: epoch " in outcome.output
    assert "FAILED: Training results are not reproducible." in outcome.output
    assert (
        f"{samples[1]['run']}: could not be verified\n  the run's data are not where they were\n" in outcome.output
    )
    assert "1 of 4 sampled epochs are not verified yet\n" in outcome.output


def test_a_task_that_is_preempted_comes_back_for_what_is_left(
    done: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    assert clip_hba("sweep", "verify", done, "--sample", 2, "--engine", "slurm").code == 0
    folder = tmp_path / "sweep/slurm/2"
    arguments = ["sweep", "task", str(folder), "--index", "0"]
    first = json.loads((folder / "samples.json").read_text())["samples"][0]["run"]
    outcome = fresh_process.call(
        signal_after_the_first, arguments, first, signal.SIGUSR2, output=tmp_path / "task.txt"
    )
    assert outcome.code == 75, outcome.output
    assert requeued.read_text() == "requeue 7_0\n"
    assert [path.name for path in folder.glob("verified_*")] == ["verified_0.json"]
    before = (folder / "verified_0.json").stat().st_mtime_ns
    outcome = clip_hba(*arguments)
    assert outcome.code == 0, outcome.output
    assert first not in outcome.output
    assert (folder / "verified_0.json").stat().st_mtime_ns == before
    assert (folder / "verified_1.json").exists()


def signal_after_the_first(arguments: list[str], run: str, number: int) -> None:
    """Run a `clip-hba` command line as this process, which gets a signal once it has verified a run."""
    import os

    from clip_hba_behavior.sweep import sample_tasks

    verify = sample_tasks.verify

    def verify_with_signal(sample: sample_tasks.Sample, *others: object) -> object:
        found = verify(sample, *others)  # type: ignore[arg-type]
        if sample.run == run:
            os.kill(os.getpid(), number)
        return found

    sample_tasks.verify = verify_with_signal  # type: ignore[assignment]
    fresh_process.clip_hba(arguments)
