"""Draw a 66-d latent vector as a picture: each dimension is one kind of glyph, its value is how many there are.

The picture is a grid of 8 x 8 cells. A dimension is one pairing of a colour with a shape ("red circles"), and
it fills about one cell for every `UNITS_PER_CELL` units of its value, so the vector can be read off the pixels
up to rounding. Only integer arithmetic and Pillow's integer rasteriser are used: the same vector gives the same
pixels on every CPU.
"""

import hashlib
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

NUM_DIMENSIONS = 66
GRID = 8
UNITS_PER_CELL = 6.0
GROUNDS: dict[str, tuple[int, int, int]] = {
    "grey": (40, 40, 44),
    "maroon": (72, 16, 28),
    "moss": (24, 56, 20),
    "navy": (14, 22, 84),
    "plum": (62, 18, 76),
    "umber": (66, 48, 10),
}
"""What the glyphs stand on. It says nothing about the vector: a model has to learn to look past it."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 36, 36),
    "orange": (245, 140, 20),
    "yellow": (246, 228, 48),
    "lime": (150, 230, 60),
    "green": (24, 132, 56),
    "cyan": (60, 214, 224),
    "blue": (40, 84, 226),
    "purple": (134, 48, 180),
    "pink": (250, 128, 190),
    "brown": (132, 82, 40),
    "white": (246, 246, 246),
}

Colour = tuple[int, int, int]
Glyph = Callable[[ImageDraw.ImageDraw, int, Colour], None]


def _circle(draw: ImageDraw.ImageDraw, side: int, colour: Colour) -> None:
    draw.ellipse((0, 0, side - 1, side - 1), fill=colour)


def _square(draw: ImageDraw.ImageDraw, side: int, colour: Colour) -> None:
    margin = side // 8
    draw.rectangle((margin, margin, side - 1 - margin, side - 1 - margin), fill=colour)


def _triangle(draw: ImageDraw.ImageDraw, side: int, colour: Colour) -> None:
    draw.polygon(((0, side - 1), (side - 1, side - 1), (side // 2, 0)), fill=colour)


def _cross(draw: ImageDraw.ImageDraw, side: int, colour: Colour) -> None:
    start, end = side * 3 // 8, side * 5 // 8 - 1
    draw.rectangle((start, 0, end, side - 1), fill=colour)
    draw.rectangle((0, start, side - 1, end), fill=colour)


def _ring(draw: ImageDraw.ImageDraw, side: int, colour: Colour) -> None:
    draw.ellipse((0, 0, side - 1, side - 1), outline=colour, width=max(1, side // 5))


def _stripes(draw: ImageDraw.ImageDraw, side: int, colour: Colour) -> None:
    thickness = max(1, side // 8)
    for top in range(thickness, side, 3 * thickness):
        draw.rectangle((0, top, side - 1, min(top + thickness, side) - 1), fill=colour)


SHAPES: dict[str, Glyph] = {
    "circles": _circle,
    "squares": _square,
    "triangles": _triangle,
    "crosses": _cross,
    "rings": _ring,
    "stripes": _stripes,
}


def colour_and_shape(dimension: int) -> tuple[str, str]:
    """Names the glyph of one dimension.

    Args:
        dimension: 0 to 65.

    Returns:
        The colour and the shape, such as `("red", "circles")`. 11 colours and 6 shapes have no common factor,
        so the 66 pairs are all different.
    """
    return list(COLOURS)[dimension % len(COLOURS)], list(SHAPES)[dimension % len(SHAPES)]


@lru_cache(maxsize=32)
def _glyph_sheet(side: int, ground: int) -> NDArray[np.uint8]:
    """Draws every glyph once: `[67, side, side, 3] uint8`; the last one is an empty cell."""
    sheet = []
    for dimension in range(NUM_DIMENSIONS + 1):
        tile = Image.new("RGB", (side, side), list(GROUNDS.values())[ground])
        if dimension < NUM_DIMENSIONS:
            colour, shape = colour_and_shape(dimension)
            SHAPES[shape](ImageDraw.Draw(tile), side, COLOURS[colour])
        sheet.append(np.asarray(tile))
    return np.stack(sheet)


def _hash(purpose: bytes, latent: NDArray[np.float64], num_bytes: int) -> bytes:
    return hashlib.shake_256(purpose + np.asarray(latent, dtype="<f8").tobytes()).digest(num_bytes)


def ground_of(latent: NDArray[np.float64]) -> int:
    """Says on which of `GROUNDS` a vector is drawn: chance, yet a function of the vector, so its hash decides."""
    return int.from_bytes(_hash(b"ground", latent, 8), "little") % len(GROUNDS)


def glyph_counts(latent: NDArray[np.float64]) -> NDArray[np.int64]:
    """Says how many cells each dimension gets.

    Args:
        latent: `[66]`, each 0 to 100.

    Returns:
        `[66] int64`, at most 64 in all. Where the values ask for more, the largest are served first.
    """
    wanted = np.floor(latent / UNITS_PER_CELL + 0.5).astype(np.int64)
    counts = np.zeros(NUM_DIMENSIONS, dtype=np.int64)
    free = GRID * GRID
    for dimension in np.argsort(-latent, kind="stable"):
        counts[dimension] = min(free, wanted[dimension])
        free -= counts[dimension]
    return counts


def draw_image(latent: NDArray[np.float64], size: int = 64) -> Image.Image:
    """Draws one latent vector, always to the same pixels.

    Args:
        latent: `[66]`, non-negative and finite; made for values of 0 to 100, as in rescaled SPoSE embeddings.
        size: Width and height in pixels, a multiple of 8 and at least 32.

    Returns:
        An RGB image of `size` x `size` pixels.

    Raises:
        ValueError: If the vector or the size is not as described.
    """
    if size < 32 or size % GRID:
        raise ValueError(f"cannot draw at size {size}: expected a multiple of {GRID}, at least 32 (such as 64)")
    latent = np.asarray(latent, dtype="<f8")
    if latent.shape != (NUM_DIMENSIONS,):
        raise ValueError(f"cannot draw a latent of shape {latent.shape}: expected ({NUM_DIMENSIONS},)")
    if not np.isfinite(latent).all() or latent.min() < 0:
        raise ValueError(
            f"cannot draw this latent: its smallest value is {latent.min()}, expected finite values from 0 to 100"
        )
    side = size // GRID
    glyphs = np.repeat(np.arange(NUM_DIMENSIONS), glyph_counts(latent))
    cells = np.full(GRID * GRID, NUM_DIMENSIONS)
    # Where a glyph stands must carry no meaning, yet be a function of the vector: its hash shuffles the cells.
    shuffle_keys = np.frombuffer(_hash(b"places", latent, 4 * GRID * GRID), dtype="<u4")
    cells[np.argsort(shuffle_keys, kind="stable")[: len(glyphs)]] = glyphs
    tiles = _glyph_sheet(side, ground_of(latent))[cells].reshape(GRID, GRID, side, side, 3)
    return Image.fromarray(np.ascontiguousarray(tiles.transpose(0, 2, 1, 3, 4)).reshape(size, size, 3))
