"""Images that mean harm."""

import io
import pickle
import struct
import zlib
from pathlib import Path

from hostile.files import Build, RunsCode, bytes_of, sparse


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(bytes(99))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data


def _tag(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHLL", tag, kind, count, value)


def tiff(*tags: bytes, content: bytes = b"", count: int | None = None) -> bytes:
    number = len(tags) if count is None else count
    return b"II*\0" + struct.pack("<LH", 8, number) + b"".join(tags) + bytes(4) + content


def tiff_tile_bomb() -> bytes:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(900)) + packer.flush()
    side = 30_000
    tags = [(256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    ends = [_tag(324, 4, 1, start), _tag(325, 4, 1, len(packed))]
    return tiff(*(_tag(tag, 4, 1, value) for tag, value in tags), *ends, content=packed)


def tiff_of_tags() -> bytes:
    """30,000 tags, each of which is all of the file."""
    size = 2**20
    tags = [_tag(256, 4, 1, 9), _tag(257, 4, 1, 9), *(_tag(1000 + n, 7, size, 0) for n in range(30_000))]
    return tiff(*tags, content=bytes(size))


def jpeg(width: int, height: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="JPEG")
    content = bytearray(file.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<L", width - 1)[:3] + struct.pack("<L", height - 1)[:3]
    extended = b"VP8X" + struct.pack("<L", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<L", len(extended) + 4) + b"WEBP" + extended


def gif_of_comments() -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + (b"!\xfe" + (b"\xff" + b"x" * 255) * 20 + b"\0") * 2000
    )


def png_with_a_wide_chunk(directory: Path) -> Path:
    start = png(9, 9)[:33]
    return sparse(directory / "a.png", 127 * 2**20, start=start + struct.pack(">I", 126 * 2**20) + b"tEXt")


IMAGES: list[tuple[str, Build]] = [
    ("too large", bytes_of("png_10_gigapixels", png(100_000, 100_000))),
    ("too large", bytes_of("png_2_62", png(2**31 - 1, 2**31 - 1))),
    ("too large", bytes_of("jpeg_4_gigapixels", lambda: jpeg(65_535, 65_535))),
    (
        "too large",
        bytes_of(
            "bmp_10_gigapixels",
            b"BM" + struct.pack("<LLLLllHHLLLLLL", 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        ),
    ),
    (
        "too large",
        bytes_of(
            "tiff_10_gigapixels",
            tiff(
                *(
                    _tag(t, 4, 1, v)
                    for t, v in (
                        (256, 10**5),
                        (257, 10**5),
                        (258, 8),
                        (259, 1),
                        (262, 1),
                        (273, 8),
                        (277, 1),
                        (278, 10**5),
                        (279, 9),
                    )
                )
            ),
        ),
    ),
    (
        "",
        bytes_of(
            "gif_4_gigapixels",
            b"GIF89a"
            + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
            + b","
            + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0)
            + b"\x08\0;",
        ),
    ),
    ("", bytes_of("webp_256_megapixels", webp(16_383, 16_383))),
    ("", bytes_of("webp_2_48", webp(2**24, 2**24))),
    (
        "",
        bytes_of(
            "png_text_bomb", lambda: png(9, 9, *[_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26), 1))] * 5)
        ),
    ),
    (
        "",
        bytes_of(
            "png_profile_bomb", lambda: png(9, 9, _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**28), 1)))
        ),
    ),
    ("", png_with_a_wide_chunk),
    ("", bytes_of("tiff_tile_bomb", tiff_tile_bomb)),
    ("", bytes_of("tiff_of_tags", tiff_of_tags)),
    ("", bytes_of("gif_of_comments", gif_of_comments)),
    ("it is no JPEG", bytes_of("pickle", lambda: pickle.dumps(RunsCode()))),
    (
        "it is no JPEG",
        bytes_of("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(pwned) (w) file\n"),
    ),
]
