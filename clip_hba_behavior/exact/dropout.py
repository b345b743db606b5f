"""Dropout whose mask is a function of numbers: nothing is drawn from a generator that has a state."""

from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.grid import I64, for_each_block, widen

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class Draw:
    """What a mask is a function of: a seed below 2**64, and three numbers below 2**32.

    Raises:
        ValueError: one is negative or too large.
    """

    seed: int
    layer: int = 0
    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("layer", 32), ("epoch", 32), ("step", 32)):
            number = getattr(self, name)
            if not 0 <= number < 1 << bits:
                raise ValueError(
                    f"cannot draw a mask with {name}: {number}\n  found:    {number}\n"
                    f"  expected: from 0 to 2**{bits} - 1"
                )


def philox(counters: list[torch.Tensor], key: tuple[int, int]) -> list[torch.Tensor]:
    """Return the four 32-bit words of Philox-4x32-10 for counters of four words; int64 tensors of their shape.

    Definition: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3". The 64 bits of a
    product of two words are an int64's, whatever its sign. Integers alone: exact.

    Args:
        counters: four int64 tensors of shapes that broadcast to one, 0 to 2**32 - 1.
        key: two words.
    """
    words = counters
    for number in range(_ROUNDS):
        round_key = [(word + number * step) & _WORD for word, step in zip(key, _WEYL, strict=True)]
        product_0, product_1 = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
        # only the low words are used of what a shift or a product leaves above them
        high_0, high_1 = product_0 >> 32, product_1 >> 32
        words = [
            (high_1 ^ words[1]).bitwise_xor_(round_key[0]).bitwise_and_(_WORD),
            product_1.bitwise_and_(_WORD),
            (high_0 ^ words[3]).bitwise_xor_(round_key[1]).bitwise_and_(_WORD),
            product_0.bitwise_and_(_WORD),
        ]
    return words


def dropout(values: torch.Tensor, probability: float, draw: Draw, first: int = 0) -> torch.Tensor:
    """Return the values with some set to zero and the others divided by `1 - probability`, with a gradient.

    Definition: entry i, counted over all entries in row-major order from `first`, is dropped if word `i % 4` of
    Philox with the counter `(i // 4, layer, epoch, step)` and the seed as key (its low word, then its high one) is
    below `floor(probability * 2**32)`: it becomes 0.0. The others are multiplied in float64 by `1 / (1 -
    probability)` and rounded once. Integer operations alone decide the mask: it is the same everywhere, and a part
    of a batch draws its part of the mask. Accuracy: that of the rounding.

    Args:
        values: any shape, float32 or float64.
        probability: of an entry to be dropped, from 0 to 1, 1 excluded.
        draw: what the mask is a function of; another step or layer needs another one.
        first: index of the first entry within the whole batch.

    Raises:
        ValueError: the probability or an index is out of range, or the dtype another.
    """
    if not 0.0 <= probability < 1.0 or not 0 <= first <= (1 << 34) - values.numel():
        raise ValueError(
            f"exact.dropout cannot drop these entries\n  found:    probability {probability}, entries {first} to "
            f"{first + values.numel()}\n  expected: a probability from 0 to below 1, entries up to 2**34"
        )
    kept = _kept(values.numel(), first, draw, int(probability * 2.0**32), values.device)
    return apply(_Dropout, values, kept.view(values.shape), 1.0 / (1.0 - probability))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, kept: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return _scaled(values, kept, factor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _scaled(grad, kept, ctx.factor), None, None


def _scaled(values: torch.Tensor, kept: torch.Tensor, factor: float) -> torch.Tensor:
    return torch.where(kept, widen(values).mul_(factor), 0.0).to(values.dtype)


def _kept(number: int, first: int, draw: Draw, least: int, device: torch.device) -> torch.Tensor:
    """Return which of a number of entries have a word of at least so much, bool."""
    index = torch.arange(first // 4, (first + number + 3) // 4, dtype=I64, device=device)
    kept = torch.empty((len(index), 4), dtype=torch.bool, device=device)
    constant = [index.new_tensor(word) for word in (draw.layer, draw.epoch, draw.step)]

    def compute(block: slice) -> None:
        words = philox([index[block], *constant], (draw.seed & _WORD, draw.seed >> 32))
        for place, word in enumerate(words):
            torch.ge(word, least, out=kept[block, place])

    for_each_block(kept, compute)
    return kept.view(-1)[first % 4 : first % 4 + number]
