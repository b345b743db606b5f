"""Totals over any number of rows, in any order, cut among any number of processes, with the same bits."""

from typing import Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.grid import F64, I64, blocks, bound_exponent, rounder, widen


class Reduce(Protocol):
    """How processes that hold parts of the rows put together what they have; all get the result.

    All that is summed up is exact: the sums may be formed in any order.
    """

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise maximum, float64, over all processes."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise sum, float64 or int64, over all processes."""


class _OneProcess:
    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values


ONE_PROCESS: Reduce = _OneProcess()


def count_rows(rows: torch.Tensor, reduce: Reduce) -> int:
    """Return the number of rows of all processes."""
    return int(reduce.sum(torch.tensor([len(rows)], dtype=I64, device=rows.device)).item())


def largest_of_columns(rows: torch.Tensor, reduce: Reduce) -> torch.Tensor:
    """Return the largest magnitude in each column `[k]` over the rows `[n, k]` of all processes, float64."""
    largest = rows.detach().abs().amax(0).to(F64) if len(rows) else rows.new_zeros(rows.shape[1], dtype=F64)
    return reduce.maximum(largest)


def rounder_of_largest(largest: torch.Tensor, bits: int) -> torch.Tensor:
    """Return the rounders that leave numbers up to `largest` at most 2**bits grids; NaN if it is not finite."""
    return torch.where(torch.isfinite(largest), rounder(bound_exponent(largest) - bits), torch.nan)


def bits_for_sums(bits: int, num_rows: int) -> int:
    """Return `bits - ceil(log2(num_rows))`: what one integer a row may have, for a sum of at most 2**bits."""
    return bits - (max(1, num_rows) - 1).bit_length()


def column_totals(rows: torch.Tensor, reduce: Reduce = ONE_PROCESS) -> torch.Tensor:
    """Return the sum of each column `[k]` over the rows `[n, k]` of all processes; float64, without a gradient.

    Definition: with `2**e` the least power of two above a column's largest magnitude, e at least -400, and n the
    number of all rows, each entry is rounded to a multiple of `2**(e - bits)`, `bits = 51 - ceil(log2 n)`, ties to
    even. Then all partial sums are at most 2**51 grids, so exact, in any order.

    Accuracy: an entry moves by at most n / 2**51 of the largest: for a million rows 2**-31.

    Args:
        rows: `[n, k]`, float32 or float64.
        reduce: puts the rows of several processes together.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    largest = largest_of_columns(rows, reduce)
    magic = rounder_of_largest(largest, bits_for_sums(51, count_rows(rows, reduce)))
    total = torch.zeros_like(largest)
    for block in blocks(rows):
        total += widen(rows[block]).add_(magic).sub_(magic).sum(0)
    return reduce.sum(total)


def total(values: torch.Tensor, reduce: Reduce = ONE_PROCESS) -> torch.Tensor:
    """Return the sum of all entries of all processes, a scalar in the values' dtype, with a gradient.

    Definition and accuracy are those of `exact.column_totals` with all values in one column: the sum depends
    neither on their order nor on how they are cut.

    Args:
        values: any shape, float32 or float64.
        reduce: puts the entries of several processes together.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return apply(_Total, values, reduce)


def mse_loss(predictions: torch.Tensor, targets: torch.Tensor, reduce: Reduce = ONE_PROCESS) -> torch.Tensor:
    """Return the mean squared difference of all entries of all processes, a scalar in the predictions' dtype.

    Definition: differences and squares in float64, their `exact.total`, times the float64 reciprocal of their
    number, rounded once. The gradient to the predictions is `2 / number` times the difference, times the gradient
    to the loss, in float64, rounded once. Accuracy: that of `exact.total` and the rounding.

    Args:
        predictions: `[n, ...]`, float32 or float64.
        targets: the same shape; gets no gradient.
        reduce: how the rows of several processes are put together.

    Raises:
        ValueError: the shapes differ, there are no entries in any process, or a dtype is another.
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"exact.mse_loss cannot compare these\n  found:    predictions {list(predictions.shape)}, "
            f"targets {list(targets.shape)}\n  expected: one shape"
        )
    return apply(_MeanSquare, predictions, targets, reduce)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, reduce: Reduce) -> torch.Tensor:
        ctx.shape = values.shape
        return column_totals(values.reshape(-1, 1), reduce)[0].to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.expand(ctx.shape), None


class _MeanSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, predictions: torch.Tensor, targets: torch.Tensor, reduce: Reduce) -> torch.Tensor:
        difference = widen(predictions, "the predictions").sub_(widen(targets, "the targets"))
        column = difference.view(-1, 1)
        ctx.save_for_backward(difference)
        number = count_rows(column, reduce)
        if number == 0:
            raise ValueError("exact.mse_loss cannot average no entries\n  found:    0\n  expected: at least 1")
        ctx.reciprocal, ctx.dtype = 1.0 / number, predictions.dtype
        squares = column_totals(column * column, reduce)[0]
        return squares.mul(ctx.reciprocal).to(predictions.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return (difference * (2.0 * ctx.reciprocal)).mul_(grad.to(F64)).to(ctx.dtype), None, None
