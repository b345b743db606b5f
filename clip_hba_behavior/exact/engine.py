"""Engines: two ways to compute the products of rows on their grids, with the same bits.

`float64` multiplies the rounded numbers as they are. `int8` cuts them into balanced digits to the base 256 and
multiplies these in int8 with int32 sums, where the machine's int8 product is exact.
"""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal, get_args

import torch

from clip_hba_behavior.exact.grid import F32, F64, I64, memory, round_rows

Engine = Literal["float64", "int8"]
Choice = Literal["float64", "int8", "auto"]

_LARGEST_OF_THREE_DIGITS = 0x7F7F7F
_MOST_OUTLIERS = 8  # of so many columns one may hold entries of more than three digits
_NARROW = 256  # columns of a result
_chosen: Choice = "auto"


@dataclass(frozen=True)
class Rows:
    """Rows on their grids.

    Attributes:
        values: `[..., n, k]`, multiples of their row's grid, their norm at most 2**26.5 grids; float64, or float32
            where that holds them.
        rounders: `[..., n, 1]` float64.
    """

    values: torch.Tensor
    rounders: torch.Tensor

    @cached_property
    def grids(self) -> torch.Tensor:
        """The grids `[n, 1]`, float64; NaN for a row of NaN."""
        grids = ((self.rounders.view(I64) & (0x7FF << 52)) - (52 << 52)).view(F64)
        return torch.where(torch.isfinite(self.rounders), grids, self.rounders)

    @cached_property
    def integers(self) -> torch.Tensor:
        """The values in grids, `[n, k]` int32; any integers for a row of NaN."""
        return (self.values + self.rounders).view(I64).to(torch.int32)  # the low words

    @cached_property
    def digits(self) -> torch.Tensor:
        """Three digits of each integer, int8 `[n, 3, k]`, the lowest first."""
        return _digits(self.integers)

    @cached_property
    def outliers(self) -> torch.Tensor:
        """Which columns hold integers of more than three digits, bool `[k]`."""
        return (self.integers.abs() > _LARGEST_OF_THREE_DIGITS).any(0)


def on_grids(values: torch.Tensor, slot: str = "") -> Rows:
    """Round rows `[..., n, k]`, float32 or float64, each to the grid of its norm; in `grid.memory` of a slot."""
    if values.dim() == 2:
        return Rows(*round_rows(values, slot))
    rounded, rounders = round_rows(values.flatten(0, -2), slot)
    return Rows(rounded.view(values.shape), rounders.view(*values.shape[:-1], 1))


def narrowed(rows: Rows) -> Rows:
    """Return the same rows in float32 if that holds them, as it holds what was float32 before it was rounded."""
    narrow = rows.values.to(F32)
    return Rows(narrow, rows.rounders) if torch.equal(narrow.to(F64), rows.values) else rows


def prepared(rows: Rows) -> Rows:
    """Return the rows as `multiply` needs them, for several products."""
    if rows.values.dtype == F64 or _engine(rows.values.device) == "int8":
        return rows
    return Rows(rows.values.to(F64), rows.rounders)


def multiply(a: Rows, b: Rows, slot: str = "") -> torch.Tensor:
    """Return the products `[..., m, n]` of rows `[..., m, k]` with rows `[..., n, k]`, float64 and exact.

    Every partial sum, over any subset of the k terms, is a multiple of the product of two grids, and by
    Cauchy-Schwarz at most 2**53 of them: so no order of summation, no split and no fused operation rounds
    anything. The sign of a zero is not defined: kernels differ in it. The products may be in `grid.memory` of the
    slot.
    """
    if a.values.dim() == 2 and min(len(a.values), len(b.values)) > 0 and _engine(a.values.device) == "int8":
        return _multiply_int8(a, b)
    return _multiply_float64(a.values, b.values, slot)


def _multiply_float64(a: torch.Tensor, b: torch.Tensor, slot: str = "") -> torch.Tensor:
    a, b = a.to(F64), b.to(F64)
    shape = (*a.shape[:-1], b.shape[-2])
    result = memory(shape, a.device, slot)
    if a.dim() > 2:
        torch.bmm(a.flatten(0, -3), b.flatten(0, -3).mT, out=result.flatten(0, -3))
    elif len(b) <= _NARROW < len(a):
        return torch.mm(b, a.T, out=result.view(len(b), len(a))).T  # few columns are slow in CPU libraries
    else:
        torch.mm(a, b.T, out=result)
    return result


def use_engine(name: Choice) -> AbstractContextManager[object]:
    """Choose the engine of this process, for good or, in a `with` statement, until its end; it changes no bits.

    Args:
        name: `float64`, `int8`, or `auto` for the faster, timed on a device when it is first used.

    Raises:
        ValueError: there is no such engine.
    """
    global _chosen
    if name not in get_args(Choice):
        raise ValueError(
            f"cannot compute exact products with the engine {name!r}\n  expected: {', '.join(get_args(Choice))}"
        )
    context = ExitStack()
    context.callback(use_engine, _chosen)
    _chosen = name
    return context


@cache
def int8_is_exact(device: torch.device) -> bool:
    """Tell whether a device's int8 products are exact: some processors' sums of pairs saturate without a word."""
    if sys.byteorder != "little":  # the digits are read as bytes
        return False
    low = torch.full((32, 3072), -128, dtype=torch.int8, device=device)
    try:
        for size in (64, 1024, 3072):
            rows = low[:, :size]
            if not bool((torch._int_mm(rows, rows.T) == size << 14).all()):
                return False
            if not bool((torch._int_mm(rows, ~rows.T) == -size * 128 * 127).all()):
                return False
    except RuntimeError:  # no int8 product is built for this device
        return False
    return True


def _engine(device: torch.device) -> Engine:
    if _chosen == "auto":
        return _faster(device)
    if _chosen == "int8" and not int8_is_exact(device):
        raise ValueError(
            "this machine cannot honour the engine int8\n"
            f"  found:    int8 products on {device} that are not exact\n"
            "  expected: exact ones\n  choose exact.use_engine('auto'): the bits are the same"
        )
    return _chosen


@cache
def _faster(device: torch.device) -> Engine:
    if not int8_is_exact(device):
        return "float64"
    narrow = torch.ones((128, 1024), dtype=torch.int8, device=device)
    wide = narrow.to(F64)
    if 2 * _seconds(lambda: torch._int_mm(narrow, narrow.T)) > _seconds(lambda: wide @ wide.T):
        return "float64"  # it takes nine of them; where a processor has none, they take seconds
    values = (torch.arange(512 * 1024, device=device) % 251).to(F64).view(512, 1024)
    rows = on_grids(values)
    int8 = _seconds(lambda: _multiply_int8(Rows(rows.values, rows.rounders), rows))
    return "int8" if int8 < _seconds(lambda: torch.matmul(rows.values, rows.values.mT)) else "float64"


def _seconds(product: Callable[[], torch.Tensor]) -> float:
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        product()[0, 0].item()  # waits for the device
        taken.append(time.perf_counter() - began)
    return min(taken)


def _digits(integers: torch.Tensor) -> torch.Tensor:
    biased = integers.add(0x808080).bitwise_xor_(0x808080)
    return biased.view(torch.int8).view(*integers.shape, 4)[..., :3].movedim(-1, 1).contiguous()


def _multiply_int8(a: Rows, b: Rows) -> torch.Tensor:
    """The same by int8: the columns whose integers have a fourth digit by a float64 product of their own."""
    outliers = a.outliers | b.outliers
    columns = outliers.nonzero()[:, 0]
    width = len(outliers)
    if len(columns) * _MOST_OUTLIERS > width:
        return _multiply_float64(a.values, b.values)
    if len(columns):
        digits_a = _digits(a.integers.index_fill(1, columns, 0))
        digits_b = _digits(b.integers.index_fill(1, columns, 0))
    else:
        digits_a, digits_b = a.digits, b.digits
    result = _sum_of_digit_products(_padded(digits_a), _padded(digits_b))[: len(a.values), : len(b.values)]
    result = result.mul_(a.grids).mul_(b.grids.mT)
    if len(columns):
        result += _multiply_float64(a.values[:, columns], b.values[:, columns])
    return result


def _padded(digits: torch.Tensor) -> torch.Tensor:
    """Append zeros up to 32 rows and multiples of 8, which CUDA's int8 product asks for."""
    rows, _, columns = digits.shape
    return torch.nn.functional.pad(digits, (0, -columns % 8, 0, 0, 0, max(32, rows + -rows % 8) - rows))


def _sum_of_digit_products(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the exact products of the integers as float64 `[m, n]`, from digits `[m, 3, k]` and `[n, 3, k]`.

    The five products hold what has the same power of 256; each is below 2**26, and what Horner's rule sums up
    never above 2**53 in its own unit.
    """
    k = a.shape[2]
    planes_a, planes_b = a.flatten(1), b.flip(1).flatten(1)  # digits 0 1 2, and 2 1 0
    result = None
    for power in (4, 3, 2, 1, 0):
        first, last = max(0, power - 2), min(2, power)
        part_a = planes_a[:, first * k : (last + 1) * k]
        part_b = planes_b[:, (2 - power + first) * k : (3 - power + last) * k]
        product = torch._int_mm(part_a, part_b.T)
        result = product.to(F64) if result is None else result.mul_(256.0).add_(product)
    assert result is not None
    return result
