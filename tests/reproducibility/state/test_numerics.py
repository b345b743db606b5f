import subprocess
import sys
from typing import Any

import pytest
import torch

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import (
    apply_numerics,
    check_float64_products,
    numerics_left_as_they_were,
)


def numerics() -> dict[str, Any]:
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic kernels": torch.backends.cudnn.deterministic,
        "tf32 of kernels": torch.backends.cudnn.allow_tf32,
        "tf32 of products": torch.backends.cuda.matmul.allow_tf32,
    }


@numerics_left_as_they_were()
def change_and_fail() -> None:
    before = numerics()
    apply_numerics(1, deterministic=False, tf32=not before["tf32 of products"])
    after = numerics()
    assert all(before[name] != after[name] for name in before)
    raise RuntimeError("in between")


def test_whatever_is_applied_is_put_back_also_after_an_error() -> None:
    with numerics_left_as_they_were():
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32
        before = numerics()
        with pytest.raises(RuntimeError, match="in between"):
            change_and_fail()
        assert numerics() == before


def test_the_random_states_go_on() -> None:
    torch.manual_seed(1)
    with numerics_left_as_they_were():
        torch.rand(1)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    torch.rand(1)
    assert torch.rand(1).equal(drawn)


def test_emulated_float64_products_are_refused_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda:0")
    for harmless in ("", "0"):
        monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", harmless)
        check_float64_products(gpu)
    monkeypatch.setenv("CUBLAS_EMULATE_DOUBLE_PRECISION", "1")
    check_float64_products(torch.device("cpu"))
    with pytest.raises(BadInputError, match=r"arithmetic: portable\n.*_PRECISION=1: cuBLAS.*\n.*\n  unset CUBLAS"):
        check_float64_products(gpu)


@pytest.mark.parametrize(
    ("setting", "imports_it"),
    [("apply_numerics(1, True, False)", 0), ("torch.use_deterministic_algorithms(True)", 1)],
)
def test_numerics_are_set_without_importing_the_compiler_of_torch(setting: str, imports_it: int) -> None:
    program = (
        "import sys, torch\nfrom clip_hba_behavior.reproducibility.state.numerics import apply_numerics\n"
        f"{setting}\nassert torch.are_deterministic_algorithms_enabled()\n"
        "print(int('torch._inductor.config' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == imports_it
