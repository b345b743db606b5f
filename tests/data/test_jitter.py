import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from clip_hba_behavior.data.jitter import change_brightness, change_contrast, change_saturation

CHANGES: list[tuple[Callable[[NDArray[np.uint8], float], NDArray[np.uint8]], Any]] = [
    (change_brightness, ImageEnhance.Brightness),
    (change_contrast, ImageEnhance.Contrast),
    (change_saturation, ImageEnhance.Color),
]
on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere Pillow may have other bits"
)


def drawn(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.Generator(np.random.Philox(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)


@on_x86
@pytest.mark.parametrize(("change", "enhance"), CHANGES)
@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 2**32),
    st.one_of(st.floats(0, 2), st.sampled_from([0.0, 1.0, 2.0, 1 + 2**-23, 1 - 2**-24, 1 + 1e-12, 1e-40])),
)
def test_each_has_pillows_bits(
    change: Any, enhance: Any, height: int, width: int, seed: int, factor: float
) -> None:
    image = drawn(height, width, seed)
    assert change(image, factor).tobytes() == enhance(Image.fromarray(image)).enhance(factor).tobytes()


@on_x86
@pytest.mark.parametrize("factor", [0.8, 0.93, 1.07, 1.2])
def test_each_grey_and_value_has_pillows_bits(factor: float) -> None:
    """All pairs that a blend can meet, as pixels whose grey is known: grey itself, then red, green and blue."""
    steps = np.arange(0, 256, 5, dtype=np.uint8)
    image = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(52, -1, 3)
    for change, enhance in CHANGES:
        assert change(image, factor).tobytes() == enhance(Image.fromarray(image)).enhance(factor).tobytes()


@pytest.mark.parametrize("change", [change for change, _ in CHANGES])
def test_a_factor_of_one_leaves_an_image_as_it_is(change: Any) -> None:
    image = drawn(20, 30, 1)
    assert change(image, 1.0).tobytes() == image.tobytes()


def test_the_definitions_written_again_give_the_same() -> None:
    image, factor = drawn(5, 4, 2), 1.17
    pixels = [[int(value) for value in pixel] for row in image for pixel in row]
    greys = [(19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16 for red, green, blue in pixels]
    mean = int(sum(greys) / len(greys) + 0.5)

    def changed(other: int, value: int) -> int:
        moved = np.float32(other) + np.float32(factor) * np.float32(value - other)
        return int(min(max(moved, np.float32(0)), np.float32(255)))

    for change, others in [
        (change_brightness, [0] * 20),
        (change_contrast, [mean] * 20),
        (change_saturation, greys),
    ]:
        expected = [
            [changed(other, value) for value in pixel] for other, pixel in zip(others, pixels, strict=True)
        ]
        assert change(image, factor).reshape(-1, 3).tolist() == expected
