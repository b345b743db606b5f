"""Augmented training images: what an image undergoes depends on the seed, the epoch and the image alone."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch.utils.data import Dataset

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.data import jitter
from clip_hba_behavior.data.images import Preprocessing, decoded_digest, read_image, to_pixels
from clip_hba_behavior.data.readers import read_in_order
from clip_hba_behavior.data.things import DataError
from clip_hba_behavior.reproducibility.state.philox import stream

# Tells these draws from every other use of Philox with the run's seed.
_PURPOSE = int.from_bytes(b"augment", "little")
_CROP_TRIES = 10
_NUM_DRAWS = 4 + 4 * _CROP_TRIES


@dataclass(frozen=True)
class Augmentation:
    """What training images undergo.

    Attributes:
        random_resized_crop: cut out a part of random size, shape and place.
        horizontal_flip: mirror some images.
        color_jitter: change brightness, contrast and saturation.
        crop_scale: least and greatest part of the image's area that a crop keeps.
        crop_ratio: least and greatest width / height of a crop.
        flip_probability: from 0 to 1.
        brightness: a factor is drawn from 1 - brightness to 1 + brightness; from 0 to 1.
        contrast: likewise.
        saturation: likewise.
    """

    random_resized_crop: bool = False
    horizontal_flip: bool = False
    color_jitter: bool = False
    crop_scale: tuple[float, float] = (0.5, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale: {self.crop_scale}; expected 0 < least <= greatest <= 1")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ValueError(f"crop_ratio: {self.crop_ratio}; expected 0 < least <= greatest")
        for name in ("flip_probability", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: {getattr(self, name)}; expected 0 to 1")


def augment(
    image: Image.Image,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    image_index: int,
    arithmetic: Arithmetic = "native",
) -> Image.Image:
    """Return the image as this epoch sees it: cropped, mirrored, then its colours changed.

    Definition: of the draws (`_draws`) the first one mirrors where it is below the probability; the next three
    give the factors of brightness, contrast and saturation, changed in this order; then there are four for each
    attempt at a crop (`_crop_box`). A draw d becomes a number from `low` to `high` as `low + (high - low) * d`,
    the factors' limits being 1 less and 1 plus the strength. All are single float64 operations.

    Args:
        image: RGB, of any size.
        augmentation: what it undergoes; switching one part on or off leaves the others' draws alone.
        seed: of the run; like epoch and image_index from 0 to 2**64 - 1.
        epoch: counted from 1.
        image_index: row of the image in the table.
        arithmetic: whose colour changes: Pillow's own, or those of `jitter`.
    """
    flip, *others = _draws(seed, epoch, image_index)
    factors, crops = others[:3], others[3:]
    if augmentation.random_resized_crop:
        image = image.crop(_crop_box(image.size, augmentation, crops))
    if augmentation.horizontal_flip and flip < augmentation.flip_probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.color_jitter:
        strengths = (augmentation.brightness, augmentation.contrast, augmentation.saturation)
        drawn = [_between(1 - each, 1 + each, draw) for each, draw in zip(strengths, factors, strict=True)]
        image = _jittered(image, drawn, arithmetic)
    return image


class AugmentedImages(Dataset[torch.Tensor]):
    """Pixels of (epoch, image_index), `[3, image_size, image_size] float32`."""

    def __init__(
        self,
        paths: Sequence[Path],
        preprocessing: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        decoded: Sequence[str] = (),
    ) -> None:
        self.paths = tuple(paths)
        self.decoded = tuple(decoded)
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self.seed = seed

    def __getitem__(self, request: tuple[int, int]) -> torch.Tensor:
        """Read, augment and normalise one image; DataError if it cannot be read, or is decoded otherwise."""
        epoch, image_index = request
        image = read_image(self.paths[image_index], self.preprocessing.rule)
        if self.decoded:
            self._refuse_other_pixels(image, image_index)
        augmented = augment(image, self.augmentation, self.seed, epoch, image_index, self.preprocessing.arithmetic)
        return to_pixels(augmented, self.preprocessing)

    def _refuse_other_pixels(self, image: Image.Image, image_index: int) -> None:
        found, expected = decoded_digest(image), self.decoded[image_index]
        if found != expected:
            raise DataError(
                f"{self.paths[image_index]} is decoded to other pixels than the features in the cache are of\n"
                f"  found:    {found}\n  expected: {expected}\n"
                "  another decoder filled the cache, or the image has changed since; "
                "give this machine a cache of its own (cache_dir) and start or resume again"
            )

    def __getitems__(self, requests: Sequence[tuple[int, int]]) -> NDArray[np.float32] | DataError:
        """Return a whole batch `[batch, 3, image_size, image_size]`, or why there is none."""
        try:
            return np.stack([self[request].numpy() for request in requests])
        except DataError as error:
            return error


def augmented_batches(
    paths: Sequence[Path],
    batches: Sequence[Sequence[int]],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    num_workers: int,
    decoded: Sequence[str] = (),
) -> Iterator[torch.Tensor]:
    """Yield each batch of augmented images, `[batch, 3, image_size, image_size] float32`, in order.

    The bytes do not depend on `num_workers`: see `read_in_order`. Closing the iterator early stops the workers.

    Args:
        paths: of all images.
        batches: for each batch, positions in `paths`.
        preprocessing: from image to pixels.
        augmentation: what the images undergo.
        seed: of the run.
        epoch: counted from 1.
        num_workers: processes that read images; 0 reads them in this one.
        decoded: the `decoded_digest` that each image must have; nothing to take them as they are.

    Raises:
        ValueError: A batch is empty or names an image that is not there.
        DataError: An image cannot be read, or is decoded otherwise.
    """
    for number, batch in enumerate(batches, start=1):
        if not batch or not 0 <= min(batch) <= max(batch) < len(paths):
            raise ValueError(f"batch {number} is {list(batch)}; expected positions from 0 to {len(paths) - 1}")
    images = AugmentedImages(paths, preprocessing, augmentation, seed, decoded)
    requests = [[(epoch, image_index) for image_index in batch] for batch in batches]
    return _as_tensors(read_in_order(images, requests, num_workers, preprocessing.arithmetic))


def _as_tensors(batches: Generator[NDArray[np.float32], None, None]) -> Iterator[torch.Tensor]:
    with closing(batches):
        for batch in batches:
            yield torch.from_numpy(batch)


def _jittered(image: Image.Image, factors: Sequence[float], arithmetic: Arithmetic) -> Image.Image:
    brightness, contrast, saturation = factors
    if arithmetic == "portable":
        values = jitter.change_brightness(np.asarray(image), brightness)
        values = jitter.change_contrast(values, contrast)
        return Image.fromarray(jitter.change_saturation(values, saturation))
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    return ImageEnhance.Color(image).enhance(saturation)


def _draws(seed: int, epoch: int, image_index: int) -> list[float]:
    """Return uniform numbers from 0 to below 1.

    Definition: the first words of Philox-4x64-10, which has a block of four for each counter (n, image_index,
    epoch, 0), n = 1, 2, ... (NumPy counts up before the first). The key is the seed and the text `augment` as a
    number, its first letter the lowest byte. Each word is shifted right by 11 bits, and multiplied by `2**-53`.

    Seed, epoch and index fill words of Philox's key and counter of their own, so no two images share a draw.
    """
    words = stream((seed, _PURPOSE), (0, image_index, epoch, 0)).random_raw(_NUM_DRAWS)
    return [int(word >> 11) * 2.0**-53 for word in words.tolist()]


def _between(low: float, high: float, draw: float) -> float:
    return low + (high - low) * draw


def _crop_box(
    size: tuple[int, int], augmentation: Augmentation, draws: Sequence[float]
) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of the first crop that fits; the whole image if none of ten does.

    Definition: of an attempt's four draws the first gives the part of the area, the second the ratio: with `area =
    width * height * part`, width and height of the crop are `sqrt(area * ratio)` and `sqrt(area / ratio)`,
    rounded, ties to even. It fits if both are positive and no greater than the image's. The third gives its left,
    `int(draw * (width - its width + 1))`, the fourth its top likewise.
    """
    width, height = size
    for attempt in range(_CROP_TRIES):
        scale, ratio, x, y = draws[4 * attempt : 4 * attempt + 4]
        area = width * height * _between(*augmentation.crop_scale, scale)
        # Uniform, not log-uniform as torchvision's: log and exp differ between C libraries, sqrt does not.
        aspect = _between(*augmentation.crop_ratio, ratio)
        crop_width, crop_height = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(x * (width - crop_width + 1))
            top = int(y * (height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    return 0, 0, width, height
