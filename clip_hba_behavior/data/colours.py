"""From what an image file holds to 8-bit RGB: the rule of `preprocessing: 2`, in integers.

- An orientation in EXIF is applied.
- Of a 16-bit value the upper 8 bits count (`value >> 8`), of a 12-bit one likewise (`value >> 4`).
- Alpha, a palette's too, and a transparent colour lie over white:
  `(value * alpha + 255 * (255 - alpha) + 127) // 255`.
- CMYK becomes `(255 - cyan) * (255 - black) / 255`, rounded, and likewise. No profile is applied, to no image.
- Numbers of more than 16 bits, signed or with a fraction are refused: the file does not tell which is white.

All else, 8-bit RGB and grey before all, is as by rule 1, which is Pillow's `convert("RGB")`.
"""

import os
import struct
from enum import StrEnum
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from clip_hba_behavior.data.things import DataError

_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_WITHOUT_WHITE = ("I", "F")
_WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags of TIFF, and a value
_ORIENTATION, _SHORT = 0x0112, 3  # a tag of EXIF, and the type of its value
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Trait(StrEnum):
    """What an image can have that a rule must interpret; CMYK alone has the same colours by both."""

    DEEP_GREY = "16-bit grey"
    TRANSPARENT = "transparent"
    TURNED = "turned by EXIF"
    CMYK = "CMYK"
    WITHOUT_WHITE = "32-bit, signed or fractional grey"


def traits_of(image: ImageFile) -> set[Trait]:
    """Return what an opened image has; of a PNG whose EXIF follow the picture all only once it is loaded."""
    found = {
        Trait.DEEP_GREY: image.mode in _DEEP_GREY,
        Trait.TRANSPARENT: _is_transparent(image),
        Trait.TURNED: orientation_of(image) in _TURNS,
        Trait.CMYK: image.mode == "CMYK",
        Trait.WITHOUT_WHITE: image.mode in _WITHOUT_WHITE,
    }
    return {trait for trait, is_there in found.items() if is_there}


def is_ordinary(image: ImageFile) -> bool:
    """Whether both rules give an image that was opened and not loaded the same colours; if unsure, False."""
    return traits_of(image) <= {Trait.CMYK} and not _has_late_exif(image)


def to_rgb(image: ImageFile) -> Image.Image:
    """Load an image that was opened, and return it as 8-bit RGB.

    Raises:
        DataError: its numbers cannot be scaled to 8 bits.
    """
    if image.mode in _WITHOUT_WHITE:
        raise _not_scalable(image, "32-bit, signed or fractional numbers, whose white the file does not tell")
    transparent = _transparent_colour(image)
    image.load()
    turn = _TURNS.get(orientation_of(image))  # asked for now: a PNG may tell it after its picture
    turned: Image.Image = image if turn is None else image.transpose(turn)
    if image.mode in _DEEP_GREY:
        deep = np.asarray(turned)[:, :, None]
        if transparent is not None:
            return _over_white(_upper_bits(deep, image), _opaque_but(deep, transparent))
        return Image.fromarray(np.repeat(_upper_bits(deep, image), 3, axis=2))
    if transparent is not None:
        del turned.info["transparency"]  # Pillow would warn that it is dropped
        rgb = np.asarray(turned.convert("RGB"))
        return _over_white(rgb, _opaque_but(rgb, transparent))
    if _is_transparent(image):
        rgba = np.asarray(turned.convert("LA" if turned.mode == "La" else "RGBA").convert("RGBA"))
        return _over_white(rgba[:, :, :3], rgba[:, :, 3:])
    return turned.convert("RGB")


def orientation_of(image: ImageFile) -> int:
    """Return the orientation that an image's EXIF name, from 1 to 8; 1, upright, where they name none.

    A TIFF has none here: Pillow applies its own, and did so before there was a rule.
    """
    exif = image.info.get("exif", b"")
    body = exif.removeprefix(b"Exif\0\0") if isinstance(exif, bytes) else b""
    order = {b"II": "<", b"MM": ">"}.get(body[:2], "<")
    try:
        (start,) = struct.unpack_from(f"{order}I", body, 4)
        (num_entries,) = struct.unpack_from(f"{order}H", body, start)
        for entry in range(num_entries):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", body, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == _SHORT and value in _TURNS else 1
    except struct.error:
        pass
    return 1


def _is_transparent(image: ImageFile) -> bool:
    has_alpha = image.mode in _WITH_ALPHA or "transparency" in image.info
    return has_alpha or (image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A"))


def _transparent_colour(image: ImageFile) -> NDArray[np.int64] | None:
    """Return the colour that counts as transparent, `[1]` or `[3]`, as it is once loaded; None for no such."""
    given = image.info.get("transparency")
    if given is None or image.mode == "P":  # Pillow looks a palette's up, which is exact
        return None
    raw_mode = str(image.tile[0].args) if isinstance(image, PngImageFile) and image.tile else ""
    if raw_mode.startswith("RGB;16"):
        raise _not_scalable(image, "a transparent colour of 16 bits")  # of which Pillow hands on 8
    if image.mode == "1":
        return np.array([255 if given else 0])
    return np.atleast_1d(np.array(given)) * {"L;2": 85, "L;4": 17}.get(raw_mode, 1)  # as the few bits become 8


def _upper_bits(deep: NDArray[np.unsignedinteger], image: ImageFile) -> NDArray[np.uint8]:
    bits = 16
    if isinstance(image, TiffImageFile):
        bits = int(image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow heeds it up to 8 bits
            deep = 2**16 - 1 - deep
    return (deep >> (bits - 8)).astype(np.uint8)


def _opaque_but(values: NDArray[np.unsignedinteger], transparent: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.where((values == transparent).all(axis=2, keepdims=True), np.uint8(0), np.uint8(255))


def _over_white(colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> Image.Image:
    """Lay `[height, width, 1 or 3]` over white where `[height, width, 1]` is below 255."""
    wide = alpha.astype(np.uint16)  # the largest sum is 65152
    laid = ((colours * wide + 255 * (255 - wide) + 127) // 255).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(laid, (*laid.shape[:2], 3)).copy())


def _has_late_exif(image: ImageFile) -> bool:
    """Whether a PNG has EXIF after its picture, where they are read with it; moves the file's position."""
    file: IO[bytes] | None = image.fp
    if not isinstance(image, PngImageFile) or file is None:
        return False
    is_after = False
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        if is_after and kind == b"eXIf":
            return True
        is_after = is_after or kind == b"IDAT"
        file.seek(length + 4, 1)  # its content, and a checksum
    return False


def _not_scalable(image: ImageFile, found: str) -> DataError:
    return DataError(
        f"{os.fsdecode(image.filename)}: the image cannot be scaled to 8 bits\n  found:    {found}\n"
        "  expected: 8 or 16 bits, positive\n  save the image again with 8 bits"
    )
