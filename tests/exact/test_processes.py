import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "exact_processes.py"


@pytest.mark.system
def test_one_two_and_three_processes_train_the_same_bits(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert found.returncode == 0, found.stderr
    digests = found.stdout.split()
    assert len(digests) == 3 + 2 + 1
    assert len(set(digests)) == 1
