"""What training images undergo: a function of seed, epoch and image."""

import math

import numpy as np

from second_implementation.numerics import F32, Array

PURPOSE = int.from_bytes(b"augment", "little")


def philox64(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Four 64-bit words of Philox-4x64-10, as Salmon et al. 2011 have it."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        (high0, low0), (high1, low1) = (
            divmod(word * factor, 2**64)
            for word, factor in ((c[0], 0xD2E7470EE14C6C93), (c[2], 0xCA5A826395121157))
        )
        c = [high1 ^ c[1] ^ k0, low1, high0 ^ c[3] ^ k1, low0]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) % 2**64, (k1 + 0xBB67AE8584CAA73B) % 2**64
    return c


def draws(seed: int, epoch: int, image: int) -> list[float]:
    words = [word for n in range(1, 12) for word in philox64((n, image, epoch, 0), (seed, PURPOSE))]
    return [(word >> 11) * 2.0**-53 for word in words]


def between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def cropped(image: Array, drawn: list[float]) -> Array:
    height, width = image.shape[:2]
    for attempt in range(10):
        part, ratio, x, y = drawn[4 * attempt : 4 * attempt + 4]
        area, aspect = width * height * between(0.5, 1.0, part), between(3 / 4, 4 / 3, ratio)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(x * (width - wide + 1)), int(y * (height - high + 1))
            return image[top : top + high, left : left + wide]
    return image


def grey(image: Array) -> Array:
    red, green, blue = np.moveaxis(image.astype(int), 2, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def moved(image: Array, other: Array, factor: float) -> Array:
    """Move 8-bit values from others, by a factor."""
    value, other = image.astype(F32), other.astype(F32)
    return np.clip(other + F32(factor) * (value - other), 0, 255).astype(np.uint8)


def augment(image: Array, seed: int, epoch: int, index: int) -> Array:
    """Return an image cropped, mirrored, and with other brightness, contrast and saturation."""
    flip, brightness, contrast, saturation, *crops = draws(seed, epoch, index)
    image = cropped(image, crops)
    if flip < 0.5:
        image = image[:, ::-1]
    brightness, contrast, saturation = (between(0.8, 1.2, each) for each in (brightness, contrast, saturation))
    image = moved(image, np.zeros(1), brightness)
    greys = grey(image)
    image = moved(image, np.array(int(int(greys.sum()) / greys.size + 0.5)), contrast)
    return moved(image, grey(image)[..., None], saturation)
