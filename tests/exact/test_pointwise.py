import math
from collections.abc import Callable

import mpmath
import pytest
import torch

from clip_hba_behavior import exact
from clip_hba_behavior.exact.digests import numbers
from exact_tools import F64, gradients, normal

Function = Callable[[torch.Tensor], torch.Tensor]


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    return x * torch.sigmoid(1.702 * x)


def largest_relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found.to(F64) - expected) / expected).abs().max())


def test_square_roots_of_float32_are_the_correctly_rounded_ones() -> None:
    x = torch.cat(
        [normal(100000, seed=1).abs(), torch.exp(80 * numbers(20000, seed=1) / 8), torch.tensor([1e-45])]
    )
    expected = torch.tensor([math.sqrt(value) for value in x.tolist()], dtype=F64)
    assert torch.equal(exact.sqrt(x), expected.float())
    assert largest_relative_error(exact.sqrt(x.to(F64)), expected) <= 2.0**-52
    special = exact.sqrt(torch.tensor([0.0, -0.0, torch.inf, -1.0, torch.nan]))
    assert special[:3].tolist() == [0.0, 0.0, torch.inf]
    assert bool(special[3:].isnan().all())


@pytest.mark.parametrize(
    ("function", "reference", "low", "high", "bound"),
    [
        (exact.exp2, mpmath.mpf(2).__pow__, -900.0, 900.0, 2.0**-38),
        (exact.exp, mpmath.exp, -600.0, 600.0, 2.0**-38),
        (exact.erf, mpmath.erf, -6.0, 6.0, 2.0**-37),
        (exact.gelu, lambda x: x * mpmath.ncdf(x), -36.0, 12.0, 2.0**-36),
        (exact.quick_gelu, lambda x: x / (1 + mpmath.exp(-1.702 * x)), -300.0, 300.0, 2.0**-37),
    ],
    ids=["exp2", "exp", "erf", "gelu", "quick_gelu"],
)
def test_accuracy_is_what_is_stated(
    function: Function, reference: Callable[..., object], low: float, high: float, bound: float
) -> None:
    small = (numbers(150, seed=1, dtype=F64) / 8).tolist()
    points = [low + (high - low) * i / 300 for i in range(301) if i != 150] + small
    points = [x for x in points if x != 0.0]
    with mpmath.workdps(40):
        expected = torch.tensor([float(reference(mpmath.mpf(x))) for x in points], dtype=F64)  # type: ignore[arg-type]
    assert largest_relative_error(function(torch.tensor(points, dtype=F64)), expected) < bound


@pytest.mark.parametrize(
    ("function", "native"),
    [
        (exact.sqrt, torch.sqrt),
        (exact.exp2, torch.exp2),
        (exact.exp, torch.exp),
        (exact.erf, torch.erf),
        (exact.gelu, torch.nn.functional.gelu),
        (exact.quick_gelu, quick_gelu),
    ],
    ids=["sqrt", "exp2", "exp", "erf", "gelu", "quick_gelu"],
)
def test_values_and_derivatives_are_no_less_accurate_than_float32s_own(
    function: Function, native: Function
) -> None:
    x = normal(20000, seed=1).abs() if function is exact.sqrt else 2 * normal(20000, seed=1)
    expected = gradients(native, x, dtype=F64)
    for ours, theirs, reference in zip(gradients(function, x), gradients(native, x), expected, strict=True):
        error = (ours.to(F64) - reference).norm()
        assert error <= 1.01 * (theirs.to(F64) - reference).norm()
        assert error < 6e-8 * reference.norm()


def test_threads_and_cuts_change_no_bits() -> None:
    x = 3 * normal(100000, seed=1)
    torch.set_num_threads(1)
    one = gradients(exact.quick_gelu, x)
    torch.set_num_threads(2)
    assert all(map(torch.equal, one, gradients(exact.quick_gelu, x)))
    assert torch.equal(one[0], torch.cat([exact.quick_gelu(part) for part in x.split(777)]))
    assert torch.equal(one[0], exact.quick_gelu(x.view(100, 1000).T).T.reshape(-1))


def test_ends_of_the_range() -> None:
    assert exact.exp(torch.tensor([-torch.inf, 0.0, torch.inf])).tolist() == [0.0, 1.0, torch.inf]
    assert exact.exp2(torch.tensor([-3.0, 10.0], dtype=F64)).tolist() == [0.125, 1024.0]
    assert exact.erf(torch.tensor([-torch.inf, 0.0, torch.inf])).tolist() == [-1.0, 0.0, 1.0]
    assert exact.gelu(torch.tensor([-1e30, 0.0, 1e30])).tolist() == [0.0, 0.0, torch.tensor(1e30).item()]
    assert exact.quick_gelu(torch.tensor([-1e30, 0.0, 1e30])).tolist() == [0.0, 0.0, torch.tensor(1e30).item()]
    for function in (exact.exp, exact.exp2, exact.erf, exact.gelu, exact.quick_gelu):
        assert bool(function(torch.tensor([torch.nan])).isnan())
    assert exact.exp(torch.empty(0, 3)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"found:    torch.int64\n  expected: float32 or float64"):
        exact.exp(torch.tensor([1]))
