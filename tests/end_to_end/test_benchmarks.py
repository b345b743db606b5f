"""The benchmarks run to their end, at a size that says nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
    ended = benchmark(name, *options)
    assert ended.returncode == 0, ended.stderr
    for each in words:
        assert each in ended.stdout


def benchmark(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.system
def test_what_is_to_be_shown_on_a_gpu_runs_through_on_a_cpu_and_says_what_needs_one(tmp_path: Path) -> None:
    out = tmp_path / "figures.md"
    small = [*SMALL, "--images", "24", "--epochs", "2", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    ended = benchmark("gpu.py", *small)
    assert ended.returncode == 0, ended.stderr
    figures = out.read_text()
    assert figures in ended.stdout
    assert "| | float32 | tf32 | bfloat16 |" in figures
    assert "| resumed from every epoch | the same bytes |  | the same bytes |" in figures
    assert figures.count("needs a GPU") == 8
    assert "| 2 epochs from a cold start | " in figures
    ended = benchmark("gpu.py", *small)
    assert ended.returncode == 2
    assert f"{out} is there already; name another file with --out" in ended.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_without_a_gpu_the_figures_of_one_are_refused() -> None:
    ended = benchmark("gpu.py")
    assert ended.returncode == 2
    assert "no CUDA device is here" in ended.stderr
