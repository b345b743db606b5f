"""A sweep on this machine: controls, shared beginnings, a kill in its middle, failures, the table."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import yaml

import fresh_process
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.sweep.plan import make_plan, make_sweep_file
from fresh_process import Outcome
from sweep_tools import table, write_sweep

ClipHba = Callable[..., Outcome]


def test_a_sweep_runs_once_and_its_controls_are_the_baseline(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline)
    outcome = clip_hba("sweep", "plan", sweep)
    assert outcome.code == 0, outcome.output
    assert "10 runs, 21 epochs to train; 25 if each began at the baseline" in outcome.output
    assert "continues e002_random_target_l1_s0" in outcome.output
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1
    assert "10 missing" in outcome.output

    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    assert "10 of 10 runs are done" in outcome.output
    assert "controls equal to the baseline byte for byte: 2 of 2" in outcome.output
    directory = tmp_path / "sweep"
    rows = table(directory)
    for row in rows:
        if row["kind"] == "none":
            digest = read_checkpoint(checkpoint_path(baseline / "dora_params", int(row["epoch"]))).state_digest
            assert row["state_digest"] == digest
            assert row["equals_baseline"] == "True"
            assert float(row["test_loss_minus_baseline"]) == 0.0
        elif row["epoch"] == row["perturb_epoch"]:
            assert row["perturbed"] == "True"
            assert row["equals_baseline"] == "False"
    assert {row["epoch"] for row in rows if row["run"] == "e002_random_target_l2_s0"} == {"2", "3", "4"}
    parquet = pyarrow.parquet.read_table(directory / "sweep.parquet")
    assert parquet.num_rows == len(rows)
    assert parquet.column("test_loss").to_pylist() == [float(row["test_loss"]) for row in rows]
    assert b"not: use it to rank" in parquet.schema.metadata[b"caveat"]

    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    outcome = clip_hba("sweep", "run", sweep)  # nothing is missing: nothing changes
    assert outcome.code == 0, outcome.output
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    outcome = clip_hba("sweep", "verify", sweep, "--sample", 2)
    assert outcome.code == 0, outcome.output
    assert "2 of 2 sampled epochs are reproducible" in outcome.output


def test_a_run_that_continues_a_shorter_one_is_the_run_from_the_baseline(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[2], kinds=["random_target"], controls=False)
    assert clip_hba("sweep", "run", sweep).code == 0
    shared = tmp_path / "sweep/runs/e002_random_target_l2_s0"
    assert list(list_checkpoints(shared / "dora_params")) == [2, 3, 4]
    options = ["--at-epoch", 2, "--perturb", "random_target", "--perturb-length", 2, "--perturb-seed", 0]
    outcome = clip_hba("fork", baseline, *options, "--run-dir", tmp_path / "alone")
    assert outcome.code == 0, outcome.output
    for epoch in (3, 4):
        states = [
            read_checkpoint(checkpoint_path(run / "dora_params", epoch)) for run in (shared, tmp_path / "alone")
        ]
        assert states[0].state_digest == states[1].state_digest


def test_a_sweep_that_is_killed_and_resumed_gives_the_same_table(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    uninterrupted = write_sweep(tmp_path, baseline, "uninterrupted")
    assert clip_hba("sweep", "run", uninterrupted).code == 0
    sweep = write_sweep(tmp_path, baseline, "killed")
    for number, kill in ((2, signal.SIGKILL), (5, signal.SIGTERM)):
        process = fresh_process.start(
            fresh_process.clip_hba, ["sweep", "run", str(sweep)], output=tmp_path / f"killed{number}.txt"
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.is_alive():
            if len(list((tmp_path / "killed/runs").glob("*/best.json"))) >= number:
                break
            time.sleep(0.02)
        os.kill(process.pid, kill)
        process.join(60)
        if kill == signal.SIGTERM:
            assert process.exitcode == 75, (tmp_path / f"killed{number}.txt").read_text()
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    for name in ("sweep.csv", "sweep.parquet"):
        assert (tmp_path / "uninterrupted" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_failed_run_does_not_stop_the_others_and_its_error_is_shown(
    own_baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    broken = checkpoint_path(own_baseline / "dora_params", 2)
    broken.write_bytes(broken.read_bytes()[:1000])
    sweep = write_sweep(tmp_path, own_baseline, lengths=[1])
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 1, outcome.output
    assert "3 of 6 runs are done" in outcome.output
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1
    assert "e003_none: failed" in outcome.output
    assert "epoch2_dora_params.pth" in outcome.output
    assert "3 done, 3 failed" in outcome.output


def test_a_finished_run_is_known_by_its_digests_not_by_its_name(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[3], kinds=["uniform_images"], lengths=[1], controls=True)
    assert clip_hba("sweep", "run", sweep).code == 0
    runs = tmp_path / "sweep/runs"
    (runs / "e003_none").rename(tmp_path / "away")
    (runs / "e003_uniform_images_l1_s0").rename(runs / "e003_none")
    (tmp_path / "away").rename(runs / "e003_uniform_images_l1_s0")
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 2
    assert "holds another fork than the sweep's" in outcome.output


def test_the_plan_counts_what_make_plan_says(baseline: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, baseline)
    plan = make_plan(make_sweep_file(yaml.safe_load(sweep.read_text())))
    assert len(plan.runs()) == 10
