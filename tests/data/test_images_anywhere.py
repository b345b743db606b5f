"""The digests are these ones for ever, on every machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "images_anywhere.py"
GOLDEN = "1ad843cb94447dc96b3324e391df68ca5511918bbc4c433085c79d6db02b41c7"


def run(*options: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-W", "error", str(SCRIPT), "--images", "20", "--seeds", "2", *options],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_digest_is_this_one_for_ever(tmp_path: Path) -> None:
    (tmp_path / "expected.txt").write_text(GOLDEN + "\n")
    found = run("--expect", str(tmp_path / "expected.txt"))
    assert (found.returncode, found.stdout, found.stderr) == (0, GOLDEN + "\n", "")


@pytest.mark.system
def test_the_digest_is_the_same_without_vector_instructions() -> None:
    found = run("--expect", GOLDEN, NPY_DISABLE_CPU_FEATURES="X86_V3", OPENBLAS_CORETYPE="Nehalem")
    assert found.returncode == 0, found.stderr


def test_another_digest_is_told() -> None:
    found = run("--expect", "0" * 64)
    assert found.returncode == 1
    expected = f"the images' digest differs\n  found:    {GOLDEN}\n  expected: {'0' * 64}\n"
    assert (found.stdout, found.stderr) == (GOLDEN + "\n", expected)
