"""Images as they are, read chunk by chunk, for the cache of frozen features."""

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from clip_hba_behavior.data.images import Preprocessing, load_pixels
from clip_hba_behavior.data.readers import read_in_order
from clip_hba_behavior.data.things import DataError

Chunk = tuple[NDArray[np.float32], list[str]]


class PlainImages(Dataset[Chunk]):
    """Pixels of consecutive images, `[images, 3, image_size, image_size] float32`, and their `decoded_digest`s."""

    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths = tuple(paths)
        self.preprocessing = preprocessing

    def __getitems__(self, indices: Sequence[int]) -> Chunk | DataError:
        """Return the pixels and digests of some images, or why there are none.

        Native arithmetic asks for no digests: its features count by the version of the decoder.
        """
        decoded: list[str] = []
        is_portable = self.preprocessing.arithmetic == "portable"
        try:
            pixels = load_pixels(
                [self.paths[index] for index in indices],
                self.preprocessing,
                (lambda _, found: decoded.append(found)) if is_portable else None,
            )
        except DataError as error:
            return error
        return pixels.numpy(), decoded


def read_chunks(
    paths: Sequence[Path], chunks: Sequence[tuple[int, int]], preprocessing: Preprocessing, num_workers: int
) -> Generator[Chunk, None, None]:
    """Yield the images of each chunk, in order; see `read_in_order`.

    Args:
        paths: of all images.
        chunks: start and stop of each.
        preprocessing: from image to pixels.
        num_workers: processes that read; 0 reads in this one.

    Raises:
        DataError: an image cannot be read.
    """
    requests = [range(start, stop) for start, stop in chunks]
    return read_in_order(PlainImages(paths, preprocessing), requests, num_workers, preprocessing.arithmetic)
