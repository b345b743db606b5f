"""From an image file to the pixels that CLIP sees."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import PREFIXES, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from clip_hba_behavior.data.things import MAX_IMAGE_BYTES, DataError
from clip_hba_behavior.reproducibility.state.untrusted import open_regular

# Image.open would warn above its own limit, and silencing a warning is not thread-safe. Its decoders do not
# warn, and naming them leaves the many rarely used ones out.
_DECODERS: tuple[tuple[tuple[bytes, ...], type[ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImageFile),
    ((b"GIF87a", b"GIF89a"), GifImageFile),
    ((b"RIFF",), WebPImageFile),
    (tuple(PREFIXES), TiffImageFile),
    ((b"BM",), BmpImageFile),
)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes pixels.

    Attributes:
        image_size: width and height in pixels.
        mean: of red, green and blue, on a scale from 0 to 1.
        std: likewise, the standard deviations.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.52997664, 0.48070561, 0.41943838)
    std: tuple[float, float, float] = (0.27608301, 0.26593025, 0.28238822)

    def digest_fields(self) -> dict[str, Any]:
        """Return everything that shapes the pixels, for a cache's key."""
        return asdict(self)


def read_image(path: Path, max_pixels: int = 100_000_000) -> Image.Image:
    """Read a JPEG, PNG, BMP, WebP, TIFF or GIF file (its first picture) as RGB; safe in threads.

    Args:
        path: of the file.
        max_pixels: more are refused before anything is decoded. An RGB pixel takes 3 bytes of memory.

    Raises:
        DataError: The file cannot be read or decoded whole, or claims more than `max_pixels`.
    """
    try:
        with open_regular(path, MAX_IMAGE_BYTES) as file:
            image = _open(file, path)
            width, height = max(image.size, _tile_size(image), key=math.prod)
            if width * height > max_pixels:
                raise DataError(
                    f"{path}: the image is too large\n  found:    {width} x {height} = {width * height} pixels\n"
                    f"  expected: at most {max_pixels}\n  make the image smaller"
                )
            image.load()
            # Has no effect on red, green and blue, and Pillow would warn that it is dropped.
            image.info.pop("transparency", None)
            return image.convert("RGB")
    except (DataError, MemoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise _unreadable(path, str(error) or type(error).__name__) from error


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Squash an RGB image to a square and normalise it, `[3, image_size, image_size] float32`.

    The same bits as torchvision's `Resize((S, S))`, `ToTensor()` and `Normalize(mean, std)` on an image of
    Pillow's.
    """
    size = (preprocessing.image_size, preprocessing.image_size)
    squashed = np.asarray(image.resize(size, Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    # NumPy rounds each operation as torch does, without waking torch's threads for so little.
    pixels = squashed.astype(np.float32, order="C") / np.float32(255)
    mean, std = (
        np.array(each, dtype=np.float32)[:, None, None] for each in (preprocessing.mean, preprocessing.std)
    )
    pixels -= mean
    pixels /= std
    return torch.from_numpy(pixels)


def load_pixels(paths: Sequence[Path], preprocessing: Preprocessing) -> torch.Tensor:
    """Read images, `[len(paths), 3, image_size, image_size] float32`.

    Raises:
        DataError: An image cannot be read.
    """
    size = preprocessing.image_size
    pixels = torch.empty(len(paths), 3, size, size)
    for row, path in enumerate(paths):
        pixels[row] = to_pixels(read_image(path), preprocessing)
    return pixels


def _open(file: IO[bytes], path: Path) -> ImageFile:
    prefix = file.read(16)
    file.seek(0)
    for magic, decoder in _DECODERS:
        if prefix.startswith(magic):
            return decoder(file, str(path))
    raise ValueError("it is no JPEG, PNG, BMP, WebP, TIFF or GIF file")


def _tile_size(image: ImageFile) -> tuple[int, int]:
    """Return the size of a TIFF's tiles, which are decoded whole, however small the image."""
    if not isinstance(image, TiffImageFile):
        return 0, 0
    return int(image.tag_v2.get(322, 0)), int(image.tag_v2.get(323, 0))


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: the image cannot be read: {reason}\n  restore the file")
