import pytest
import torch

from clip_hba_behavior import exact
from exact_tools import gradients, normal

DRAW = exact.Draw(seed=7, layer=1, epoch=2, step=3)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_words_of_random123(counter: str, key: str, words: str) -> None:
    counters = [torch.tensor([int(word, 16)]) for word in counter.split()]
    low, high = (int(word, 16) for word in key.split())
    assert [f"{int(word):08x}" for word in exact.philox(counters, (low, high))] == words.split()


def test_the_mask_is_a_function_of_its_numbers() -> None:
    x = torch.ones(1000, 101)
    dropped = exact.dropout(x, 0.1, DRAW)
    torch.manual_seed(1)
    assert torch.equal(dropped, exact.dropout(x, 0.1, exact.Draw(7, 1, 2, 3)))
    assert set(dropped.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).item()}
    assert abs((dropped == 0).float().mean().item() - 0.1) < 0.004
    others = [exact.Draw(8, 1, 2, 3), exact.Draw(7, 2, 2, 3), exact.Draw(7, 1, 3, 3), exact.Draw(7, 1, 2, 4)]
    others.append(exact.Draw(7 + 2**32, 1, 2, 3))
    for other in others:
        both = ((dropped == 0) & (exact.dropout(x, 0.1, other) == 0)).float().mean().item()
        assert abs(both - 0.01) < 0.0015


def test_dropout_draws_nothing_from_torchs_generator() -> None:
    before = torch.get_rng_state()
    exact.dropout(torch.ones(10), 0.5, DRAW)
    assert torch.equal(before, torch.get_rng_state())


def test_parts_of_a_batch_draw_their_parts_of_the_mask() -> None:
    x = normal(48, 13, seed=1)
    whole = exact.dropout(x, 0.3, DRAW)
    first = 0
    for part, expected in zip(x.split([1, 40, 7]), whole.split([1, 40, 7]), strict=True):
        assert torch.equal(exact.dropout(part, 0.3, DRAW, first), expected)
        first += part.numel()


def test_gradients_pass_where_values_do() -> None:
    x = normal(40, 13, seed=1)
    value, gradient = gradients(lambda x: exact.dropout(x, 0.3, DRAW), x)
    assert torch.equal(value == 0, gradient == 0)
    expected = gradients(lambda x: x * ((value != 0) / 0.7), x)
    assert torch.allclose(gradient, expected[1], rtol=2e-7, atol=0)
    assert torch.equal(exact.dropout(x, 0.0, DRAW), x)
    assert exact.dropout(torch.empty(0), 0.5, DRAW).shape == (0,)


def test_helpful_errors() -> None:
    with pytest.raises(
        ValueError, match=r"probability 1.0, entries 0 to 1\n  expected: a probability from 0 to below"
    ):
        exact.dropout(torch.ones(1), 1.0, DRAW)
    with pytest.raises(ValueError, match=r"step: -1\n  found:    -1\n  expected: from 0 to 2\*\*32 - 1"):
        exact.Draw(seed=1, step=-1)
