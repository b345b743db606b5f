"""What torch's autograd leaves open: types, and the order in which gradients are added."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.grid import F64, for_each_block, widen


def apply(function: Any, *arguments: object) -> torch.Tensor:
    """Return what a `torch.autograd.Function` makes of its arguments."""
    result: torch.Tensor = function.apply(*arguments)
    return result


def branches(values: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
    """Return the values several times, for as many uses of them.

    Definition: the gradient is the sum of the branches' gradients, added in float64 in the branches' order and
    rounded once. Autograd adds what comes from more than two uses in an order of its own. Accuracy: that of the
    rounding.

    Args:
        values: any shape, float32 or float64.
        number: of branches.
    """
    result: tuple[torch.Tensor, ...] = _Branches.apply(values, number)  # type: ignore[no-untyped-call]
    return result


class _Branches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(values.view_as(values) for _ in range(number))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, None]:
        given = [grad for grad in grads if grad is not None]
        if not given:
            return None, None
        shape = given[0].shape
        rows = [grad.reshape(-1, shape[-1] if shape else 1) for grad in given]
        result = torch.empty_like(rows[0])

        def add(block: slice) -> None:
            total = widen(rows[0][block])
            for other in rows[1:]:
                total.add_(other[block].to(F64))
            result[block].copy_(total)

        for_each_block(result, add)
        return result.view(shape), None
