"""The comparison with other frameworks: `track` comes back equal, and a loop that does not is found."""

import subprocess
import sys
from pathlib import Path

import pytest

COMPARE = Path(__file__).parents[2] / "benchmarks" / "peers" / "compare.py"


@pytest.mark.system
@pytest.mark.timeout(900)
def test_track_comes_back_equal_and_a_plain_loop_does_not() -> None:
    command = [sys.executable, str(COMPARE), "--rounds", "0", "--only", "with_track.py", "with_nothing.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=840, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "| `track` | equal | equal | equal | equal |" in ended.stdout
    assert "| `track` | refused | refused | refused |" in ended.stdout
    plain = "| plain loop, PyTorch's tutorial |"
    assert f"{plain} step 33 differs | step 41 differs | step 41 differs | step 41 differs |" in ended.stdout
    assert f"{plain} no | no | no |" in ended.stdout


def test_an_unknown_script_is_refused() -> None:
    command = [sys.executable, str(COMPARE), "--only", "with_keras.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 2
    assert "--only with_keras.py: expected some of ['with_track.py'," in ended.stderr
