"""Chance that is no state: Philox's raw words, a pure function of numbers or of a text.

The words' bits do not depend on the machine. NumPy's own distributions are not used: they may change between its
versions.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray


def stream(key: tuple[int, int], counter: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.random.Philox:
    """Return the generator of a key and a counter, 64-bit words each; only its raw words are used."""
    return np.random.Philox(key=np.array(key, dtype=np.uint64), counter=np.array(counter, dtype=np.uint64))


def stream_of(text: str) -> np.random.Philox:
    """Return the generator of a text, such as "seed 1, epoch 2".

    Its key is the first 128 bits of a hash: numbers that are added up would give the same draws to different
    purposes, as seed 0 of epoch 2 and seed 1000 of epoch 1.
    """
    words = np.frombuffer(hashlib.sha256(text.encode()).digest()[:16], dtype="<u8")
    return stream((int(words[0]), int(words[1])))


def uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn words into numbers between 0 and 1, both excluded; exact."""
    return ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
