"""Sums, norms, softmax, layer norm and attention: each row, each sample by itself."""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from clip_hba_behavior import exact
from exact_tools import F64, gradients, normal, relative_error, with_outliers

FUNCTIONS: dict[str, tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor], tuple[torch.Tensor, ...]]] = {
    "sum": (exact.sum, lambda x: x.sum(-1), (normal(200, 333, seed=1) + 0.1,)),
    "norm": (exact.norm, lambda x: x.norm(dim=-1), (normal(200, 333, seed=1),)),
    "norm of columns": (lambda x: exact.norm(x, 0), lambda x: x.norm(dim=0), (normal(200, 333, seed=1),)),
    "softmax": (exact.softmax, lambda x: x.softmax(-1), (3 * normal(200, 77, seed=1),)),
    "softmax with outliers": (
        exact.softmax,
        lambda x: x.softmax(-1),
        (with_outliers(normal(200, 77, seed=1), 30),),
    ),
    "layer_norm": (
        exact.layer_norm,
        lambda x, w, b: functional.layer_norm(x, x.shape[-1:], w, b),
        (normal(300, 512, seed=1) + 0.5, 1 + 0.1 * normal(512, seed=2), normal(512, seed=3)),
    ),
    "layer_norm with outliers": (
        exact.layer_norm,
        lambda x, w, b: functional.layer_norm(x, x.shape[-1:], w, b),
        (with_outliers(normal(300, 512, seed=1), 1e4), 1 + 0.1 * normal(512, seed=2), normal(512, seed=3)),
    ),
    "attention": (
        exact.attention,
        functional.scaled_dot_product_attention,
        tuple(normal(6, 4, 50, 64, seed=seed) for seed in (1, 2, 3)),
    ),
    "attention, causal": (
        lambda q, k, v: exact.attention(q, k, v, causal=True),
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        tuple(normal(6, 4, 50, 64, seed=seed) for seed in (1, 2, 3)),
    ),
    "attention with outliers": (
        exact.attention,
        functional.scaled_dot_product_attention,
        tuple(
            with_outliers(normal(24, 50, 64, seed=seed).view(-1, 64), 10).view(24, 50, 64) for seed in (1, 2, 3)
        ),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_no_less_accurate_than_float32s_own(name: str) -> None:
    function, native, inputs = FUNCTIONS[name]
    expected = gradients(native, *inputs, dtype=F64)
    for ours, theirs, reference in zip(
        gradients(function, *inputs), gradients(native, *inputs), expected, strict=True
    ):
        assert relative_error(ours, reference) <= max(1.2 * relative_error(theirs, reference), 5e-8)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_threads_and_engines_change_no_bits(name: str) -> None:
    function, _, inputs = FUNCTIONS[name]
    results = []
    for threads, engine in ((1, "float64"), (2, "int8")):
        torch.set_num_threads(threads)
        with exact.use_engine(engine):
            results.append(gradients(function, *inputs))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("name", ["sum", "norm", "softmax", "layer_norm", "attention", "attention, causal"])
def test_a_samples_bits_depend_on_itself_alone(name: str) -> None:
    function, _, inputs = FUNCTIONS[name]
    batched = len(inputs) if name.startswith("attention") else 1  # the others are the norm's weight and bias
    whole = function(*inputs)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(4))
    assert torch.equal(whole[order], function(*(x[order] for x in inputs[:batched]), *inputs[batched:]))
    for index in (0, 3, len(whole) - 1):
        one = function(*(x[index : index + 1] for x in inputs[:batched]), *inputs[batched:])
        assert torch.equal(whole[index : index + 1], one)


def test_layer_norms_gradients_know_no_order() -> None:
    _, _, (x, weight, bias) = FUNCTIONS["layer_norm"]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(4))
    upstream = normal(*x.shape, seed=5)

    def of_weights(function: Callable[..., torch.Tensor], order: torch.Tensor) -> list[torch.Tensor]:
        leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
        return list(torch.autograd.grad(function(x[order], *leaves), leaves, upstream[order]))

    in_order = torch.arange(len(x))
    assert all(map(torch.equal, of_weights(exact.layer_norm, in_order), of_weights(exact.layer_norm, order)))
    native = FUNCTIONS["layer_norm"][1]
    assert not all(map(torch.equal, of_weights(native, in_order), of_weights(native, order)))  # the failed control


def test_a_sum_is_its_tree() -> None:
    x = normal(5, seed=1)
    a, b, c, d, e = x.to(F64)
    assert torch.equal(exact.sum(x), (((a + c) + e) + (b + d)).float())
    assert exact.sum(x.view(1, 5), dim=0).shape == (5,)
    assert exact.sum(x.view(1, 5), keepdim=True).shape == (1, 1)
    assert exact.sum(torch.empty(2, 0)).tolist() == [0.0, 0.0]
    assert exact.sum(torch.ones(2, 1)).tolist() == [1.0, 1.0]


def test_a_norm_of_zeros_has_the_gradient_zero() -> None:
    value, gradient = gradients(exact.norm, torch.zeros(2, 3))
    assert not bool(value.any() or gradient.any())


def test_softmax_takes_masked_entries() -> None:
    found = exact.softmax(torch.tensor([[0.0, -torch.inf, 0.0]]))
    assert found.tolist() == [[0.5, 0.0, 0.5]]


def test_a_causal_context_knows_nothing_of_later_tokens() -> None:
    query, key, value = FUNCTIONS["attention"][2]
    whole = exact.attention(query, key, value, causal=True)
    key, value = key.clone(), value.clone()
    key[:, :, 20:] = 3.0
    value[:, :, 20:] = 0.5
    changed = exact.attention(query, key, value, causal=True)
    assert relative_error(changed[:, :, :20], whole[:, :, :20].to(F64)) < 1e-6
    assert torch.equal(
        exact.attention(query, key, value)[:, :, 0], exact.attention(query[:, :, :1], key, value)[:, :, 0]
    )


def test_attention_of_other_shapes_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"found:    \[\[2, 3\], \[2, 4\], \[2, 3\]\].*\n  expected: \[..., queries"
    ):
        exact.attention(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2, 3))


def test_a_layer_norm_of_other_shapes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"take this weight\n  found:    \[3\]\n  expected: a tensor \[4\]"):
        exact.layer_norm(torch.ones(2, 4), torch.ones(3))
    with pytest.raises(ValueError, match=r"take this weight\n  found:    \(4,\)\n  expected: a tensor \[4\]"):
        exact.layer_norm(torch.ones(2, 4), (4,), torch.ones(4))  # type: ignore[arg-type]
