"""The second implementation's functions beside the package's, byte by byte."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from clip_hba_behavior import exact
from clip_hba_behavior.exact.product import product
from clip_hba_behavior.rsa import portable
from clip_hba_behavior.training import learning_rate
from second_implementation import numerics, statistics
from second_implementation.numerics import F32, F64, Array


def normal(*shape: int, seed: int = 0, dtype: Any = F32) -> Array:
    """Normal numbers, the second column larger, the third row smaller, the fourth 0."""
    x = np.random.default_rng(seed).standard_normal(shape)
    x[..., 1:2] *= 1000.0
    if len(shape) > 1:
        x[..., 2:3, :] *= 1e-3
        x[..., 3:4, :] = 0.0
    return x.astype(dtype)


def assert_same(ours: Any, theirs: Any) -> None:
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert ours.tobytes() == theirs.tobytes()


def assert_same_with_gradients(
    ours: Callable[..., Any], theirs: Callable[..., torch.Tensor], *inputs: Array
) -> None:
    """Compare a function's value, and its gradients to all inputs, from a gradient of normal numbers."""
    tensors = [torch.from_numpy(each.copy()).requires_grad_() for each in inputs]
    value, back = ours(*inputs)
    result = theirs(*tensors)
    assert_same(value, result)
    grad = normal(*value.shape, seed=9)
    result.backward(torch.from_numpy(grad.copy()))
    gradients = back(grad)
    for ours_, tensor in zip(gradients if isinstance(gradients, tuple) else (gradients,), tensors, strict=True):
        assert_same(ours_, tensor.grad)


NUMBERS = np.concatenate([normal(50_000), 10 * normal(50_000, seed=1), np.arange(-9, 9, 0.25, F32)])
ROWS = normal(20, 77, seed=2)
GAIN, SHIFT = normal(77, seed=3), normal(77, seed=4)
HEADS = [normal(2, 3, 50, 16, seed=seed) for seed in (1, 2, 3)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64, 1024, 1500])
def test_products(size: int) -> None:
    a, b = normal(40, size, seed=1), normal(30, size, seed=2)
    assert_same(numerics.product(a, b), product(torch.from_numpy(a), torch.from_numpy(b)))
    assert_same_with_gradients(numerics.matmul, exact.matmul, a, b.T)


def test_the_products_of_the_rounded_rows_are_those_of_integers() -> None:
    a, b = (normal(3, 200, seed=seed, dtype=F64) for seed in (1, 2))
    products = numerics.product(a, b)
    a, b = (numerics.to_grid(each, numerics.row_grids(each)) for each in (a, b))
    for i, row in enumerate(a):
        for j, other in enumerate(b):
            exactly = sum((Fraction(x) * Fraction(y) for x, y in zip(row, other, strict=True)), Fraction(0))
            assert Fraction(products[i, j]) == exactly


def test_linear() -> None:
    x, weight, bias = normal(4, 9, 64, seed=1), normal(32, 64, seed=2), normal(32, seed=3)

    def ours(x: Array, weight: Array, bias: Array) -> Any:
        value, back = numerics.linear(x, weight, bias)
        return value, lambda g: (
            back(g),
            back(g, to_weight=True),
            numerics.column_totals(g.reshape(-1, 32)).astype(F32),
        )

    assert_same_with_gradients(ours, exact.linear, x, weight, bias)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000, 4097])
def test_sums_over_rows(rows: int) -> None:
    x, y = (normal(rows, 5, seed=seed, dtype=dtype) for seed, dtype in ((1, F32), (2, F64)))
    assert_same(numerics.cross(x, y), exact.cross(torch.from_numpy(x), torch.from_numpy(y)))
    assert_same(numerics.column_totals(y), exact.column_totals(torch.from_numpy(y)))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 66, 1000])
def test_sums_in_a_tree(size: int) -> None:
    x = normal(9, size, seed=1, dtype=F64)
    assert_same(numerics.tree_sum(x), exact.sum(torch.from_numpy(x), keepdim=True))
    assert_same(numerics.norm(x.astype(F32)), exact.norm(torch.from_numpy(x.astype(F32))))


def test_another_order_of_a_sum_gives_other_bits() -> None:
    x = normal(9, 1000, seed=1, dtype=F64)
    assert numerics.tree_sum(x).tobytes() != x.sum(-1, keepdims=True).tobytes()


@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_activations(name: str) -> None:
    assert_same_with_gradients(getattr(numerics, name), getattr(exact, name), NUMBERS)


def test_functions_of_single_numbers() -> None:
    for dtype in (F32, F64):
        x = np.clip(NUMBERS, -120.0, 80.0).astype(dtype)  # to underflow, but not to overflow
        tensor = torch.from_numpy(x)
        assert_same(numerics.exp(x), exact.exp(tensor))
        assert_same(numerics.erf(x), exact.erf(tensor))
        assert_same(numerics.power_of_two(x.astype(F64)).astype(dtype), exact.exp2(tensor))
        assert_same(numerics.root(abs(x).astype(F64)).astype(dtype), exact.sqrt(tensor.abs()))


@pytest.mark.parametrize("size", [1, 2, 3, 5, 77])
def test_softmax(size: int) -> None:
    assert_same_with_gradients(numerics.softmax, exact.softmax, normal(500, size, seed=1))
    x = np.random.default_rng(1).standard_normal((5000, size))
    assert_same(numerics.softmax_rows(x * numerics.LOG2_E), exact.softmax(torch.from_numpy(x)))


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    assert_same_with_gradients(
        lambda *inputs: numerics.attention(*inputs, causal),
        lambda *inputs: exact.attention(*inputs, causal=causal),
        *HEADS,
    )


def test_layer_norm() -> None:
    assert_same_with_gradients(
        lambda x: numerics.layer_norm(x, GAIN, SHIFT),
        lambda x: exact.layer_norm(x, torch.from_numpy(GAIN), torch.from_numpy(SHIFT)),
        ROWS,
    )


def test_normalize() -> None:
    x = np.delete(ROWS, 3, axis=0)  # a vector of zeros has no direction
    assert_same_with_gradients(
        lambda x, length: numerics.normalize(x, 0, length, 1e-8),
        lambda x, length: exact.normalize(x, 0, length, 1e-8),
        x,
        GAIN,
    )
    assert_same(numerics.normalize(x, -1)[0], exact.normalize(torch.from_numpy(x)))


def test_branches() -> None:
    grads = [normal(1000, 8, seed=seed) for seed in (1, 2, 3)]
    x = torch.zeros(1000, 8, requires_grad=True)
    for branch, grad in zip(exact.branches(x, 3), grads, strict=True):
        branch.backward(torch.from_numpy(grad), retain_graph=True)
    together = torch.zeros(1000, 8, requires_grad=True)
    torch.autograd.backward(exact.branches(together, 3), [torch.from_numpy(each) for each in grads])
    assert_same(numerics.branches_gradient(*grads), together.grad)


def test_dropout() -> None:
    seed, numbers = 2**40 + 7, (3, 2, 5)
    draw = exact.Draw(seed, *numbers)
    assert_same_with_gradients(
        lambda x: numerics.dropout(x, 0.1, seed, *numbers), lambda x: exact.dropout(x, 0.1, draw), normal(13, 77)
    )


def test_mse_loss() -> None:
    for dtype in (F32, F64):
        predictions, targets = (normal(16, 66, seed=seed, dtype=dtype) for seed in (1, 2))
        tensor = torch.from_numpy(predictions.copy()).requires_grad_()
        loss, gradient = numerics.mse_loss(predictions, targets)
        theirs = exact.mse_loss(tensor, torch.from_numpy(targets))
        theirs.backward()
        assert_same(loss, theirs)
        assert_same(gradient, tensor.grad)


def test_adamw() -> None:
    p = normal(32, 64, seed=1)
    parameter = torch.nn.Parameter(torch.from_numpy(p.copy()))
    optimizer = exact.AdamW([parameter], lr=1e-3, weight_decay=0.01)
    zeros = np.zeros_like(p)
    state = {"beta1_power": 1.0, "beta2_power": 1.0, "exp_avg": zeros, "exp_avg_sq": zeros}
    for step in range(20):
        grad = normal(32, 64, seed=step)
        parameter.grad = torch.from_numpy(grad)
        optimizer.step()
        p = numerics.adamw_step(state, p, grad, 1e-3, 0.01)
        assert_same(p, parameter)


def test_rank_correlation_and_its_p() -> None:
    embeddings, others = (np.random.default_rng(seed).standard_normal((48, 66)).astype(F32) for seed in (1, 2))
    human = statistics.correlation_distances(embeddings + others)
    distances = statistics.correlation_distances(embeddings)
    assert distances.tobytes() == portable.correlation_distances(embeddings).tobytes()
    assert statistics.rank_correlation(distances, human) == portable.rank_correlation(distances, human)


def test_cosine() -> None:
    for numerator in range(0, 201):
        ours = statistics.cosine(numerator, 200)
        assert ours == learning_rate.cosine_of(numerator, 200)
        assert math.isclose(ours, math.cos(math.pi * numerator / 200), abs_tol=1e-15)
