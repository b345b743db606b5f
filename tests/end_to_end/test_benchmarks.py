import subprocess
import sys
from pathlib import Path

import pytest

STEP_TIME = Path(__file__).parents[2] / "benchmarks/step_time.py"


@pytest.mark.system
def test_the_step_time_benchmark_runs_to_its_end_at_a_small_size() -> None:
    command = [
        sys.executable,
        str(STEP_TIME),
        "--size",
        "small",
        "--images",
        "40",
        "--repeats",
        "1",
        "--batch",
        "16",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    for words in ("step ", "epoch ", "ledger, CSV row and checkpoint", "resident memory, project"):
        assert words in ended.stdout
