"""What a run reads: tables, images as pixels, prompts as tokens."""

import csv
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from second_implementation.numerics import F32, F64, Array

MEAN = np.array((0.52997664, 0.48070561, 0.41943838), F32)
STD = np.array((0.27608301, 0.26593025, 0.28238822), F32)


def read_table(path: str) -> tuple[list[str], Array]:
    """Return image names and targets `[n, 66] float64`."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["image_name"] for row in rows], np.array(
        [[float(row[str(column)]) for column in range(66)] for row in rows]
    )


def read_human_rdm(path: str) -> Array:
    return scipy.io.loadmat(path)["RDM48_triplet"].astype(F64)


def resize_first_axis(pixels: Array, size: int) -> Array:
    length = len(pixels)
    scale = float(F32(length)) / size
    support = max(scale, 1.0)
    result = []
    for i in range(size):
        centre = (i + 0.5) * scale
        first, end = max(int((centre - support) + 0.5), 0), min(int((centre + support) + 0.5), length)
        t = [abs(((j - centre) + 0.5) * (1.0 / support)) for j in range(first, end)]
        w = [1.0 - each if each < 1.0 else 0.0 for each in t]
        total = 0.0
        for each in w:
            total += each
        k = [int(0.5 + (each / total) * 2.0**22) for each in w]
        weighed = [weight * pixels[first + j].astype(np.int64) for j, weight in enumerate(k)]
        result.append(np.minimum((2**21 + np.sum(weighed, axis=0)) >> 22, 255))
    return np.stack(result)


def resize(image: Array, size: int) -> Array:
    height, width = image.shape[:2]
    axes = [0, 1] if height > size and height - size > 2 * (width - size) else [1, 0]
    for axis in axes:
        if image.shape[axis] != size:
            image = np.swapaxes(resize_first_axis(np.swapaxes(image, 0, axis), size), 0, axis)
    return image


def read_pixels(path: Path, size: int, augmented: Callable[[Array], Array] = np.asarray) -> Array:
    """Return `[3, size, size] float32` of an ordinary RGB image."""
    squashed = resize(augmented(np.asarray(Image.open(path))), size).astype(F32)
    return np.moveaxis((squashed / F32(255) - MEAN) / STD, 2, 0)


def tokenize(prompts: list[str], tokenizer: Any) -> tuple[Array, Array]:
    """Return token ids `[n, longest]`, padded with the end token, and the end tokens' positions."""
    vocabulary, merges = tokenizer["model"]["vocab"], [tuple(pair) for pair in tokenizer["model"]["merges"]]
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    rows = []
    for prompt in prompts:
        parts = [start]
        for word in re.findall(r"[a-z]+", prompt.lower()):  # these prompts have nothing else
            pieces = [*word[:-1], word[-1] + "</w>"]
            while pairs := [pair for pair in itertools.pairwise(pieces) if pair in merges]:
                best = min(pairs, key=merges.index)
                at = next(i for i in range(len(pieces)) if tuple(pieces[i : i + 2]) == best)
                pieces[at : at + 2] = ["".join(best)]
            parts += [vocabulary[piece] for piece in pieces]
        rows.append([*parts, end])
    longest = max(map(len, rows))
    ids = np.array([row + [end] * (longest - len(row)) for row in rows])
    return ids, np.array([len(row) - 1 for row in rows])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
