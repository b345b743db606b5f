"""Rule 2 from file to 8-bit RGB: each number is the one that the rule states; ordinary images are as by rule 1."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from clip_hba_behavior.data.colours import Trait
from clip_hba_behavior.data.images import examine_image, is_ordinary, read_image
from clip_hba_behavior.data.things import DataError


def noise(*shape: int, below: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).integers(0, below, shape)


def pixels(path: Path, rule: int = 2) -> np.ndarray:
    return np.asarray(read_image(path, rule)).astype(int)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (colours * alpha + 255 * (255 - alpha) + 127) // 255


def saved(path: Path, values: np.ndarray, mode: str | None = None, **options: object) -> Path:
    image = Image.fromarray(values.astype(np.uint8) if mode is None else values)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[:, :, None], 3, axis=2)


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


# --- ordinary images ---


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.tiff", "a.webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P"])
def test_ordinary_images_have_the_same_pixels_by_both_rules(tmp_path: Path, name: str, mode: str) -> None:
    if (name, mode) in {("a.jpg", "P"), ("a.webp", "1")}:
        pytest.skip("there are no such files")
    path = tmp_path / name
    Image.fromarray(noise(40, 30, 3).astype(np.uint8)).convert(mode).save(path)
    assert is_ordinary(path)
    assert read_image(path, 2).tobytes() == read_image(path, 1).tobytes()


def test_colours_of_16_bits_have_the_same_pixels_by_both_rules_which_are_the_upper_bits(tmp_path: Path) -> None:
    path, values = tmp_path / "a.png", noise(5, 7, 3, below=2**16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    path.write_bytes(png(7, 5, 16, 2, rows))
    assert is_ordinary(path)
    assert (pixels(path, 1) == values >> 8).all()
    assert (pixels(path) == values >> 8).all()


# --- 16-bit grey ---


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_of_16_bit_grey_the_upper_8_bits_are_read(tmp_path: Path, name: str) -> None:
    path, values = tmp_path / name, noise(20, 30, below=2**16)
    values[0, :3] = 0, 255, 2**16 - 1
    Image.fromarray(values.astype(np.uint16)).save(path)
    assert (pixels(path) == grey(values >> 8)).all()
    assert (pixels(path, 1) == grey(np.minimum(values, 255))).all()  # as it always was: nearly all white
    assert not is_ordinary(path)
    assert examine_image(path, 2).traits == {Trait.DEEP_GREY}


def tiff(
    order: str, photometric: int, bits: int, data: bytes, size: tuple[int, int], sample_format: int = 1
) -> bytes:
    entries = [(256, size[0]), (257, size[1]), (258, bits), (259, 1), (262, photometric), (273, 150), (277, 1)]
    entries += [(278, size[1]), (279, len(data)), (339, sample_format)]
    packed = b"".join(
        struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, 1)
        + (struct.pack(f"{order}I", value) if tag in (273, 279) else struct.pack(f"{order}HH", value, 0))
        for tag, value in entries
    )
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    directory = start + struct.pack(f"{order}H", len(entries)) + packed + bytes(4)
    return directory.ljust(150, b"\0") + data


def test_16_bit_tiffs_of_either_byte_order_and_sense_are_read_alike(tmp_path: Path) -> None:
    path, values = tmp_path / "a.tiff", noise(6, 5, below=2**16)
    for order, dtype in (("<", "<u2"), (">", ">u2")):
        path.write_bytes(tiff(order, 1, 16, values.astype(dtype).tobytes(), (5, 6)))
        assert (pixels(path) == grey(values >> 8)).all()
    path.write_bytes(tiff("<", 0, 16, (2**16 - 1 - values).astype("<u2").tobytes(), (5, 6)))
    assert (pixels(path) == grey(values >> 8)).all()  # zero is white in this one


def test_of_12_bit_grey_the_upper_8_bits_are_read(tmp_path: Path) -> None:
    values = noise(2, 4, below=2**12)
    packed = bytearray()
    for first, second in values.reshape(-1, 2).tolist():
        packed += bytes([first >> 4, (first & 15) << 4 | second >> 8, second & 255])
    (tmp_path / "a.tiff").write_bytes(tiff("<", 1, 12, bytes(packed), (4, 2)))
    assert (pixels(tmp_path / "a.tiff") == grey(values >> 4)).all()


@pytest.mark.parametrize(("bits", "sample_format", "dtype"), [(32, 1, "<u4"), (16, 2, "<i2"), (32, 3, "<f4")])
def test_numbers_whose_white_nobody_tells_are_refused(
    tmp_path: Path, bits: int, sample_format: int, dtype: str
) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(tiff("<", 1, bits, np.ones((2, 3)).astype(dtype).tobytes(), (3, 2), sample_format))
    with pytest.raises(DataError) as caught:
        read_image(path, 2)
    assert str(caught.value) == (
        f"{path}: the image cannot be scaled to 8 bits\n"
        "  found:    32-bit, signed or fractional numbers, whose white the file does not tell\n"
        "  expected: 8 or 16 bits, positive\n  save the image again with 8 bits"
    )
    assert not is_ordinary(path)


# --- transparency ---


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
def test_alpha_lies_over_white(tmp_path: Path, name: str) -> None:
    values = noise(50, 40, 4)
    values[:2, :, 3] = [[0], [255]]
    path = saved(tmp_path / name, values, **({"lossless": True, "exact": True} if name == "a.webp" else {}))
    assert (pixels(path) == over_white(values[:, :, :3], values[:, :, 3:])).all()
    assert (pixels(path)[0] == 255).all()
    assert (pixels(path)[1] == values[1, :, :3]).all()
    assert (pixels(path, 1) == values[:, :, :3]).all()  # whatever lay beneath
    assert not is_ordinary(path)
    assert examine_image(path, 2).traits == {Trait.TRANSPARENT}


@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_grey_with_alpha_lies_over_white(tmp_path: Path, name: str) -> None:
    values = noise(9, 8, 2)
    path = saved(tmp_path / name, values)
    assert (pixels(path) == grey(over_white(values[:, :, 0], values[:, :, 1]))).all()


def test_a_palettes_alpha_lies_over_white(tmp_path: Path) -> None:
    indices, palette, alpha = noise(16, 16), noise(256, 3, seed=1), noise(256, seed=2)
    image = Image.fromarray(indices.astype(np.uint8), "L")
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(tmp_path / "a.png", transparency=alpha.astype(np.uint8).tobytes())
    expected = over_white(palette[indices], alpha[indices][:, :, None])
    assert (pixels(tmp_path / "a.png") == expected).all()
    assert (pixels(tmp_path / "a.png", 1) == palette[indices]).all()
    assert not is_ordinary(tmp_path / "a.png")
    image.save(tmp_path / "one.png", transparency=7)
    assert (pixels(tmp_path / "one.png") == np.where(indices[:, :, None] == 7, 255, palette[indices])).all()


def test_a_transparent_gif_lies_over_white(tmp_path: Path) -> None:
    indices, palette = noise(16, 16, below=8), noise(8, 3, seed=1)
    image = Image.fromarray(indices.astype(np.uint8), "L")
    image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(tmp_path / "a.gif", transparency=3)
    assert not is_ordinary(tmp_path / "a.gif")
    assert (pixels(tmp_path / "a.gif") == np.where(indices[:, :, None] == 3, 255, palette[indices])).all()


@pytest.mark.parametrize(("depth", "scale"), [(1, 255), (2, 85), (4, 17), (8, 1)])
def test_a_transparent_grey_of_any_depth_lies_over_white(tmp_path: Path, depth: int, scale: int) -> None:
    values = np.array([[0, 1, 1, 0]]) if depth == 1 else np.array([[0, 1, 2, 3]])
    bits = "".join(f"{value:0{depth}b}" for value in values[0].tolist())
    row = b"\0" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")
    path = tmp_path / "a.png"
    path.write_bytes(png(4, 1, depth, 0, row, (b"tRNS", struct.pack(">H", 1))))
    assert not is_ordinary(path)
    assert (pixels(path) == grey(np.where(values == 1, 255, values * scale))).all()


def test_a_transparent_16_bit_grey_is_one_value_and_not_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    row = b"\0" + struct.pack(">4H", 1000, 1001, 1000, 0)
    path.write_bytes(png(4, 1, 16, 0, row, (b"tRNS", struct.pack(">H", 1000))))
    assert pixels(path)[0, :, 0].tolist() == [255, 1001 >> 8, 255, 0]


def test_a_transparent_colour_lies_over_white_and_one_of_16_bits_is_refused(tmp_path: Path) -> None:
    path, key = tmp_path / "a.png", (b"tRNS", struct.pack(">3H", 10, 20, 30))
    path.write_bytes(png(2, 1, 8, 2, bytes([0, 10, 20, 30, 10, 20, 31]), key))
    assert not is_ordinary(path)
    assert pixels(path)[0].tolist() == [[255, 255, 255], [10, 20, 31]]
    path.write_bytes(png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 10, 20, 30), key))
    with pytest.raises(DataError, match="found:    a transparent colour of 16 bits"):
        read_image(path, 2)


# --- CMYK ---


@pytest.mark.parametrize("name", ["a.tiff", "a.jpg"])
def test_cmyk_is_converted_without_a_profile(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(noise(30, 20, 4).astype(np.uint8), "CMYK")
    image.save(tmp_path / name)
    with Image.open(tmp_path / name) as opened:
        cmyk = np.asarray(opened).astype(int)
    light = 255 - cmyk[:, :, 3:]
    expected = light - (2 * cmyk[:, :, :3] * light + 255) // 510  # rounded; never in the middle
    assert (pixels(tmp_path / name) == expected).all()
    assert (np.abs(expected - (255 - cmyk[:, :, :3]) * light / 255) <= 0.5).all()
    assert read_image(tmp_path / name, 1).tobytes() == read_image(tmp_path / name, 2).tobytes()
    assert is_ordinary(tmp_path / name)
    assert examine_image(tmp_path / name, 2).traits == {Trait.CMYK}


# --- orientation ---


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_an_image_is_turned_as_exif_say(tmp_path: Path, name: str, orientation: int) -> None:
    path = saved(tmp_path / name, noise(12, 7, 3), exif=exif_of(orientation))
    with Image.open(path) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
        stored = image.convert("RGB")
    assert read_image(path, 2).tobytes() == expected.tobytes()
    assert read_image(path, 2).size == ((12, 7) if orientation > 4 else (7, 12))
    assert read_image(path, 1).tobytes() == stored.tobytes()
    assert is_ordinary(path) == (orientation == 1)
    assert examine_image(path, 2).traits == ({Trait.TURNED} if orientation > 1 else set())


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_is_turned_once_and_was_so_before(tmp_path: Path, compression: str | None) -> None:
    path, values = tmp_path / "a.tiff", noise(12, 7, 3)
    saved(path, values, tiffinfo={0x0112: 6}, compression=compression)
    assert (pixels(path) == np.rot90(values, -1)).all()
    assert read_image(path, 1).tobytes() == read_image(path, 2).tobytes()
    assert is_ordinary(path)


def test_turned_images_of_other_modes_are_turned_too(tmp_path: Path) -> None:
    deep, alpha = noise(6, 5, below=2**16), noise(6, 5, 4)
    Image.fromarray(deep.astype(np.uint16)).save(tmp_path / "deep.png", exif=exif_of(8))
    assert (pixels(tmp_path / "deep.png") == np.rot90(grey(deep >> 8))).all()
    path = saved(tmp_path / "alpha.png", alpha, exif=exif_of(8))
    assert (pixels(path) == np.rot90(over_white(alpha[:, :, :3], alpha[:, :, 3:]))).all()


def test_exif_after_a_pngs_picture_count_and_the_header_alone_calls_it_no_ordinary_one(tmp_path: Path) -> None:
    path, values = tmp_path / "a.png", noise(6, 5, 3)
    saved(path, values)
    content = path.read_bytes()
    exif = exif_of(3).removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert (pixels(path) == values[::-1, ::-1]).all()
    assert not is_ordinary(path)
    assert examine_image(path, 2).traits == {Trait.TURNED}


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0",
        b"Exif\0\0XX*\0\x08\0\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, 9, 0),
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x0112, 2, 1, 3),
    ],
)
def test_damaged_exif_turn_nothing(tmp_path: Path, exif: bytes) -> None:
    buffer = io.BytesIO()
    values = noise(12, 7, 3)
    Image.fromarray(values.astype(np.uint8)).save(buffer, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    path = tmp_path / "a.jpg"
    path.write_bytes(buffer.getvalue()[:2] + segment + buffer.getvalue()[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of Pillow, which looks for a resolution in them
        assert is_ordinary(path)
        assert read_image(path, 2).tobytes() == read_image(path, 1).tobytes()


def test_what_is_no_image_is_refused_by_its_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="the image cannot be read"):
        is_ordinary(tmp_path / "a.png")
