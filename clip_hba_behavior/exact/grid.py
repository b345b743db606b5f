"""Grids: powers of two whose multiples numbers are rounded to, so that what follows is exact in float64.

A grid is held as its rounder `M = 1.5 * 2**(52 + k)`: for `|x| <= 2**(51 + k)` the float64 operations `(x + M) -
M` give the multiple of `2**k` nearest to x, ties to the even one, and never a negative zero. Rounders are made
by integer operations on bits alone, so that no library function decides a grid.
"""

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

F32, F64, I64 = torch.float32, torch.float64, torch.int64

# floor(2**26.5): two vectors of integers whose norms are at most this have a dot product of at most 2**53.
NORM_BUDGET = 94906265
# More than the rounding errors of a tree of float64 additions, relative to its sum of squares.
_MARGIN = 1.0 + 2.0**-40
_CPU_BLOCK = 1 << 17
_BLOCK_OF_A_THREAD = (1 << 15) - 1  # below the size from which ATen splits an operation among threads
_FEW_BLOCKS = 4  # less than so many are not worth the threads
_CUDA_BLOCK = 1 << 24
_LEAST_EXPONENT = -400  # the squares of smaller numbers would leave float64's range


def widen(tensor: torch.Tensor, name: str = "the input") -> torch.Tensor:
    """Return a new contiguous float64 copy of a float32 or float64 tensor; exact.

    Raises:
        ValueError: the dtype is another.
    """
    check_dtype(tensor, name)
    return tensor.to(F64, copy=True, memory_format=torch.contiguous_format)


def check_dtype(tensor: torch.Tensor, name: str) -> None:
    """Refuse what is neither float32 nor float64.

    Raises:
        ValueError: it is.
    """
    if tensor.dtype not in (F32, F64):
        raise ValueError(
            f"exact functions cannot take {name}\n  found:    {tensor.dtype}\n  expected: float32 or float64"
        )


def blocks(rows: torch.Tensor) -> list[slice]:
    """Cut rows `[n, k]` into blocks that stay in the caches; they change no bits."""
    size = _CUDA_BLOCK if rows.device.type == "cuda" else _CPU_BLOCK
    if size == _CPU_BLOCK and torch.get_num_threads() > 1:
        size = _BLOCK_OF_A_THREAD
    step = max(1, size // max(1, rows.shape[1]))
    return [slice(start, start + step) for start in range(0, len(rows), step)]


def for_each_block(rows: torch.Tensor, function: Callable[[slice], None]) -> None:
    """Call a function, without gradients, for each block of rows `[n, k]`; on a CPU for several at once."""
    parts, num_threads = blocks(rows), torch.get_num_threads()
    inference = torch.is_inference_mode_enabled()

    def call(some: list[slice]) -> None:
        with torch.inference_mode(inference), torch.no_grad():  # these modes are a thread's own
            for block in some:
                function(block)

    if rows.device.type == "cuda" or num_threads == 1 or len(parts) < _FEW_BLOCKS:
        call(parts)
    else:
        list(
            _pool(num_threads, os.getpid()).map(
                call, [parts[number::num_threads] for number in range(num_threads)]
            )
        )


@cache
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Return threads of this process: a fork does not inherit them."""
    return ThreadPoolExecutor(num_threads)


class _Memory(threading.local):
    def __init__(self) -> None:
        self.flat: dict[str, torch.Tensor] = {}


_memory = _Memory()


def memory(shape: Sequence[int], device: torch.device, slot: str = "") -> torch.Tensor:
    """Return float64 memory to write to: fresh, or that of a slot, which each use of it in this thread overwrites.

    On a CPU the first touch of fresh pages takes longer than the arithmetic. CUDA's allocator keeps its own.
    """
    size = math.prod(shape)
    if not slot or device.type == "cuda":
        return torch.empty(shape, dtype=F64, device=device)
    if slot not in _memory.flat or _memory.flat[slot].numel() < size:
        _memory.flat.pop(slot, None)
        with torch.inference_mode(False):  # so that it may be written to in any mode
            _memory.flat[slot] = torch.empty(size, dtype=F64)
    return _memory.flat[slot][:size].view(shape)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Return `2**exponent` as float64, for int64 exponents from -1022 to 1023."""
    return ((exponent + 1023) << 52).view(F64)


def rounder(exponent: torch.Tensor) -> torch.Tensor:
    """Return the rounder of the grids `2**exponent`, for int64 exponents from -1074 to 970."""
    return (exponent + 1075).bitwise_left_shift_(52).bitwise_or_(1 << 51).view(F64)


def bound_exponent(values: torch.Tensor) -> torch.Tensor:
    """Return the int64 e, at least -400, with `values < 2**e`, for float64 values >= 0."""
    return ((values.view(I64) >> 52) - 1022).clamp_min(_LEAST_EXPONENT)


def tree_sum(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """Sum float64 values along a dimension, which is kept, in the fixed tree of `exact.sum`."""
    size = values.shape[dim]
    if size < 2:
        return tree_sum_(values.clone(), dim)
    half = size // 2
    sums = values.narrow(dim, 0, half) + values.narrow(dim, half, half)
    if size & 1:
        sums.narrow(dim, 0, 1).add_(values.narrow(dim, size - 1, 1))
    return tree_sum_(sums, dim)


def tree_sum_(values: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The same; overwrites the values."""
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
    """Return the rounder for vectors by the tree sums of their squares.

    The grid is the least power of two (up to a factor of two) such that a vector of `size` entries whose squared
    norm is at most `squares`, rounded to multiples of it, has a norm of at most 2**26.5 grids: rounding adds at
    most `sqrt(size) / 2` grids to the norm. With `budget = 94906265 - (isqrt(size) // 2 + 1)` and the float64
    product `bound = squares * ((1 + 2**-40) / budget**2)`, whose exponent's bits are E (`2**(E - 1023) <= bound`),
    it is `2**((E - 1021) // 2)`. A vector whose norm is not finite gets NaN.

    Args:
        squares: float64, >= 0, may be too small by a factor of 1 + 2**-41.
        size: number of entries of each vector, at most 2**50.
    """
    return _rounder_of_bits(*_bits_of_bound(squares, size))


def round_rows(rows: torch.Tensor, slot: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row of `[n, k]`, float32 or float64, to the grid of its norm; return float64 and the rounders.

    The norms are by definition trees' sums. Any other order of summation serves as well, unless the bound that it
    gives is so near the limit between two grids that the tree's might lie beyond it.
    """
    wide, rounders = memory(rows.shape, rows.device, slot), rows.new_empty((len(rows), 1), dtype=F64)

    def round_(block: slice) -> None:
        part = wide[block].copy_(rows[block])
        magic = rounders[block].copy_(_rounder_of_rows(part))
        part.add_(magic).sub_(magic)

    for_each_block(rows, round_)
    return wide, rounders


def _rounder_of_rows(rows: torch.Tensor) -> torch.Tensor:
    size = rows.shape[1]
    bits, nan = _bits_of_bound((rows * rows).sum(1, keepdim=True), size)
    slack = 4 * size + 64  # units in the last place: twice what n additions in any order can differ by
    if not torch.equal((bits - slack) >> 53, (bits + slack) >> 53):
        bits, nan = _bits_of_bound(tree_sum_(rows * rows), size)
    return _rounder_of_bits(bits, nan)


def _bits_of_bound(squares: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bound's bits less 1021 << 52, so that the grid's exponent is bits >> 53; and 0, or NaN."""
    budget = float(NORM_BUDGET - (math.isqrt(size) // 2 + 1))
    bound = squares * (_MARGIN / (budget * budget))
    return bound.view(I64) - (1021 << 52), bound.mul_(0.0)


def _rounder_of_bits(bits: torch.Tensor, nan: torch.Tensor) -> torch.Tensor:
    return rounder(bits >> 53).add_(nan)
