"""What a fresh run draws from its seed, and in which order: the same as the earlier pipeline.

So that a run which people already have can be continued and compared, a run with its seed has the
same split, the same initial parameters and the same batch orders. All draws come from torch's global
CPU generator; NumPy's and Python's are seeded and then left alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import seed_generators

Draw = tuple[Literal["uniform", "normal"], tuple[int, ...]]
_NORMAL_BLOCK = 16  # numbers at a time in torch's normal draws; fewer are drawn in another way


@dataclass(frozen=True)
class Split:
    """Rows of the annotation table, in the order drawn.

    Attributes:
        train: `[num_train] int64`.
        test: `[num_test] int64`.
    """

    train: torch.Tensor
    test: torch.Tensor


def draw_split(num_images: int, train_portion: float) -> Split:
    """Draw which rows train: the first `int(train_portion * num_images)` of a permutation (`torch.randperm`)."""
    order = torch.randperm(num_images)
    num_train = int(train_portion * num_images)
    return Split(order[:num_train], order[num_train:])


def begin(seed: int, num_images: int, train_portion: float) -> Split:
    """Seed every generator and draw the split, the first draw of a run.

    Also how a resumed run finds its split again: its generators are restored afterwards.
    """
    seed_generators(seed)
    return draw_split(num_images, train_portion)


def draw_initial_parameters(model: CLIPHBA, config: ClipConfig, arithmetic: Arithmetic = "native") -> None:
    """Draw the DoRA factors, visual layers first, behind everything that building a CLIP draws.

    Raises:
        BadInputError: in portable arithmetic, the backbone is too narrow; nothing is drawn.
    """
    skip_model_construction(config, arithmetic)
    for layer in model.dora_layers().values():
        layer.draw_initial_factors(arithmetic)


def skip_model_construction(config: ClipConfig, arithmetic: Arithmetic = "native") -> None:
    """Draw, and throw away, what OpenAI's model draws before its weights are loaded.

    550 million numbers for ViT-L/14. They decide everything drawn later, and so they depend on the
    backbone's shapes. Portable arithmetic draws as many random words, and leaves the same generator state: one a
    number, and 16 more for each normal draw whose size is no multiple of 16.

    Raises:
        BadInputError: in portable arithmetic, a normal draw is too small; nothing is drawn.
    """
    draws = list(construction_draws(config))
    if arithmetic == "portable":
        _refuse_small_normal_draws(draws)
        draws = [("uniform", (_num_words(kind, shape),)) for kind, shape in draws]
    for kind, shape in draws:
        values = torch.empty(shape)
        if kind == "uniform":
            values.uniform_()
        else:
            values.normal_()


def _num_words(kind: str, shape: tuple[int, ...]) -> int:
    """Return how many random words torch's generator gives for a draw of float32 numbers."""
    numbers = math.prod(shape)
    again = kind == "normal" and numbers % _NORMAL_BLOCK  # its last block, where that is not full
    return numbers + _NORMAL_BLOCK if again else numbers


def _refuse_small_normal_draws(draws: list[Draw]) -> None:
    smallest = min((shape for kind, shape in draws if kind == "normal"), key=math.prod)
    if math.prod(smallest) < _NORMAL_BLOCK:
        # torch computes these pairwise by log and cos, and keeps every second one in the generator's state
        raise BadInputError(
            "arithmetic: portable cannot start a run on so narrow a backbone\n"
            f"  numbers in its smallest normal draw: {math.prod(smallest)} (shape {list(smallest)})\n"
            f"  expected:                            at least {_NORMAL_BLOCK}\n"
            "  use a wider backbone, or arithmetic: native"
        )


def construction_draws(config: ClipConfig) -> Iterator[Draw]:
    """List the draws of building a ViT CLIP, in order.

    Of the image tower (width w): uniform its kernel, normal the class token and the positions, the blocks' draws,
    normal the projection. Of the text tower: the blocks' draws; normal the tokens' embeddings, twice, and the
    positions; for each block normal numbers of the four matrices, `[3 w, w]`, `[w, w]`, `[4 w, w]` and `[w, 4 w]`;
    normal the projection. A block's draws, all uniform: `[w, w]`, `[w]`, `[3 w, w]`, `[4 w, w]`, `[4 w]`, `[w, 4
    w]` and `[w]`.
    """
    vision, text = config.vision_config, config.text_config
    width, patch = vision.hidden_size, vision.patch_size
    grid = vision.image_size // patch
    yield "uniform", (width, 3, patch, patch)
    yield "normal", (width,)
    yield "normal", (grid * grid + 1, width)
    for _ in range(vision.num_hidden_layers):
        yield from _block_draws(width)
    yield "normal", (width, config.projection_dim)

    width, vocabulary = text.hidden_size, text.vocab_size
    for _ in range(text.num_hidden_layers):
        yield from _block_draws(width)
    yield "normal", (vocabulary, width)  # the embedding's own initialisation
    yield "normal", (vocabulary, width)  # and CLIP's
    yield "normal", (text.max_position_embeddings, width)
    for _ in range(text.num_hidden_layers):
        for shape in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width)):
            yield "normal", shape
    yield "normal", (width, config.projection_dim)


def _block_draws(width: int) -> Iterator[Draw]:
    for shape in (
        (width, width),
        (width,),
        (3 * width, width),
        (4 * width, width),
        (4 * width,),
        (width, 4 * width),
        (width,),
    ):
        yield "uniform", shape
