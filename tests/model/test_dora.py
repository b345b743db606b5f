import math
import struct

import numpy as np
import pytest
import torch
from torch import nn

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.model.block import Linear
from clip_hba_behavior.model.dora import ALPHA, EPSILON, DoRALinear
from clip_hba_behavior.reproducibility.state.digest import digest


def plain(linear: nn.Linear) -> Linear:
    return Linear(linear.weight.detach(), linear.bias.detach())


def drawn_layer(dropout: float = 0.0) -> tuple[nn.Linear, DoRALinear]:
    torch.manual_seed(5)
    linear = nn.Linear(24, 16)
    layer = DoRALinear(plain(linear), rank=4, dropout=dropout)
    layer.draw_initial_factors()
    return linear, layer


def test_the_adapted_weight_is_the_designs_formula() -> None:
    linear, layer = drawn_layer()
    weight = linear.weight.detach().double()
    lengths = weight.norm(dim=1)
    direction = weight.T / lengths
    adapted = direction + ALPHA / 4 * layer.delta_D_B.double() @ layer.delta_D_A.double()
    expected = (layer.m.double() * adapted / (adapted.norm(dim=0) + EPSILON)).T
    assert (layer.adapted_weight() - expected).abs().max() < 1e-6


def test_shapes_are_the_guides() -> None:
    _, layer = drawn_layer()
    assert layer.m.shape == (16,)
    assert layer.delta_D_A.shape == (4, 16)
    assert layer.delta_D_B.shape == (24, 4)


def test_without_factors_the_layer_is_the_linear_layer() -> None:
    linear, _ = drawn_layer()
    layer = DoRALinear(plain(linear), rank=4)
    inputs = torch.randn(3, 24)
    assert (layer(inputs) - linear(inputs)).abs().max() < 1e-6


def test_the_norm_is_differentiated() -> None:
    _, layer = drawn_layer()
    inputs, pull = torch.randn(3, 24), torch.randn(3, 16)
    (layer(inputs) * pull).sum().backward()
    # scaling a direction changes nothing, so the gradient to D' has no part along D'
    adapted = layer.direction + layer.scale * layer.delta_D_B @ layer.delta_D_A
    gradient = layer.delta_D_B.grad
    assert gradient is not None
    free = adapted.detach().clone().requires_grad_()
    weight = (layer.m.detach() * free / (free.norm(dim=0) + EPSILON)).T
    (nn.functional.linear(inputs, weight, layer.bias) * pull).sum().backward()
    assert free.grad is not None
    assert (free.grad * free).sum(dim=0).abs().max() < 1e-4
    assert (layer.scale * free.grad @ layer.delta_D_A.detach().T - gradient).abs().max() < 1e-5


def factors_drawn(arithmetic: Arithmetic, out: int, columns: int, rank: int) -> tuple[torch.Tensor, ...]:
    """The two factors, and the generator's state behind them."""
    layer = DoRALinear(Linear(torch.ones(out, columns), torch.zeros(out)), rank)
    torch.manual_seed(9)
    layer.draw_initial_factors(arithmetic)
    return layer.delta_D_A.detach(), layer.delta_D_B.detach(), torch.get_rng_state()


@pytest.mark.parametrize(
    ("out", "columns", "rank"), [(16, 24, 4), (768, 768, 32), (512, 2048, 6), (7, 5, 3), (1, 1, 1)]
)
def test_portable_factors_take_the_same_words_and_differ_in_the_last_digit(
    out: int, columns: int, rank: int
) -> None:
    *native, native_state = factors_drawn("native", out, columns, rank)
    *portable, portable_state = factors_drawn("portable", out, columns, rank)
    assert torch.equal(portable_state, native_state)
    for one, other in zip(portable, native, strict=True):
        assert one.dtype == other.dtype
        unit = float(np.spacing(np.float32(1 / math.sqrt(one.shape[1]))))
        assert (one.double() - other.double()).abs().max() <= 1.5 * unit


def test_portable_factors_are_their_definition_and_have_these_bits_forever() -> None:
    *factors, _ = factors_drawn("portable", 48, 40, 6)
    torch.manual_seed(9)
    for factor in factors:
        bound = 1 / math.sqrt(factor.shape[1])
        words = torch.rand(factor.shape).tolist()
        assert all((word * 2**24).is_integer() for row in words for word in row)
        expected = [
            [struct.unpack("f", struct.pack("f", word * (2 * bound) - bound))[0] for word in row] for row in words
        ]
        assert factor.tolist() == expected
    assert digest(tuple(factors))[:32] == "ad81fa79e92672a4a253c11bb3da28e8"


def test_dropout_acts_in_training_only_and_draws_from_the_global_generator() -> None:
    _, layer = drawn_layer(dropout=0.5)
    layer.eval()
    before = torch.get_rng_state()
    still = layer.adapted_weight()
    assert torch.equal(torch.get_rng_state(), before)
    layer.train()
    first = layer.adapted_weight()
    torch.set_rng_state(before)
    assert torch.equal(layer.adapted_weight(), first)
    assert not torch.equal(first, still)


def test_the_bias_and_the_directions_are_frozen() -> None:
    _, layer = drawn_layer()
    assert {name for name, _ in layer.named_parameters()} == {"m", "delta_D_A", "delta_D_B"}
