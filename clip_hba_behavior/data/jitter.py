"""Changes of colour, defined by integers and single float32 operations: the same bits on every machine.

The definitions are what Pillow's `ImageEnhance` means for 8-bit RGB, and on x86 they have Pillow's bits. A factor
is rounded to float32. Each moves a pixel's value from another one, which is `0` for brightness, the image's mean
grey for contrast and the pixel's own grey for saturation:

    changed = int(min(max(other + factor * (value - other), 0), 255))   # each + - * rounded to float32
    grey    = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    mean    = int((sum of the greys / number of pixels) + 0.5)          # / and + rounded to float64
"""

import numpy as np
from numpy.typing import NDArray


def change_brightness(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Return `[height, width, 3]` brighter by a factor of at least 0; 1 leaves it as it is."""
    return _blend(np.uint8(0), np.arange(256, dtype=np.uint8), factor).take(image)


def change_contrast(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Return `[height, width, 3]` with its contrast changed by a factor of at least 0; 1 leaves it as it is."""
    grey = _grey(image)
    mean = int(int(grey.sum(dtype=np.int64)) / grey.size + 0.5)
    return _blend(np.uint8(mean), np.arange(256, dtype=np.uint8), factor).take(image)


def change_saturation(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Return `[height, width, 3]` with its colours changed by a factor of at least 0; 1 leaves it as it is."""
    greys = np.repeat(_grey(image), 3, axis=1).reshape(image.shape)  # twice as fast as by broadcasting
    return _blend(greys, image, factor)


def _grey(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    channels = image.transpose(2, 0, 1).astype(np.int32, order="C")
    weighted: NDArray[np.int32] = 19595 * channels[0] + 38470 * channels[1] + 7471 * channels[2]
    return ((weighted + 2**15) >> 16).astype(np.uint8)


def _blend(other: NDArray[np.uint8] | np.uint8, values: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    blended = np.subtract(values, other, dtype=np.float32)
    blended *= np.float32(factor)
    blended += other
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)
