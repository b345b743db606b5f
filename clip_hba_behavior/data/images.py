"""From an image file to the pixels that CLIP sees."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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

from clip_hba_behavior.config import Arithmetic, PreprocessingRule
from clip_hba_behavior.data import colours
from clip_hba_behavior.data.resizing import resize
from clip_hba_behavior.data.things import MAX_IMAGE_BYTES, DataError
from clip_hba_behavior.reproducibility.state.untrusted import open_regular

MAX_PIXELS = 100_000_000
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
        rule: how colours become 8-bit RGB: the configuration's `preprocessing`; see `colours`.
        arithmetic: `portable` for sizes and colours changed by `resizing` and `jitter`, with the same bits on
            every machine; `native` for Pillow's own, which is about twice as fast and has its version's bits.
    """

    image_size: int = 224
    mean: tuple[float, float, float] = (0.52997664, 0.48070561, 0.41943838)
    std: tuple[float, float, float] = (0.27608301, 0.26593025, 0.28238822)
    rule: PreprocessingRule = 2
    arithmetic: Arithmetic = "native"

    def digest_fields(self, paths: Sequence[Path]) -> dict[str, Any]:
        """Return everything that shapes the pixels of some images, for a cache's key.

        The rule is left out where it makes no difference, so that these images have one cache under both. Native
        arithmetic is left out as well: caches had no other once.

        Raises:
            DataError: An image's header cannot be read.
        """
        fields = asdict(self)
        if self.rule == 1 or all(map(is_ordinary, paths)):
            del fields["rule"]
        if self.arithmetic == "native":
            del fields["arithmetic"]
        return fields


@dataclass(frozen=True)
class ImageFacts:
    """What is told of an image besides its pixels.

    Attributes:
        mode: Pillow's name of it, such as `RGB`, `L` (grey) or `I;16` (16-bit grey).
        size: width and height, before it is turned.
        traits: what a rule must interpret.
        is_constant: whether all pixels are the same, as they are read.
        has_several: whether more pictures follow the one that is read: frames, or pages.
    """

    mode: str
    size: tuple[int, int]
    traits: frozenset[colours.Trait]
    is_constant: bool
    has_several: bool


def read_image(path: Path, rule: PreprocessingRule, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read a JPEG, PNG, BMP, WebP, TIFF or GIF file (its first picture) as RGB; safe in threads.

    Args:
        path: of the file.
        rule: how its colours become 8-bit RGB.
        max_pixels: more are refused before anything is decoded. An RGB pixel takes 3 bytes of memory.

    Raises:
        DataError: The file cannot be read or decoded whole, or claims more than `max_pixels`.
    """
    with _opened(path, max_pixels) as image:
        return _rgb(image, rule)


def examine_image(path: Path, rule: PreprocessingRule) -> ImageFacts:
    """Read an image, and return what is to be told of it; raises as `read_image`."""
    with _opened(path, MAX_PIXELS) as image:
        mode, size = image.mode, image.size
        is_constant = _rgb(image, rule).getcolors(1) is not None
        traits, has_several = frozenset(colours.traits_of(image)), bool(getattr(image, "is_animated", False))
        return ImageFacts(mode, size, traits, is_constant, has_several)


def is_ordinary(path: Path) -> bool:
    """Whether an image has the same pixels by both rules, as its header tells; nothing is decoded.

    Raises:
        DataError: The header cannot be read.
    """
    with _opened(path, MAX_PIXELS) as image:
        return colours.is_ordinary(image)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[ImageFile]:
    """Open an image, not yet decoded. What goes wrong with it meanwhile becomes a DataError."""
    try:
        with open_regular(path, MAX_IMAGE_BYTES) as file:
            image = _open(file, path)
            width, height = max(image.size, _tile_size(image), key=math.prod)
            if width * height > max_pixels:
                raise DataError(
                    f"{path}: the image is too large\n  found:    {width} x {height} = {width * height} pixels\n"
                    f"  expected: at most {max_pixels}\n  make the image smaller"
                )
            yield image
    except (DataError, MemoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from error
    except Exception as error:  # decoders raise nearly anything on a damaged file
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _rgb(image: ImageFile, rule: PreprocessingRule) -> Image.Image:
    if rule == 2:
        return colours.to_rgb(image)
    image.load()
    # Has no effect on red, green and blue, and Pillow would warn that it is dropped.
    image.info.pop("transparency", None)
    return image.convert("RGB")


def to_pixels(image: Image.Image, preprocessing: Preprocessing) -> torch.Tensor:
    """Squash an RGB image to a square and normalise it, `[3, image_size, image_size] float32`.

    The same bits as torchvision's `Resize((S, S))`, `ToTensor()` and `Normalize(mean, std)` on an image of
    Pillow's; in portable arithmetic those on x86.
    """
    size = preprocessing.image_size
    if preprocessing.arithmetic == "portable":
        squashed = resize(np.asarray(image), size)
    else:
        squashed = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    # NumPy rounds each operation as torch does, without waking torch's threads for so little.
    pixels = squashed.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
    mean, std = (
        np.array(each, dtype=np.float32)[:, None, None] for each in (preprocessing.mean, preprocessing.std)
    )
    pixels -= mean
    pixels /= std
    return torch.from_numpy(pixels)


def decoded_digest(image: Image.Image) -> str:
    """Return the SHA-256 of an RGB image as it was decoded: another decoder's image tells itself by it.

    Of its height and width, 8 bytes each, the lowest first, and of its red, green and blue bytes, row by row.
    """
    height_and_width = b"".join(number.to_bytes(8, "little") for number in reversed(image.size))
    return hashlib.sha256(height_and_width + image.tobytes()).hexdigest()


def load_pixels(
    paths: Sequence[Path], preprocessing: Preprocessing, seen: Callable[[Path, str], None] | None = None
) -> torch.Tensor:
    """Read images, `[len(paths), 3, image_size, image_size] float32`.

    Args:
        paths: of the images.
        preprocessing: from image to pixels.
        seen: is called with each image's path and `decoded_digest`.

    Raises:
        DataError: An image cannot be read.
    """
    size = preprocessing.image_size
    pixels = torch.empty(len(paths), 3, size, size)
    for row, path in enumerate(paths):
        image = read_image(path, preprocessing.rule)
        if seen is not None:
            seen(path, decoded_digest(image))
        pixels[row] = to_pixels(image, preprocessing)
    return pixels


def _open(file: IO[bytes], path: Path) -> ImageFile:
    prefix = file.read(16)
    file.seek(0)
    for magic, decoder in _DECODERS:
        if prefix.startswith(magic):
            return decoder(file, str(path))
    raise ValueError("it is no JPEG, PNG, BMP, WebP, TIFF or GIF file" if prefix else "the file is empty")


def _tile_size(image: ImageFile) -> tuple[int, int]:
    """Return the size of a TIFF's tiles, which are decoded whole, however small the image."""
    if not isinstance(image, TiffImageFile):
        return 0, 0
    return int(image.tag_v2.get(322, 0)), int(image.tag_v2.get(323, 0))


def _unreadable(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: the image cannot be read: {reason}\n  put an image in its place that can be read")
