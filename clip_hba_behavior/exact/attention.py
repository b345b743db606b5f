"""Attention over all tokens."""

import math
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.elementary import LOG2_E
from clip_hba_behavior.exact.grid import F64, widen
from clip_hba_behavior.exact.normalization import softmax_, softmax_gradient_
from clip_hba_behavior.exact.product import product


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    causal: bool = False,
    scale: float | None = None,
) -> torch.Tensor:
    """Return `softmax(query @ key.T * scale) @ value`, `[..., queries, channels]`, with gradients.

    Definition: the queries are multiplied in float64 by `f = scale * log2(e)`, a float64 product; the exponents t
    are their exact product (`product.product`) with the keys, not rounded; `exact.softmax`'s rows from these t on,
    rounded once; the context is their exact product with the values. In backward, with the gradient g and the
    rounded probabilities P, the gradients are exact products too: `P.T @ g` to the values; `g @ value.T` to P, not
    rounded; `exact.softmax`'s from there, not rounded, times the scale, not rounded either; that S gives `S @ key`
    and `S.T @ query`. A key that is hidden has the exponent -inf, and counts in a row's length. The result for a
    sample and a head depends on its own numbers alone. Accuracy: no worse than float32's own.

    Args:
        query: `[..., queries, dim]`, leading dimensions such as batch and heads; float32 or float64.
        key: `[..., tokens, dim]`, the same leading dimensions.
        value: `[..., tokens, channels]`.
        causal: query i sees the tokens 0 to i alone.
        scale: `1 / sqrt(dim)` where none is given.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    shapes = [list(tensor.shape) for tensor in (query, key, value)]
    if (
        query.dim() < 2
        or not query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        or query.shape[-1] != key.shape[-1]
        or key.shape[-2] != value.shape[-2]
        or not query.dtype == key.dtype == value.dtype
    ):
        raise ValueError(
            f"exact.attention cannot combine these\n"
            f"  found:    {shapes}, {query.dtype} {key.dtype} {value.dtype}\n"
            "  expected: [..., queries, dim], [..., tokens, dim] and [..., tokens, channels] of one dtype"
        )
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    return apply(_Attention, query, key, value, causal, factor)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool, scale: float
    ) -> torch.Tensor:
        exponents = product(widen(query, "the query").mul_(scale * LOG2_E), key)
        if causal:
            hidden = torch.ones(exponents.shape[-2:], dtype=torch.bool, device=exponents.device).triu(1)
            exponents.masked_fill_(hidden, -torch.inf)
        probabilities = softmax_(exponents).to(query.dtype)
        ctx.save_for_backward(query, key, value, probabilities)
        ctx.scale = scale
        return product(probabilities, value.mT, dtype=query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, probabilities = ctx.saved_tensors
        to_value = product(probabilities.mT, grad.mT, dtype=value.dtype)
        to_scores = softmax_gradient_(product(grad, value), probabilities.to(F64)).mul_(ctx.scale)
        to_query = product(to_scores, key.mT, dtype=query.dtype)
        to_key = product(to_scores.mT, query.mT, dtype=key.dtype)
        return to_query, to_key, to_value, None, None
