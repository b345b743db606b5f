"""The digests are these ones for ever: on every machine, and as long as `exact.DEFINITION` is 1."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clip_hba_behavior import exact
from clip_hba_behavior.exact.digests import numbers

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "exact_anywhere.py"
GOLDEN = {
    "exp2": "8a6a0c9bde14be2e",
    "exp": "80e487d733f5d535",
    "erf": "e2429fe7d87c625a",
    "gelu": "66d768d487259012",
    "quick_gelu": "5d91022d04b9a1c1",
    "sqrt": "57f0de96b8c3c72c",
    "float64 exp2 erf sqrt": "772332150cf31e14",
    "matmul": "d523428c3cddb49a",
    "linear": "8ad8396f85a8106b",
    "linear of many rows": "e082ebdb0c544e81",
    "matmul with outliers": "35cd6fabb39c95c1",
    "float64 cross": "0d80b688a55a2609",
    "float64 matmul": "97ae3d53b3fede0b",
    "float64 softmax": "c9f3e8fb7edcdaba",
    "float64 layer_norm": "4bb3f5e5d71951eb",
    "float64 total": "c9f6e49f0c371269",
    "sum": "fdc66b8793a4e84c",
    "norm": "91a1588cb720395c",
    "normalize": "859fc0d6ec052e24",
    "branches": "2edfcca24c9aed66",
    "total": "cb053d354061b0ee",
    "mse_loss": "9f7bf94fdc4dfadc",
    "softmax": "bbe54f423a567a5a",
    "layer_norm": "c23254ca9b7c3a13",
    "attention": "5a6105538f044292",
    "attention, causal": "a2e8f52b663f043c",
    "dropout": "3a4f6af187b7f80c",
    "AdamW": "a8cd303f79aa7b2d",
}


@pytest.mark.parametrize(("threads", "engine"), [(1, "float64"), (2, "int8"), (2, "auto")])
def test_the_digests_are_these_ones_for_ever(threads: int, engine: exact.Choice) -> None:
    assert exact.DEFINITION == 1
    torch.set_num_threads(threads)
    with exact.use_engine(engine):
        assert exact.digests() == GOLDEN


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("engine", ["float64", "int8", "auto"])
def test_the_digests_are_these_ones_on_cuda(engine: exact.Choice) -> None:
    with exact.use_engine(engine):
        assert exact.digests("cuda") == GOLDEN


def test_every_public_function_has_a_digest() -> None:
    without = {"DEFINITION", "Choice", "Draw", "FrozenWeight", "Reduce", "digests", "int8_is_exact", "use_engine"}
    parts = {"column_totals": "float64 total", "cross": "float64 cross", "philox": "dropout"}
    for name in set(exact.__all__) - without:
        assert parts.get(name, name) in GOLDEN


@pytest.mark.system
def test_the_script_tells_what_differs_on_the_simplest_processor(tmp_path: Path) -> None:
    expected = tmp_path / "expected.txt"
    lines = [f"{digest}  {name}" for name, digest in GOLDEN.items()]
    expected.write_text("\n".join(["0123456789abcdef  exp2", *lines[1:]]) + "\n")
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--threads", "2", "--expect", str(expected)],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert found.stdout.splitlines() == lines
    assert found.stderr.splitlines() == [
        f"the digests differ from {expected}",
        f"  found:    {lines[0]}",
        "  expected: 0123456789abcdef  exp2",
    ]


def test_the_script_ends_with_0_if_nothing_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tmp_path / "expected.txt"
    expected.write_text("".join(f"{digest}  {name}\n" for name, digest in GOLDEN.items()))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--engine", "float64", "--expect", str(expected)])
    with exact.use_engine("auto"), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0


def test_the_numbers_are_made_of_integers() -> None:
    """Python's integers give the same."""
    words = []
    for i in range(5):
        word = (i * 6364136223846793005 + 9 * 1442695040888963407) % 2**64
        word = _signed(word) >> 29 ^ word
        word = word * 2862933555777941757 % 2**64
        word = _signed(word) >> 32 ^ word
        words.append(((word & 0xFFFFFF) - 8388608) * 2.0**-20)
    assert numbers(5, seed=9).tolist() == words


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word
