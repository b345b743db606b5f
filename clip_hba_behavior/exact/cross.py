"""Sums over rows of products of two columns, as the gradient of a weight is: exact in any order and any split."""

import math

import torch

from clip_hba_behavior.exact.elementary import square_root
from clip_hba_behavior.exact.grid import (
    F64,
    NORM_BUDGET,
    blocks,
    bound_exponent,
    power_of_two,
    rounder_of_norm,
    widen,
)
from clip_hba_behavior.exact.totals import ONE_PROCESS, Reduce, count_rows, largest_of_columns, rounder_of_largest

MOST_ROWS = 1 << 21
_ONE_SLICE = 1024  # rows up to which one slice is as accurate as float32; part of the definition
_COARSE_BITS = 16
_ROWS_AT_ONCE = 1 << 13  # changes no bits


def cross(x: torch.Tensor, y: torch.Tensor, reduce: Reduce = ONE_PROCESS) -> torch.Tensor:
    """Return `x.T @ y`, summed over the rows of all processes: `[p, q]` float64, without a gradient.

    Definition: each column is rounded to the grid of a bound on its norm over all rows. Up to 1,024 rows the
    result is the exact product of the rounded columns `x1.T @ y1`. For more rows what rounding left is rounded
    in its turn to the grid that its bound, half a grid an entry, allows, and the result is `x1.T @ y1 + (x1.T @
    y2 + x2.T @ y1)`, each of the three exact, the two additions in float64.

    The bound on a column's norm comes from exact quantities alone, and so is the same for every split: with
    `2**e` above its largest entry, the exact sum s of the squares of its entries rounded to `2**(e - 16)`; the
    norm is at most `sqrt(s) + 2**(e - 16) * sqrt(rows) / 2`. Proof that the sums are exact: as for
    `engine.multiply`; for s, that it has at most 2**21 squares of at most 2**32 units.

    Accuracy: with one slice as `product.product` of k = rows; with two the float32 rounding of the result
    dominates.

    Args:
        x: `[rows, p]`, float32 or float64.
        y: `[rows, q]`.
        reduce: puts the rows of several processes together.

    Raises:
        ValueError: the numbers of rows differ, or there are more than 2**21 over all processes.
    """
    rows = count_rows(x, reduce)
    if len(x) != len(y) or rows > MOST_ROWS:
        raise ValueError(
            "exact.cross cannot sum over these rows\n"
            f"  found:    {len(x)} and {len(y)} rows, {rows} over all processes\n"
            f"  expected: as many of both, and at most {MOST_ROWS}"
        )
    rounder_x, rounder_y = _column_rounders(x, rows, reduce), _column_rounders(y, rows, reduce)
    num_products = 1 if rows <= _ONE_SLICE else 3
    products = x.new_zeros((num_products, x.shape[1], y.shape[1]), dtype=F64)
    for start in range(0, len(x), _ROWS_AT_ONCE):
        x1, x2 = _slices(x[start : start + _ROWS_AT_ONCE], rounder_x, rows)
        y1, y2 = _slices(y[start : start + _ROWS_AT_ONCE], rounder_y, rows)
        pairs = [(x1, y1), (x1, y2), (x2, y1)][:num_products]
        for number, (a, b) in enumerate(pairs):
            products[number] += a.T @ b
    products = reduce.sum(products)
    return products[0] if num_products == 1 else products[0] + (products[1] + products[2])


def _slices(part: torch.Tensor, rounders: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to the columns' grids; then round what is left to the finer grids that half a grid an entry allows."""
    rest = widen(part)
    first = torch.add(rest, rounders).sub_(rounders)
    rest.sub_(first)
    finer = math.ldexp(1.0, 1 - (2 * NORM_BUDGET // (math.isqrt(rows) + 1)).bit_length())
    return first, rest.add_(rounders * finer).sub_(rounders * finer)


def _column_rounders(rows: torch.Tensor, num_rows: int, reduce: Reduce) -> torch.Tensor:
    largest = largest_of_columns(rows, reduce)
    coarse = rounder_of_largest(largest, _COARSE_BITS)
    squares = torch.zeros_like(largest)
    for block in blocks(rows):
        part = widen(rows[block]).add_(coarse).sub_(coarse)
        squares += part.mul_(part).sum(0)
    grid = power_of_two(bound_exponent(largest) - _COARSE_BITS)
    norm = square_root(reduce.sum(squares)) + grid * ((math.isqrt(num_rows) + 1) * 0.5)
    return rounder_of_norm(norm * norm, num_rows)
