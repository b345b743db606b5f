"""Random words of PyTorch's Mersenne Twister, the only use of PyTorch here; and the generators' states."""

import random
from typing import Any

import numpy as np
import torch

from second_implementation.numerics import F32, F64, Array

Config = dict[str, Any]


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def permutation(size: int, seed: int | None = None) -> Array:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator).numpy()


def loader_seed() -> int:
    return int(torch.empty((), dtype=torch.int64).random_().item())


def factor(*shape: int) -> Array:
    """A DoRA factor: uniform between -bound and bound, 1 / sqrt(columns)."""
    bound = 1.0 / np.sqrt(F64(shape[1]))
    return (torch.rand(shape).numpy().astype(F64) * (2.0 * bound) - bound).astype(F32)


def states() -> Config:
    algorithm, key, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch_rng_state": torch.get_rng_state().numpy(),
        "numpy_rng_state": (str(algorithm), key.astype(np.uint32), int(position), int(has_gauss), float(cached)),
        "python_rng_state": random.getstate(),
    }


def skip_construction(config: Config) -> None:
    """Draw what building OpenAI's CLIP draws."""
    vision, text, embedding = config["vision_config"], config["text_config"], config["projection_dim"]
    width, patch = vision["hidden_size"], vision["patch_size"]
    tokens = (vision["image_size"] // patch) ** 2 + 1
    uniform(width * 3 * patch * patch)
    normal(width)
    normal(tokens * width)
    skip_blocks(vision)
    normal(width * embedding)

    width = text["hidden_size"]
    skip_blocks(text)
    normal(text["vocab_size"] * width)
    normal(text["vocab_size"] * width)
    normal(text["max_position_embeddings"] * width)
    for _ in range(text["num_hidden_layers"]):
        for rows in (3, 1, 4, 4):
            normal(rows * width * width)
    normal(width * embedding)


def skip_blocks(tower: Config) -> None:
    width = tower["hidden_size"]
    for _ in range(tower["num_hidden_layers"]):
        for numbers in (width, 1, 3 * width, 4 * width, 4, 4 * width, 1):
            uniform(numbers * width)


def uniform(numbers: int) -> None:
    torch.rand(numbers)


def normal(numbers: int) -> None:
    torch.rand(numbers + (16 if numbers % 16 else 0))
