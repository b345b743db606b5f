"""Softmax, layer norm and scaling to a length: functions of rows, by fixed trees within the row."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.elementary import LOG2_E, power_of_two_, square_root
from clip_hba_behavior.exact.grid import F64, for_each_block, tree_sum, tree_sum_, widen
from clip_hba_behavior.exact.totals import ONE_PROCESS, Reduce, bits_for_sums, column_totals


def softmax(values: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the last dimension, in the values' dtype, with a gradient.

    Definition: in float64, `t = x * log2(e)` and powers `p = 2**(t - max(t))` by `elementary.power_of_two_`, none
    above 1; their sum s, each rounded for it to a multiple of `2**(ceil(log2(k)) - 53)`, k the row's length and at
    least 4, ties to even, so that it is exact in any order: at most `k * 2**-ceil(log2(k)) * 2**53` of these
    units; `p * (1 / s)`, rounded once. Entries may be -inf. The gradient is `(g - sum(g * p)) * p`, p the rounded
    result, in float64 with `exact.sum`'s tree, rounded once. Accuracy: 2**-36 relative before the rounding, for
    rows of up to 256 entries and entries of at least 2**-1000.

    Args:
        values: `[..., k]`, float32 or float64.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return apply(_Softmax, values)


def layer_norm(
    values: torch.Tensor,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    reduce: Reduce = ONE_PROCESS,
) -> torch.Tensor:
    """Return the values, normalized over the last dimension, times weight, plus bias, in their dtype.

    Definition: in float64, mean and variance (of the differences from the mean) in `exact.sum`'s tree, multiplied
    by the float64 reciprocal of their number; r is the reciprocal of `exact.sqrt`'s root of the variance plus eps;
    with `u = (x - mean) * r` the result is `u * weight + bias`, rounded once. With the gradient g and `d = g *
    weight`, the one to the values is `((d - mean(d)) - u * mean(d * u)) * r`, in float64 with means as before,
    rounded once; those to weight and bias are `exact.column_totals` of `g * u` (float64) and g, over all rows of
    all processes, rounded once. Accuracy: that of the rounding.

    Args:
        values: `[..., k]`, float32 or float64.
        weight: `[k]`.
        bias: `[k]`.
        eps: added to the variance.
        reduce: how the gradients of weight and bias are summed up over processes.

    Raises:
        ValueError: the shapes do not fit, or the dtype is neither float32 nor float64.
    """
    for name, vector in (("weight", weight), ("bias", bias)):
        found = list(vector.shape) if isinstance(vector, torch.Tensor) else vector
        if vector is not None and found != [values.shape[-1]]:
            raise ValueError(
                f"exact.layer_norm cannot take this {name}\n  found:    {found}\n"
                f"  expected: a tensor [{values.shape[-1]}], as long as the last dimension"
            )
    return apply(_LayerNorm, values, weight, bias, eps, reduce)


def normalize(
    values: torch.Tensor, dim: int = -1, length: torch.Tensor | None = None, eps: float = 1e-12
) -> torch.Tensor:
    """Return the values, scaled along a dimension to a Euclidean length, in their dtype, with gradients.

    Definition: in float64, the norm by `exact.sum`'s tree of the squares and `exact.sqrt`'s root; the values times
    `factor = length / (norm + eps)`, rounded once. With the gradient g and `t` the tree's sum of `g * values`, the
    gradient to the length is `t / (norm + eps)`, the one to the values `g * factor - values * (t * factor / ((norm
    + eps) * norm))`, its second term 0 where the norm is 0; each is rounded once. Accuracy: that of the rounding.

    Args:
        values: float32 or float64.
        dim: along which the norm is taken.
        length: one for each norm, `values.numel() / values.shape[dim]` of them; 1 where none is given.
        eps: added to the norm.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return apply(_Normalize, values, dim, length, eps)


def softmax_(exponents: torch.Tensor) -> torch.Tensor:
    """Return the powers of two of float64 rows `[..., k]`, over their sum; overwrites the rows."""
    powers = power_of_two_(exponents.sub_(exponents.amax(-1, keepdim=True)))
    # of fewer than three the grid would be too fine for its rounder, which holds for less than 1 then
    magic = 1.5 * 2.0 ** (52 - bits_for_sums(53, max(4, powers.shape[-1])))
    total = (powers + magic).sub_(magic).sum(-1, keepdim=True)
    return powers.mul_(total.reciprocal_())


def softmax_gradient_(grad: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """Return the gradient to softmax's input, `p * (g - sum(p * g))`; float64; overwrites the gradient."""
    return grad.sub_(tree_sum_(grad * probabilities)).mul_(probabilities)


class _Softmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        result = torch.empty_like(rows)

        def compute(block: slice) -> None:
            result[block].copy_(softmax_(widen(rows[block]).mul_(LOG2_E)))

        for_each_block(rows, compute)
        result = result.view(values.shape)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (probabilities,) = ctx.saved_tensors
        return softmax_gradient_(widen(grad), probabilities.to(F64)).to(grad.dtype)


class _Normalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, dim: int, length: torch.Tensor | None, eps: float) -> torch.Tensor:
        ctx.save_for_backward(values, length)
        ctx.dim, ctx.eps = dim, eps
        wide = widen(values)
        _, factor = _length_and_factor(wide, dim, length, eps)
        return wide.mul_(factor).to(values.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, length = ctx.saved_tensors
        wide, slope = widen(values), widen(grad)
        norm, factor = _length_and_factor(wide, ctx.dim, length, ctx.eps)
        along = tree_sum_(slope * wide, ctx.dim).clone()
        padded = norm + ctx.eps
        to_values = to_length = None
        if ctx.needs_input_grad[0]:
            radial = torch.where(norm == 0, 0.0, along * factor / (padded * norm))
            to_values = slope.mul_(factor).sub_(wide.mul_(radial)).to(values.dtype)
        if ctx.needs_input_grad[2]:
            to_length = (along / padded).to(length.dtype).view(length.shape)
        return to_values, None, to_length, None


def _length_and_factor(
    wide: torch.Tensor, dim: int, length: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return norms along a dimension, which is kept, and what scales to the length; float64."""
    norm = square_root(tree_sum_(wide * wide, dim))
    wanted = torch.ones_like(norm) if length is None else widen(length, "the length").view(norm.shape)
    return norm, wanted / (norm + eps)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        eps: float,
        reduce: Reduce,
    ) -> torch.Tensor:
        rows = values.reshape(-1, values.shape[-1])
        gain = None if weight is None else widen(weight, "the weight")
        shift = None if bias is None else widen(bias, "the bias")
        result = torch.empty_like(rows)
        mean, inverse = rows.new_empty((2, len(rows), 1), dtype=F64)
        reciprocal = 1.0 / rows.shape[-1]

        def compute(block: slice) -> None:
            part = widen(rows[block])
            part.sub_(torch.mul(tree_sum(part), reciprocal, out=mean[block]))
            variance = tree_sum_(part * part).mul_(reciprocal)
            part.mul_(torch.reciprocal(square_root(variance.add_(eps)), out=inverse[block]))
            if gain is not None:
                part.mul_(gain)
            if shift is not None:
                part.add_(shift)
            result[block].copy_(part)

        for_each_block(rows, compute)
        ctx.save_for_backward(values, weight, bias, mean, inverse)
        ctx.reduce = reduce
        return result.view(values.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        values, weight, bias, mean, inverse = ctx.saved_tensors
        rows, grad_rows = values.reshape(-1, values.shape[-1]), grad.reshape(-1, values.shape[-1])
        to_values = torch.empty_like(rows)
        to_weight_rows = torch.empty_like(rows, dtype=F64) if ctx.needs_input_grad[1] else None
        gain = None if weight is None else widen(weight)
        reciprocal = 1.0 / rows.shape[-1]

        def compute(block: slice) -> None:
            part = widen(rows[block]).sub_(mean[block]).mul_(inverse[block])
            slope = widen(grad_rows[block])
            if to_weight_rows is not None:
                torch.mul(slope, part, out=to_weight_rows[block])
            if gain is not None:
                slope.mul_(gain)
            common = tree_sum(slope).mul_(reciprocal)
            along = tree_sum_(slope * part).mul_(reciprocal)
            slope.sub_(common).sub_(part.mul_(along)).mul_(inverse[block])
            to_values[block].copy_(slope)

        for_each_block(rows, compute)
        to_weight = to_bias = None
        if to_weight_rows is not None:
            to_weight = column_totals(to_weight_rows, ctx.reduce).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            to_bias = column_totals(grad_rows, ctx.reduce).to(bias.dtype)
        return to_values.view(values.shape), to_weight, to_bias, None, None
