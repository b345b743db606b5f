"""Print one digest of many resized and augmented images: equal on all machines in portable arithmetic.

    python scripts/images_anywhere.py [--images 60] [--seeds 3] [--arithmetic portable|native] [--expect DIGEST]

The images are made of integers, from one pixel to 200 x 200, and pass through what training does with a decoded
image, to 96 x 96 pixels. With `--expect` the digest is compared with another machine's, or with a file's; exit
code 1 if it differs. In native arithmetic it is that of Pillow's resizing: with Pillow 13 on x86 the same.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.data.augmentation import Augmentation, augment
from clip_hba_behavior.data.images import Preprocessing, to_pixels

_LARGEST_SIDE, _IMAGE_SIZE = 200, 96
_ALL = Augmentation(random_resized_crop=True, horizontal_flip=True, color_jitter=True)


def main() -> int:
    """Print the digest and compare it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arithmetic", choices=("portable", "native"), default="portable")
    parser.add_argument("--expect", default=None)
    arguments = parser.parse_args()
    found = digest(arguments.images, arguments.seeds, arguments.arithmetic)
    print(found)
    if arguments.expect is None:
        return 0
    path = Path(arguments.expect)
    expected = path.read_text(encoding="utf-8").strip() if path.is_file() else arguments.expect
    if found == expected:
        return 0
    print(f"the images' digest differs\n  found:    {found}\n  expected: {expected}", file=sys.stderr)
    return 1


def digest(num_images: int, num_seeds: int, arithmetic: Arithmetic) -> str:
    """Return the SHA-256 of the pixels of all images, each as it is and once for each seed."""
    preprocessing = Preprocessing(image_size=_IMAGE_SIZE, arithmetic=arithmetic)
    hasher = hashlib.sha256()
    for index in range(num_images):
        image = made_image(index)
        augmented = [augment(image, _ALL, seed, 1, index, arithmetic) for seed in range(num_seeds)]
        for each in [image, *augmented]:
            hasher.update(to_pixels(each, preprocessing).numpy().astype("<f4", copy=False).tobytes())
    return hasher.hexdigest()


def made_image(index: int) -> Image.Image:
    """Return an RGB image, its size and pixels made of its index by integers; every third of 0 and 255 alone."""
    sides = _words(2, seed=index) % np.uint64(_LARGEST_SIDE) + np.uint64(1)
    height, width = (int(side) for side in sides)
    values = (_words(height * width * 3, seed=index + 2**32) & np.uint64(255)).astype(np.uint8)
    if index % 3 == 0:
        values = np.where(values > 127, np.uint8(255), np.uint8(0))
    return Image.fromarray(values.reshape(height, width, 3))


def _words(number: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    words = np.arange(number, dtype=np.uint64) * np.uint64(6364136223846793005)
    words += np.uint64((seed + 1) * 1442695040888963407 % 2**64)
    words = (words ^ (words >> np.uint64(29))) * np.uint64(2862933555777941757)
    return words >> np.uint64(32)


if __name__ == "__main__":
    sys.exit(main())
