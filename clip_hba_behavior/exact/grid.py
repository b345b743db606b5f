"""Grids: powers of two whose multiples numbers are rounded to, so that what follows is exact in float64.

A grid is held as its rounder `M = 1.5 * 2**(52 + k)`: for `|x| <= 2**(51 + k)` the float64 operations `(x + M) -
M` give the multiple of `2**k` nearest to x, ties to the even one, and never a negative zero. Rounders are made
by integer operations on bits alone, so that no library function decides a grid.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

F32, F64, I64 = torch.float32, torch.float64, torch.int64

# floor(2**26.5): two vectors of integers whose norms are at most this have a dot product of at most 2**53.
NORM_BUDGET = 94906265
# More than the rounding errors of a tree of float64 additions, relative to its sum of squares.
_MARGIN = 1.0 + 2.0**-40
_CPU_BLOCK = (1 << 15) - 1  # below the size from which ATen splits an operation among threads
_CUDA_BLOCK = 1 << 24
_LEAST_EXPONENT = -400  # the squares of smaller numbers would leave float64's range


def widen(tensor: torch.Tensor, name: str = "the input") -> torch.Tensor:
    """Return a new contiguous float64 copy of a float32 or float64 tensor; exact.

    Raises:
        ValueError: the dtype is another.
    """
    if tensor.dtype not in (F32, F64):
        raise ValueError(
            f"exact functions cannot take {name}\n  found:    {tensor.dtype}\n  expected: float32 or float64"
        )
    return tensor.to(F64, copy=True, memory_format=torch.contiguous_format)


def blocks(rows: torch.Tensor) -> list[slice]:
    """Cut rows `[n, k]` into blocks that stay in the caches; they change no bits."""
    size = _CUDA_BLOCK if rows.device.type == "cuda" else _CPU_BLOCK
    step = max(1, size // max(1, rows.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def for_each_block(rows: torch.Tensor, function: Callable[[slice], None]) -> None:
    """Call a function, without gradients, for each block of rows `[n, k]`; on a CPU for several at once."""
    parts, num_threads = blocks(rows), torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def call(block: slice) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # these modes are a thread's own
            function(block)

    if rows.device.type == "cuda" or num_threads == 1 or len(parts) == 1:
        for part in parts:
            call(part)
    else:
        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(call, parts))


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return `2**exponent` as float64, for int64 exponents from -1022 to 1023."""
    return ((exponent + 1023) << 52).view(F64)


def rounder(exponent: torch.Tensor) -> torch.Tensor:
    """Return the rounder of the grids `2**exponent`, for int64 exponents from -1074 to 970."""
    return ((exponent + 1075) << 52 | (1 << 51)).view(F64)


def bound_exponent(values: torch.Tensor) -> torch.Tensor:
    """Return the int64 e, at least -400, with `values < 2**e`, for float64 values >= 0."""
    return ((values.view(I64) >> 52) - 1022).clamp_min(_LEAST_EXPONENT)


def tree_sum_(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Sum float64 values along a dimension, which is kept, in the fixed tree of `exact.sum`; overwrites them."""
    size = values.shape[dim]
    if size == 0:
        shape = list(values.shape)
        shape[dim] = 1
        return values.new_zeros(shape)
    while size > 1:
        half = size // 2
        values.narrow(dim, 0, half).add_(values.narrow(dim, half, half))
        if size & 1:
            values.narrow(dim, 0, 1).add_(values.narrow(dim, size - 1, 1))
        size = half
    return values.narrow(dim, 0, 1)


def rounder_of_norm(squares: torch.Tensor, size: int) -> torch.Tensor:
    """Return the rounder for vectors by a bound on their squared norms.

    Definition: with `budget = 94906265 - (floor(sqrt(size)) // 2 + 1)` (the first number is `floor(2**26.5)`), the
    float64 number `bound = squares * ((1 + 2**-40) / (budget * budget))` and E its exponent (`2**E <= bound <
    2**(E + 1)`; -1023 below `2**-1022`), the grid is `2**(floor(E / 2) + 1)`.

    That is the least power of two (up to a factor of two) such that a vector of `size` entries whose squared
    norm is at most `squares`, rounded to multiples of it, has a norm of at most 2**26.5 grids: rounding adds at
    most `sqrt(size) / 2` grids to the norm. A vector whose norm is not finite gets NaN.

    Args:
        squares: float64, >= 0, may be too small by a factor of 1 + 2**-41.
        size: number of entries of each vector, at most 2**50.
    """
    budget = float(NORM_BUDGET - (math.isqrt(size) // 2 + 1))
    bound = squares * (_MARGIN / (budget * budget))
    exponent = ((bound.view(I64) >> 52) - 1021) >> 1  # bound < 2**(E + 1), so 2**exponent >= sqrt(bound)
    return torch.where(torch.isfinite(bound), rounder(exponent), math.nan)


def round_rows_(rows: torch.Tensor) -> torch.Tensor:
    """Round each row of float64 `[n, k]` in place to the grid of its norm; return the rounders `[n, 1]`.

    Definition: `rounder_of_norm` of the sum of the row's squares in `exact.sum`'s tree, and of k.
    """
    squares = rows.new_empty(len(rows), 1)

    def square(block: slice) -> None:
        squares[block] = tree_sum_(rows[block] * rows[block])

    def round_(block: slice) -> None:
        rows[block].add_(rounders[block]).sub_(rounders[block])

    for_each_block(rows, square)
    rounders = rounder_of_norm(squares, rows.shape[1])
    for_each_block(rows, round_)
    return rounders
