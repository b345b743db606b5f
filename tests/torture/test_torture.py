"""The short version of `make torture`: the tools find nothing wrong, and find what is put in on purpose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torture import sweep_checks

TESTS = Path(__file__).parent.parent


def torture(tmp_path: Path, *arguments: object) -> tuple[int, dict[str, int], str]:
    return call_tool("torture.torture", tmp_path, 240, "--no-strace", *arguments)


def call_tool(module: str, tmp_path: Path, seconds: float, *arguments: object) -> tuple[int, dict[str, int], str]:
    tally = tmp_path / "tally.json"
    command = [sys.executable, "-m", module, "--json", tally, *arguments]
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [str(each) for each in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    assert tally.exists(), done.stdout
    print(done.stdout)
    return done.returncode, json.loads(tally.read_text()), done.stdout


@pytest.mark.parametrize(
    ("kills", "variants", "runs"),
    [
        (10, ["dropout", "fork"], 2),
        pytest.param(36, ["dropout", "empty cache", "keep last 2", "fork"], 5, marks=pytest.mark.system),
    ],
)
def test_runs_that_are_killed_anywhere_end_as_the_uninterrupted_ones(
    kills: int, variants: list[str], runs: int, tmp_path: Path
) -> None:
    options = ["--kills", kills, "--seed", 1, "--workers", 1, "--variants", *variants]
    code, tally, output = torture(tmp_path, *options)
    assert code == 0, output
    assert tally["mismatches"] == 0
    assert tally["kills"] == kills
    assert tally["runs"] >= runs


@pytest.mark.parametrize(
    "defect",
    [
        "drop-the-optimizer",
        pytest.param("never-cut-the-ledger-back", marks=pytest.mark.system),
        pytest.param("write-checkpoints-in-place", marks=pytest.mark.system),
    ],
)
def test_a_defect_that_is_put_in_is_found(defect: str, tmp_path: Path) -> None:
    arguments = ["--kills", 60, "--until-found", "--seed", 1, "--workers", 1, "--variants", "dropout"]
    arguments += ["--defect", defect]
    code, tally, output = torture(tmp_path, *arguments)
    assert code == 1, output
    assert tally["mismatches"] > 0


@pytest.mark.system
def test_sweeps_that_are_killed_anywhere_end_as_the_uninterrupted_one(tmp_path: Path) -> None:
    code, tally, output = call_tool("torture.sweep", tmp_path, 600, "--kills", 6, "--seed", 1)
    assert code == 0, output
    assert tally["mismatches"] == 0
    assert tally["kills"] >= 6
    assert tally["sweeps"] >= 1


def test_what_a_sweep_does_twice_is_found(tmp_path: Path) -> None:
    """What the tool looks at when a sweep has ended, on a run that was started again without need."""
    run = tmp_path / "runs/e002_none"
    run.mkdir(parents=True)
    log, ledger = run / "training_log.txt", run / "steps.jsonl"
    log.write_text("Starting with epoch 2 from x\nEpoch 2/3: a\nEpoch 3/3: a\nFinished at epoch 3\n")
    (run / "run.lock").touch()
    ledger.write_text('{"epoch": 2, "step": "end"}\n{"epoch": 3, "step": "end"}\n')
    before = sweep_checks.marks_of_finished(tmp_path / "runs")
    assert list(before) == ["e002_none"]
    assert sweep_checks.repeated_epochs(run) == (0, [])
    assert sweep_checks.recorded_twice(run) == []
    assert list(sweep_checks.done_again(before, sweep_checks.marks_of_finished(tmp_path / "runs"))) == []

    resumed = "Resuming from the state after epoch 2\nEpoch 3/3: a\nFinished at epoch 3\n"
    log.write_text(log.read_text() + resumed)
    assert sweep_checks.repeated_epochs(run) == (1, [])  # what a kill may do
    log.write_text(log.read_text() + resumed.replace("Epoch 3/3", "Epoch 2/3"))
    assert sweep_checks.repeated_epochs(run)[1] == ["e002_none trained epoch 2 after epoch 3"]
    ledger.write_text(ledger.read_text() * 2)
    assert len(sweep_checks.recorded_twice(run)) == 2
    changed = list(sweep_checks.done_again(before, sweep_checks.marks_of_finished(tmp_path / "runs")))
    assert [each.split(":")[1] for each in changed] == [" steps.jsonl", " training_log.txt"]
