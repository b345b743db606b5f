"""Products of matrices whose bits are defined by their numbers alone."""

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.cross import cross
from clip_hba_behavior.exact.engine import Rows, multiply, narrowed, on_grids, prepared
from clip_hba_behavior.exact.grid import F64, check_dtype, for_each_block, widen
from clip_hba_behavior.exact.totals import ONE_PROCESS, Reduce, column_totals

CHUNK = 1024  # part of the definition: longer reductions are cut
_AT_ONCE = {"cpu": 3 << 20, "cuda": 1 << 26}  # entries of a factor or a result; of the engine: changes no bits


class Operand:
    """The second factor of products, rounded to its grids once.

    Args:
        matrix: `[..., n, k]`, float32 or float64; products reduce over k.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self.shape = matrix.shape
        check_dtype(matrix, "the matrix")
        with torch.no_grad():
            self.chunks = [on_grids(chunk) for chunk in matrix.split(CHUNK, dim=-1)]


class FrozenWeight:
    """A weight of `exact.linear` that needs no gradient, rounded to its grids once for forward and backward.

    Args:
        weight: `[out, in]`, float32 or float64.

    Raises:
        ValueError: the dtype is another.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.forward = Operand(weight.detach())
        self.backward = Operand(weight.detach().T)
        for operand in (self.forward, self.backward):
            operand.chunks = [narrowed(chunk) for chunk in operand.chunks]


def product(
    left: torch.Tensor,
    right: torch.Tensor | Operand,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype = F64,
) -> torch.Tensor:
    """Return `left @ right.mT + bias`, `[..., m, n]`, without a gradient.

    Definition: the reduced dimension k is cut into chunks of 1,024. In each, every row of left and of right is
    rounded to the grid of its norm (`grid.rounder_of_norm`); the products of the rounded rows are computed
    exactly (`engine.multiply` has the proof). The chunks' results are added in order in float64, then the bias,
    and the sum is rounded once to the dtype. A zero is positive.

    Accuracy: rounding a row of k entries moves each by at most half a grid, which is at most 2**-25.5 of the row's
    norm in its chunk. The result's error relative to the product of the two norms is about `sqrt(2 / 12) * 2**-26`
    (rms), whatever the row's outliers: 2e-7 of a typical result at k = 1024, where float32's own sums have 2.5e-7.

    Args:
        left: `[..., m, k]`, float32 or float64.
        right: `[..., n, k]`, the same leading dimensions, or its operand.
        bias: `[n]` float64.
        dtype: of the result.
    """
    check_dtype(left, "the matrix")
    operand = right if isinstance(right, Operand) else Operand(right)
    result = left.new_empty((*left.shape[:-1], operand.shape[-2]), dtype=dtype)
    if left.dim() > 2:
        products = _product_of_chunks(left, operand.chunks)
        _finish(products.flatten(0, -2), bias, result.flatten(0, -2))
        return result
    step = max(64, _AT_ONCE[left.device.type] // max(1, *operand.shape))
    chunks = [prepared(chunk) for chunk in operand.chunks]
    for start in range(0, len(left), step):
        products = _product_of_chunks(left[start : start + step], chunks)
        _finish(products, bias, result[start : start + step])
    return result


def matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `a @ b`, `[..., m, n]` in a's dtype, with gradients to both that are exact products too.

    Definition and accuracy are those of `product.product`; the gradients are `g @ b.T` and `a.T @ g`. A row of the
    result depends on its row of a and on b alone, so that a may be cut into rows or batches, or these be put into
    another order. Where k is at most 1,024, k may be put into another order too, up to the norms' trees.

    Args:
        a: `[..., m, k]`, float32 or float64.
        b: `[..., k, n]`, the same dtype and leading dimensions.

    Raises:
        ValueError: the shapes or dtypes do not fit.
    """
    if (
        a.dim() < 2
        or b.dim() < 2
        or a.shape[:-2] != b.shape[:-2]
        or a.shape[-1] != b.shape[-2]
        or a.dtype != b.dtype
    ):
        raise ValueError(
            "exact.matmul cannot multiply these\n"
            f"  found:    {list(a.shape)} {a.dtype} and {list(b.shape)} {b.dtype}\n"
            "  expected: [..., m, k] and [..., k, n] of one dtype; for a batch times one matrix: exact.linear"
        )
    return apply(_Matmul, a, b)


def linear(
    inputs: torch.Tensor,
    weight: torch.Tensor | FrozenWeight,
    bias: torch.Tensor | None = None,
    reduce: Reduce = ONE_PROCESS,
) -> torch.Tensor:
    """Return `inputs @ weight.T + bias`, `[..., out]` in the inputs' dtype, rounded once.

    Definition and accuracy are those of `product.product`; so is the gradient to the inputs, `g @ weight`. Those
    of weight and bias are sums over all rows of all processes, `exact.cross(g, inputs)` and
    `exact.column_totals(g)`, rounded once, so that the rows may be cut and ordered in any way.

    Args:
        inputs: `[..., in]`, float32 or float64.
        weight: `[out, in]`; one that stays frozen may be given as a `FrozenWeight`.
        bias: `[out]`.
        reduce: how the gradients of weight and bias are summed up over processes; each of them then gets the sum.

    Raises:
        ValueError: the shapes or dtypes do not fit; in backward, there are more than 2**21 rows over all
            processes.
    """
    shape = weight.forward.shape if isinstance(weight, FrozenWeight) else weight.shape
    if len(shape) != 2 or inputs.dim() == 0 or inputs.shape[-1] != shape[1]:
        raise ValueError(
            f"exact.linear cannot multiply these\n  found:    inputs {list(inputs.shape)}, weight {list(shape)}\n"
            "  expected: [..., in] and [out, in]"
        )
    if bias is not None and bias.shape != shape[:1]:
        raise ValueError(
            f"exact.linear cannot add this bias\n  found:    {list(bias.shape)}\n  expected: {list(shape[:1])}"
        )
    tensor = weight if isinstance(weight, torch.Tensor) else None
    frozen = weight if isinstance(weight, FrozenWeight) else None
    return apply(_Linear, inputs, tensor, frozen, bias, reduce)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b.mT, dtype=a.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        a, b = ctx.saved_tensors
        to_a = product(grad, b, dtype=a.dtype) if ctx.needs_input_grad[0] else None
        to_b = product(a.mT, grad.mT, dtype=b.dtype) if ctx.needs_input_grad[1] else None
        return to_a, to_b


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight: torch.Tensor | None,
        frozen: FrozenWeight | None,
        bias: torch.Tensor | None,
        reduce: Reduce,
    ) -> torch.Tensor:
        rows = inputs.reshape(-1, inputs.shape[-1])
        ctx.save_for_backward(rows if ctx.needs_input_grad[1] else None, weight, bias)
        ctx.frozen, ctx.reduce, ctx.shape = frozen, reduce, inputs.shape
        right = weight if frozen is None else frozen.forward
        assert right is not None
        wide_bias = None if bias is None else widen(bias, "the bias")
        result = product(rows, right, wide_bias, inputs.dtype)
        return result.view(*inputs.shape[:-1], result.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs, weight, bias = ctx.saved_tensors
        grad_rows = grad.reshape(-1, grad.shape[-1])
        to_inputs = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            right = weight.T if ctx.frozen is None else ctx.frozen.backward
            to_inputs = product(grad_rows, right, dtype=grad.dtype).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            to_weight = cross(grad_rows, inputs, ctx.reduce).to(weight.dtype)
        if ctx.needs_input_grad[3]:
            to_bias = column_totals(grad_rows, ctx.reduce).to(bias.dtype)
        return to_inputs, to_weight, None, to_bias, None


def _product_of_chunks(left: torch.Tensor, right: list[Rows]) -> torch.Tensor:
    """Return the sum of the chunks' products, in memory that the next call overwrites."""
    total: torch.Tensor | None = None
    for a, b in zip(left.split(CHUNK, dim=-1), right, strict=True):
        products = multiply(on_grids(a, "left"), b, "total" if total is None else "chunk")
        total = products if total is None else total.add_(products)
    assert total is not None
    return total


def _finish(products: torch.Tensor, bias: torch.Tensor | None, result: torch.Tensor) -> None:
    """Write the products plus the bias; adding zero makes a zero positive."""
    added = 0.0 if bias is None else bias + 0.0

    def finish(block: slice) -> None:
        result[block].copy_(products[block].add_(added))

    for_each_block(products, finish)
