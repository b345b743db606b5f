"""The benchmarks run to their end, at a size that says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALL = ["--size", "small", "--batch", "16", "--threads", "1"]
CASES = {
    "step_time.py": (
        [*SMALL, "--images", "40", "--repeats", "1"],
        ("step ", "epoch ", "ledger, CSV row and checkpoint", "matrix products", "resident memory, project"),
    ),
    "verification.py": (
        [*SMALL, "--images", "40", "--epochs", "1", "--repeats", "1"],
        ("an epoch trains in", "is verified in", "ratio"),
    ),
    "filling.py": (
        ["--size", "small", "--threads", "1", "--images", "24", "--image-size", "64", "--workers", "0", "1"],
        ("num_workers", "features: the same bytes with any number of processes"),
    ),
    "overhead.py": (["--epochs", "3", "--repeats", "1"], ("computation", "overhead", "now ")),
    "interruption.py": (
        [*SMALL, "--images", "400", "--signals", "1"],
        ("a step checkpoint", "from SIGTERM to a whole checkpoint: median"),
    ),
}


@pytest.mark.system
@pytest.mark.parametrize("name", CASES)
def test_a_benchmark_runs_to_its_end(name: str) -> None:
    options, words = CASES[name]
    command = [sys.executable, str(BENCHMARKS / name), *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    for each in words:
        assert each in ended.stdout
