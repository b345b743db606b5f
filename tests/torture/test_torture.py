"""The short version of `make torture`: the tool finds nothing wrong, and finds what is put in on purpose."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


def torture(tmp_path: Path, *arguments: object) -> tuple[int, dict[str, int], str]:
    tally = tmp_path / "tally.json"
    command = [sys.executable, "-m", "torture.torture", "--no-strace", "--json", tally, *arguments]
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [str(each) for each in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
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
