"""Sums and norms along one dimension, in a fixed tree of additions."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.elementary import square_root
from clip_hba_behavior.exact.grid import F64, tree_sum_, widen


def sum(values: torch.Tensor, dim: int = -1, keepdim: bool = False) -> torch.Tensor:
    """Return the sums along a dimension, in the values' dtype, with a gradient.

    Definition: in float64; while there are n > 1 values, `h = n // 2`, `x[:h] += x[h:2h]`, if n is odd also
    `x[0] += x[n - 1]`, and n becomes h. Rounded once at the end. The order is part of the definition: another
    order of the values may give other bits; for sums that must not depend on it see `exact.total`.

    Accuracy: at most `2 * log2(n)` float64 roundings, relative to the sum of the magnitudes.

    Args:
        values: any shape, float32 or float64.
        dim: along which the sums are taken.
        keepdim: leave that dimension, of size 1.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    result = apply(_Sum, values, dim)
    return result if keepdim else result.squeeze(dim)


def norm(values: torch.Tensor, dim: int = -1, keepdim: bool = False) -> torch.Tensor:
    """Return the Euclidean norms along a dimension, in the values' dtype, with a gradient: 0 where the norm is.

    Definition: squares in float64, `exact.sum`'s tree, `exact.sqrt`'s root, rounded once. The gradient is `values
    / norm * g`, with the norm before its rounding, in float64, rounded once. Accuracy: that of the rounding, as
    long as the squares stay within float64's range.

    Args:
        values: any shape, float32 or float64.
        dim: along which the norms are taken.
        keepdim: leave that dimension, of size 1.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    result = apply(_Norm, values, dim)
    return result if keepdim else result.squeeze(dim)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, dim: int) -> torch.Tensor:
        ctx.shape = values.shape
        return tree_sum_(widen(values), dim).to(values.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.expand(ctx.shape), None


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, dim: int) -> torch.Tensor:
        squares = widen(values)
        norms = square_root(tree_sum_(squares.mul_(squares), dim))
        ctx.save_for_backward(values, norms)
        return norms.to(values.dtype, copy=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        values, norms = ctx.saved_tensors
        unit = torch.where(norms == 0, 0.0, values.to(F64) / norms)
        return unit.mul_(grad.to(F64)).to(values.dtype), None
