"""Sums over rows of products of two columns, as the gradient of a weight is: exact in any order and any split."""

import torch

from clip_hba_behavior.exact.grid import F64, widen
from clip_hba_behavior.exact.totals import (
    ONE_PROCESS,
    Reduce,
    bits_for_sums,
    count_rows,
    largest_of_columns,
    rounder_of_largest,
)

MOST_ROWS = 1 << 21
_ROWS_AT_ONCE = {"cpu": 1 << 11, "cuda": 1 << 16}  # changes no bits


def cross(x: torch.Tensor, y: torch.Tensor, reduce: Reduce = ONE_PROCESS) -> torch.Tensor:
    """Return `x.T @ y`, summed over the rows of all processes: `[p, q]` float64, without a gradient.

    Definition: with n rows over all processes, `bits = 53 - ceil(log2(n))`, `b = (bits - 1) // 3`, and for each
    column `2**e` the least power of two above its largest magnitude (e at least -400). y's columns are rounded to
    multiples of `2**(e - (bits - b))`, ties to even. x's columns are rounded to multiples of `2**(e - b)`, which
    gives x1; what that leaves, `x - x1`, to multiples of `2**(e - 2 * b - 1)`, which gives x2. The result is `x1.T
    @ y1 + x2.T @ y1`, each of the two exact, the addition in float64, a zero positive. A column with an entry that
    is not finite is NaN throughout.

    Proof that the products are exact: the entries are integers of at most `2**b` (x1; and x2, since rounding
    leaves at most half of x1's grid) and `2**(bits - b)` in units of their grids. So any sum over some of the
    rows of products of two is an integer of at most `n * 2**bits <= 2**53`, which float64 holds: in whatever
    order, and however cut among processes.

    Accuracy: an entry moves by at most `2**(-2 * b - 2)` of the column's largest in x, `2**(b - bits - 1)` in y:
    2**-28 and 2**-29 for 4,096 rows, 2**-26 and 2**-27 for 16,448, 2**-22 and 2**-23 for 2**21. Below a million
    rows the result's rounding to float32 dominates, unless a column's largest entry exceeds all others by far.

    Args:
        x: `[rows, p]`, float32 or float64; there may be none.
        y: `[rows, q]`.
        reduce: puts the rows of several processes together.

    Raises:
        ValueError: the numbers of rows differ, there are more than 2**21 over all processes, or another dtype.
    """
    rows = count_rows(x, reduce)
    if len(x) != len(y) or rows > MOST_ROWS:
        raise ValueError(
            "exact.cross cannot sum over these rows\n"
            f"  found:    {len(x)} and {len(y)} rows, {rows} over all processes\n"
            f"  expected: as many of both, and at most {MOST_ROWS}"
        )
    bits = bits_for_sums(53, rows)
    coarse_bits = (bits - 1) // 3
    coarse = rounder_of_largest(largest_of_columns(x, reduce), coarse_bits)
    fine = coarse * 2.0 ** -(coarse_bits + 1)
    of_y = rounder_of_largest(largest_of_columns(y, reduce), bits - coarse_bits)
    products = x.new_zeros((2, x.shape[1], y.shape[1]), dtype=F64)
    step = _ROWS_AT_ONCE[x.device.type]
    for start in range(0, len(x), step):
        part = slice(start, start + step)
        add_product(products, in_two(x[part], coarse, fine), widen(y[part]).add_(of_y).sub_(of_y))
    products = reduce.sum(products)
    return products[0] + products[1]


def in_two(part: torch.Tensor, coarse: torch.Tensor, fine: torch.Tensor) -> torch.Tensor:
    """Return rows `[n, p]` on the coarse grids, beside what that leaves on the fine ones: `[n, 2, p]`."""
    both = part.new_empty((len(part), 2, part.shape[1]), dtype=F64)
    rest = widen(part)
    first = both[:, 0]
    torch.add(rest, coarse, out=first).sub_(coarse)
    torch.sub(rest.sub_(first).add_(fine), fine, out=both[:, 1])
    return both


def add_product(products: torch.Tensor, both: torch.Tensor, y: torch.Tensor) -> None:
    """Add the products over rows of `[n, 2, p]` and `[n, q]` to `[2, p, q]`."""
    products += (both.flatten(1).T @ y).view_as(products)
