"""Resizing, defined by integers and single IEEE operations: the same bits on every machine.

The definition is that of Pillow 13's `resize((size, size), BILINEAR)` for 8-bit RGB, and on x86 it has Pillow's
bits. Pillow computes its weights in C, where a compiler may join a product and a sum to one operation that rounds
once; and up to version 12 it resizes tall images in another order.

Along one axis, `length` pixels become `size`. All numbers below are float64, each `+ - * /` is rounded on its own,
and `int` cuts off a fraction.

    scale    = float32(length) / size               # the length, rounded to float32
    support  = max(scale, 1)
    centre_i = (i + 0.5) * scale                    # of output i = 0, ..., size - 1
    first_i  = max(int((centre_i - support) + 0.5), 0)
    end_i    = min(int((centre_i + support) + 0.5), length)
    t_ij     = |((j - centre_i) + 0.5) * (1 / support)|           # of the pixels j = first_i, ..., end_i - 1
    w_ij     = 1 - t_ij where t_ij < 1, otherwise 0
    k_ij     = int(0.5 + (w_ij / sum_j w_ij) * 2**22)             # the sum in order of j, from the first
    output_i = min((2**21 + sum_j k_ij * pixel_j) >> 22, 255)     # in integers

Along each axis that has not `size` pixels already, one after the other, each rounded to 8 bits: the columns first
where `height > size and height - size > 2 * (width - size)`, otherwise the rows.

A sum never leaves 32 bits: rounding at most doubles a weight, so it is at most 255 * 2**23 + 2**21. Products of a
sparse matrix of integers are therefore exact in any order.
"""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_FRACTION_BITS = 22


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Squash an image to a square, antialiased.

    Args:
        image: RGB, `[height, width, 3]`, of at least one pixel.
        size: width and height of the result, at least 1.

    Returns:
        `[size, size, 3]`.
    """
    height, width, _ = image.shape
    if height > size and height - size > 2 * (width - size):
        rows = _resize_first_axis(image, size)  # [size, width, 3]
        columns = _resize_first_axis(rows.transpose(1, 2, 0), size)  # [size, 3, size], a column after the other
        return np.ascontiguousarray(columns.transpose(2, 0, 1))
    columns = _resize_first_axis(image.transpose(1, 2, 0), size)  # [size, 3, height]
    rows = _resize_first_axis(columns.transpose(2, 1, 0), size)  # [size, 3, size], a row after the other
    return np.ascontiguousarray(rows.transpose(0, 2, 1))


def _resize_first_axis(values: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize `[length, ...]` to `[size, ...]`."""
    length, *others = values.shape
    if length == size:
        return values
    # A copy of bytes in order, and then of integers: twice as fast as both at once.
    flat = np.ascontiguousarray(values).reshape(length, -1)
    sums = _weights(length, size) @ flat.astype(np.int32)
    sums += 1 << (_FRACTION_BITS - 1)
    sums >>= _FRACTION_BITS
    return np.minimum(sums, 255, out=sums).astype(np.uint8).reshape(size, *others)


@lru_cache(maxsize=8)  # images of one data set often have one size
def _weights(length: int, size: int) -> "csr_array[np.int32]":
    """Return each output's weights of the pixels along an axis, `[size, length] int32`."""
    from scipy.sparse import csr_array  # takes long, and runs in native arithmetic do without it

    scale = float(np.float32(length)) / size
    support = max(scale, 1.0)
    centre = (np.arange(size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    end = np.minimum((centre + support + 0.5).astype(np.int64), length)
    pixels = first[:, None] + np.arange(2 * math.ceil(support) + 1)
    distance = np.abs((pixels - centre[:, None] + 0.5) * (1.0 / support))
    weights = np.where((distance < 1) & (pixels < end[:, None]), 1.0 - distance, 0.0)
    # The last of the running totals: unlike np.sum, they can have one order alone.
    weights /= np.add.accumulate(weights, axis=1)[:, -1:]
    integers = (0.5 + weights * 2.0**_FRACTION_BITS).astype(np.int32)
    is_used = integers > 0
    starts = np.concatenate([[0], np.cumsum(is_used.sum(axis=1))])
    return csr_array(
        (integers[is_used], pixels[is_used].astype(np.int32), starts.astype(np.int32)), shape=(size, length)
    )
