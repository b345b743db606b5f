import platform

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clip_hba_behavior.data.resizing import resize

# Elsewhere, or by an older version, Pillow's bits are others: that is why there is a definition.
like_pillow = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or int(PIL.__version__.split(".")[0]) < 13,
    reason="the definition is Pillow 13's on x86",
)


def drawn(height: int, width: int, seed: int = 0, is_hard: bool = False) -> NDArray[np.uint8]:
    values = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return np.where(values > 127, np.uint8(255), np.uint8(0)) if is_hard else values


def by_pillow(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


@like_pillow
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        *(
            (1, 1, 1),
            (1, 1, 224),
            (224, 224, 224),
            (7, 5, 1),
            (3, 2, 2),
            (1, 4999, 7),
            (4999, 1, 7),
            (3, 9999, 336),
        ),
        *((800, 800, 224), (333, 500, 224), (500, 333, 224), (224, 500, 224), (500, 224, 224), (100, 224, 224)),
        *(
            (223, 225, 224),
            (225, 223, 224),
            (31, 33, 32),
            (336, 336, 224),
            (90, 60, 336),
            (1, 700, 32),
            (1, 3_000_000, 1),
        ),
        # To the pixel where the columns come first.
        *((300, 200, 100), (301, 200, 100), (302, 200, 100), (101, 100, 100), (101, 99, 100), (103, 101, 100)),
    ],
)
@pytest.mark.parametrize("is_hard", [False, True])
def test_it_has_pillows_bits(height: int, width: int, size: int, is_hard: bool) -> None:
    image = drawn(height, width, is_hard=is_hard)
    before = image.tobytes()
    found = resize(image, size)
    assert found.shape == (size, size, 3)
    assert found.dtype == np.uint8
    assert found.tobytes() == by_pillow(image, size).tobytes()
    assert image.tobytes() == before


@like_pillow
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 120), st.integers(0, 2**32), st.booleans())
def test_it_has_pillows_bits_for_any_sizes(height: int, width: int, size: int, seed: int, is_hard: bool) -> None:
    image = drawn(height, width, seed, is_hard)
    assert resize(image, size).tobytes() == by_pillow(image, size).tobytes()


@pytest.mark.parametrize(
    ("height", "width", "size"), [(9, 13, 5), (13, 9, 5), (4, 7, 10), (11, 7, 7), (1, 1, 3), (40, 3, 6)]
)
def test_the_documented_definition_written_again_gives_the_same(height: int, width: int, size: int) -> None:
    image = drawn(height, width, seed=3).tolist()
    rows = [list(zip(*row, strict=True)) for row in image]  # [height][3][width]
    planes = [[row[channel] for row in rows] for channel in range(3)]
    expected = [resized_plane(plane, size) for plane in planes]
    found = resize(np.array(image, dtype=np.uint8), size)
    assert found.transpose(2, 0, 1).tolist() == expected


def resized_plane(plane: list[list[int]], size: int) -> list[list[int]]:
    height, width = len(plane), len(plane[0])
    if height > size and height - size > 2 * (width - size):
        return [resized_line(row, size) for row in turned([resized_line(each, size) for each in turned(plane)])]
    return turned([resized_line(each, size) for each in turned([resized_line(row, size) for row in plane])])


def turned(plane: list[list[int]]) -> list[list[int]]:
    return [list(column) for column in zip(*plane, strict=True)]


def resized_line(pixels: list[int], size: int) -> list[int]:
    length = len(pixels)
    if length == size:
        return pixels
    scale = float(np.float32(length)) / size
    support = max(scale, 1.0)
    line = []
    for output in range(size):
        centre = (output + 0.5) * scale
        first, end = max(int((centre - support) + 0.5), 0), min(int((centre + support) + 0.5), length)
        distances = [abs(((pixel - centre) + 0.5) * (1 / support)) for pixel in range(first, end)]
        weights = [1 - distance if distance < 1 else 0.0 for distance in distances]
        total = 0.0
        for weight in weights:
            total += weight
        integers = [int(0.5 + (weight / total) * 2**22) for weight in weights]
        weighted = sum(k * pixel for k, pixel in zip(integers, pixels[first:end], strict=True))
        line.append(min((2**21 + weighted) >> 22, 255))
    return line
