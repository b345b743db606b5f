"""Elementary functions of float64 numbers, made of single IEEE operations and of integer operations on bits.

Libraries and processors have their own `sqrt`, `exp` and `erf`, which differ in the last bits. These do not.
`log2(e)`, in all definitions, is the float64 number nearest to it, and so is every other constant.
"""

import math

import torch

from clip_hba_behavior.exact.grid import F64, I64

LOG2_E = 1.4426950408889634
# Leaves the nearest integer k in the low bits, as 1023 + k: shifted up, they are the bits of 2**k.
_INTEGER_ROUNDER = 1.5 * 2.0**52 + 1023.0
# (2**r - 1) / r, interpolated at the 8 Chebyshev nodes of [-0.5, 0.5]; powers of r, the highest first.
_EXP2 = [
    float.fromhex(digits)
    for digits in [
        "0x1.63b2d7971923fp-20",
        "0x1.00c0e4e15189cp-16",
        "0x1.4308c7183d6a2p-13",
        "0x1.5d877598350dep-10",
        "0x1.3b2ab70ad2565p-7",
        "0x1.c6b08da70cce3p-5",
        "0x1.ebfbdff82a734p-3",
        "0x1.62e42fef9cc69p-1",
    ]
]
# (1 + 2 x) * exp(x * x) * erfc(x) for x >= 0 in u = (x - 3) / (x + 3), interpolated at the 17 Chebyshev nodes of
# [-1, u(28)] (after Shepherd and Laframboise 1981); powers of u, the highest first.
_ERFC = [
    float.fromhex(digits)
    for digits in [
        "0x1.192b820d269e2p-21",
        "0x1.3341e3f88ebf8p-19",
        "-0x1.abaf53de8d848p-20",
        "-0x1.3fce2463c0ecap-16",
        "0x1.93085373ff690p-18",
        "0x1.055f299d1b41dp-13",
        "-0x1.bbb5d441992bcp-14",
        "-0x1.98cd43d8a1cc2p-11",
        "0x1.ef298ca9a2b13p-10",
        "0x1.4b8805caca180p-9",
        "-0x1.8574ea7c73a75p-6",
        "0x1.17ca2853f435ep-4",
        "-0x1.e88b7f6580e3ep-4",
        "0x1.098366a913495p-3",
        "-0x1.85a15c66c7541p-5",
        "-0x1.15c084bbb43c2p-3",
        "0x1.40c522d7e5370p+0",
    ]
]
_TWO_OVER_ROOT_PI = 1.1283791670955126
# erf(x) / x in x * x, the first ten terms of its series; the highest first.
_ERF_SERIES = [_TWO_OVER_ROOT_PI * (-1.0) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(9, -1, -1)]


def square_root(values: torch.Tensor) -> torch.Tensor:
    """Return the square roots of float64 values, to one unit in the last place.

    Definition: from the bits halved as a first guess, within 6 percent (`(bits >> 1) + (1023 << 51)`, as
    integers), four of Heron's steps `y = (y + x / y) * 0.5`, each of which squares the relative error. Zero and
    infinity are their own roots. NaN for negative values.
    """
    root = ((values.view(I64) >> 1) + (1023 << 51)).view(F64)
    for _ in range(4):
        root = root.add_(values / root).mul_(0.5)
    root = torch.where((values == 0) | (values == math.inf), values, root)
    return torch.where(values < 0, math.nan, root)


def power_of_two_(exponents: torch.Tensor) -> torch.Tensor:
    """Return `2**t` of float64 values t, clamped to -1000 and 1000, to 2**-38 relative; overwrites them.

    Definition: t is cut into the nearest integer k, of two as near the odd one, and a rest r of at most 1/2, which
    is exact; a polynomial in r of degree 8, by Horner's rule, with the coefficients of `_EXP2` and 1 as the last;
    times the power of two whose exponent's bits are made of k. 1 at 0.
    """
    exponents.clamp_(-1000.0, 1000.0)
    whole = exponents + _INTEGER_ROUNDER
    result = whole - _INTEGER_ROUNDER
    rest = exponents.sub_(result)
    torch.mul(rest, _EXP2[0], out=result)
    for coefficient in _EXP2[1:]:
        result.add_(coefficient).mul_(rest)
    whole.view(I64).bitwise_left_shift_(52)
    return result.add_(1.0).mul_(whole)


def complementary_error(values: torch.Tensor) -> torch.Tensor:
    """Return erfc of float64 values >= 0, to 2**-37 relative, down to 2**-1000.

    Definition: with x at most 26, `2**((x * x) * -log2(e)) * P(u) / (2 * x + 1)`, from left to right, `u = (x - 3)
    / (x + 3)`, and P of degree 16 by Horner's rule, with the coefficients of `_ERFC`.
    """
    x = values.clamp(max=26.0)
    u = (x - 3.0).div_(x + 3.0)
    result = power_of_two_((x * x).mul_(-LOG2_E))
    result.mul_(_polynomial(u, _ERFC))
    return result.div_(x.mul_(2.0).add_(1.0))


def error_function(values: torch.Tensor) -> torch.Tensor:
    """Return erf of float64 values, to 2**-37 relative: below 1/2 by its series, above as `1 - erfc`.

    Definition: for magnitudes below 1/2 the first ten terms, by Horner's rule in `x * x` with the coefficients of
    `_ERF_SERIES`, times x; otherwise `1 - erfc(|x|)` with the sign of x.
    """
    magnitude = values.abs()
    above = 1.0 - complementary_error(magnitude)
    above = torch.where(values < 0, -above, above)
    below = _polynomial((values * values).clamp_(max=0.25), _ERF_SERIES).mul_(values)
    return torch.where(magnitude < 0.5, below, above)


def _polynomial(x: torch.Tensor, coefficients: list[float]) -> torch.Tensor:
    result = x * coefficients[0]
    for coefficient in coefficients[1:-1]:
        result.add_(coefficient).mul_(x)
    return result.add_(coefficients[-1])
