"""A sweep on this machine: controls, shared beginnings, a kill in its middle, failures, the table."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

import fresh_process
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.sweep.columns import COLUMNS, EFFECT_COLUMNS, read_table, to_csv
from clip_hba_behavior.sweep.effects import effects_of
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


def test_effects_are_written_beside_their_null_and_each_column_with_its_rule(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, kinds=["random_target"], null_seeds=2, reseeds=1, band_epochs=1)
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    directory = tmp_path / "sweep"
    assert f"\n{directory / 'sweep_effects.csv'}\n" in outcome.output
    assert "with 2 null runs no p-value is below 0.3333; null_seeds: 19 is the least for 0.05" in outcome.output
    rows = read_table(directory / "sweep.csv")
    effects = [dict(zip(EFFECT_COLUMNS, row, strict=True)) for row in read_csv(directory / "sweep_effects.csv")]
    # two starts and lengths, two measures; perturbed, the longer one's end, and the last epoch where it is another
    assert [(each["run"], each["when"]) for each in effects if each["measure"] == "test_loss"] == [
        ("e002_random_target_l1_s0", "perturbed"),
        ("e002_random_target_l1_s0", "last"),
        ("e002_random_target_l2_s0", "perturbed"),
        ("e002_random_target_l2_s0", "window_end"),
        ("e002_random_target_l2_s0", "last"),
        ("e003_random_target_l1_s0", "perturbed"),
        ("e003_random_target_l1_s0", "last"),
        ("e003_random_target_l2_s0", "perturbed"),
        ("e003_random_target_l2_s0", "window_end"),
    ]
    assert {(each["matched_null_runs"], each["wider_null_runs"]) for each in effects} == {("2", "1")}
    assert [effect["effect"] for effect in effects] == [
        repr(row[f"{effect['measure']}_minus_baseline"])
        for effect in effects
        for row in rows
        if (row["run"], row["epoch"]) == (effect["run"], int(effect["epoch"]))
    ]
    assert [each.value for each in effects_of(rows).effects] == [float(each["effect"]) for each in effects]
    assert to_csv(COLUMNS, rows) == (directory / "sweep.csv").read_bytes()

    note = json.loads((directory / "sweep_columns.json").read_text())
    assert list(note["columns"]) == list(rows[0])
    assert list(note["columns_of_sweep_effects.csv"]) == list(EFFECT_COLUMNS)
    assert (note["band"], note["band_epochs"]) == (0.02, 1)
    assert all(rule.endswith(".") for rule in note["columns"].values())
    for row in rows:
        recovery = [row[name] for name in ("recovery_epochs", "followed_epochs", "censored", "left_band")]
        if row["kind"] in ("none", "reseed"):
            assert recovery == [None] * 4
        else:
            assert row["followed_epochs"] == 4 - (row["perturb_epoch"] + row["perturb_length"] - 1)
            assert row["censored"] is (row["recovery_epochs"] is None)

    without = write_sweep(tmp_path, baseline, kinds=["random_target"], reseeds=0)
    outcome = clip_hba("sweep", "table", without)
    assert outcome.code == 0, outcome.output
    assert "effects have no null to be judged against: add null_seeds: 19 to the sweep's file" in outcome.output
    assert not (directory / "sweep_effects.csv").exists()  # it was of another file's runs


def read_csv(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


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


@pytest.mark.system
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
