import hashlib
import struct
import threading
import warnings
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_hba_behavior.config import PreprocessingRule as Rule
from clip_hba_behavior.data.images import Preprocessing, decoded_digest, load_pixels, read_image, to_pixels
from clip_hba_behavior.data.resizing import resize
from clip_hba_behavior.data.things import DataError


def drawn(width: int = 70, height: int = 50, seed: int = 0) -> Image.Image:
    values = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture(params=[1, 2])
def rule(request: pytest.FixtureRequest) -> Rule:
    return request.param


def png_that_claims(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(99)))
        + chunk(b"IEND", b"")
    )


def message_of(work: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.gif", "a.jpg", "a.webp"])
def test_each_format_is_read_as_image_open_reads_it(tmp_path: Path, name: str, rule: Rule) -> None:
    drawn().save(tmp_path / name)
    with Image.open(tmp_path / name) as image:
        expected = image.convert("RGB").tobytes()
    found = read_image(tmp_path / name, rule)
    assert found.mode == "RGB"
    assert found.size == (70, 50)
    assert found.tobytes() == expected


def test_the_content_decides_and_not_the_ending(tmp_path: Path, rule: Rule) -> None:
    drawn().save(tmp_path / "a.jpg", format="PNG")
    assert read_image(tmp_path / "a.jpg", rule).tobytes() == drawn().tobytes()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_by_rule_1_other_modes_become_rgb_as_pillow_converts(tmp_path: Path, mode: str) -> None:
    image = drawn().convert(mode)
    image.save(tmp_path / "a.tiff")
    assert read_image(tmp_path / "a.tiff", 1).tobytes() == image.convert("RGB").tobytes()


def test_by_rule_1_a_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path: Path) -> None:
    image = drawn().convert("P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    assert read_image(tmp_path / "a.png", 1).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.tiff", "a.webp"])
def test_a_truncated_image_is_refused_with_path_and_reason(tmp_path: Path, name: str, rule: Rule) -> None:
    path = tmp_path / name
    drawn(300, 200).save(path)
    complete = path.read_bytes()
    for kept in (len(complete) // 2, 30, 12, 3):
        path.write_bytes(complete[:kept])
        # damaged TIFF directories make Pillow warn, too: of the damage, which is refused then
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            message = message_of(lambda: read_image(path, rule))
        assert message.startswith(f"{path}: the image cannot be read: ")
        assert message.endswith("\n  put an image in its place that can be read")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am a text", "it is no JPEG, PNG, BMP, WebP, TIFF or GIF file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "it is no JPEG, PNG, BMP, WebP, TIFF or GIF file"),
        (b"P6\n1 1\n255\n\0\0\0", "it is no JPEG, PNG, BMP, WebP, TIFF or GIF file"),
        (b"RIFF\x10\0\0\0WAVEfmt ", ""),
        (b"\xff\xd8\xff" + bytes(100), ""),
    ],
)
def test_what_is_no_image_of_the_six_formats_is_refused(
    tmp_path: Path, content: bytes, reason: str, rule: Rule
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert message_of(lambda: read_image(path, rule)).startswith(f"{path}: the image cannot be read: {reason}")


def test_a_missing_file_and_a_directory_are_refused(tmp_path: Path, rule: Rule) -> None:
    missing = message_of(lambda: read_image(tmp_path / "no.png", rule))
    assert (
        missing == f"{tmp_path / 'no.png'}: the image cannot be read: No such file or directory\n"
        "  put an image in its place that can be read"
    )
    assert "Is a directory" in message_of(lambda: read_image(tmp_path, rule))


# 9,500 x 9,500 is where Pillow warns, 30,000 x 30,000 where it refuses on its own.
@pytest.mark.parametrize("side", [10_001, 12_000, 30_000])
def test_a_header_that_claims_too_many_pixels_is_refused_before_decoding(
    tmp_path: Path, side: int, rule: Rule
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_that_claims(side, side))
    assert message_of(lambda: read_image(path, rule)) == (
        f"{path}: the image is too large\n  found:    {side} x {side} = {side * side} pixels\n"
        "  expected: at most 100000000\n  make the image smaller"
    )


def test_the_limit_can_be_set_and_pillows_own_does_not_warn_below_it(tmp_path: Path, rule: Rule) -> None:
    drawn(10, 10).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", rule, max_pixels=100).size == (10, 10)
    assert "at most 99" in message_of(lambda: read_image(tmp_path / "a.png", rule, max_pixels=99))
    (tmp_path / "b.png").write_bytes(png_that_claims(9_800, 9_800))
    assert "truncated" in message_of(lambda: read_image(tmp_path / "b.png", rule))


def test_reading_in_threads_gives_the_same_bytes_and_changes_nothing_global(tmp_path: Path, rule: Rule) -> None:
    drawn().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png_that_claims(9_800, 9_800))
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    found: list[bytes] = []

    def read() -> None:
        for _ in range(2):
            message_of(lambda: read_image(tmp_path / "b.png", rule))
            found.append(read_image(tmp_path / "a.png", rule).tobytes())

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [drawn().tobytes()] * 4
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


@pytest.mark.parametrize("size", [(70, 50), (500, 333), (224, 224), (1, 1), (3, 1000)])
def test_pixels_are_torchvisions_to_the_bit(size: tuple[int, int]) -> None:
    image = drawn(*size)
    preprocessing = Preprocessing()
    # What Resize((224, 224)), ToTensor() and Normalize(mean, std) do, in torchvision's own spelling.
    squashed = image.resize((224, 224), Image.Resampling.BILINEAR)
    scaled = torch.from_numpy(np.array(squashed)).permute(2, 0, 1).contiguous().to(torch.float32).div(255)
    mean, std = (torch.as_tensor(each, dtype=torch.float32) for each in (preprocessing.mean, preprocessing.std))
    expected = scaled.clone().sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))

    pixels = to_pixels(image, preprocessing)

    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    assert pixels.numpy().tobytes() == expected.numpy().tobytes()


def test_pixels_do_not_depend_on_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = to_pixels(drawn(), Preprocessing(image_size=336)).numpy().tobytes()
        torch.set_num_threads(2)
        assert to_pixels(drawn(), Preprocessing(image_size=336)).numpy().tobytes() == one
    finally:
        torch.set_num_threads(before)


def test_several_images_are_loaded_in_order(tmp_path: Path) -> None:
    preprocessing = Preprocessing(image_size=32)
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        drawn(seed=seed).save(path)
    pixels = load_pixels(paths, preprocessing)
    assert pixels.shape == (3, 3, 32, 32)
    for seed in range(3):
        assert pixels[seed].numpy().tobytes() == to_pixels(drawn(seed=seed), preprocessing).numpy().tobytes()
    assert load_pixels([], preprocessing).shape == (0, 3, 32, 32)


def test_portable_arithmetic_resizes_by_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    image, portable = drawn(300, 500), Preprocessing(image_size=32, arithmetic="portable")
    squashed = Image.fromarray(resize(np.asarray(image), 32))
    expected = to_pixels(squashed, Preprocessing(image_size=32)).numpy().tobytes()  # which has no size to change
    monkeypatch.delattr(Image.Image, "resize")
    assert to_pixels(image, portable).numpy().tobytes() == expected


def test_the_digest_of_a_decoded_image_is_of_its_size_and_its_bytes() -> None:
    image = Image.new("RGB", (3, 2), (1, 2, 3))
    content = bytes([2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, *[1, 2, 3] * 6])
    assert decoded_digest(image) == hashlib.sha256(content).hexdigest()
    other = Image.new("RGB", (2, 3), (1, 2, 3))
    assert decoded_digest(other) != decoded_digest(image)


def test_the_digests_of_images_are_collected_as_they_are_loaded(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for seed, path in enumerate(paths):
        drawn(seed=seed).save(path)
    seen: list[tuple[Path, str]] = []
    preprocessing = Preprocessing(image_size=32)
    pixels = load_pixels(paths, preprocessing, seen=lambda path, digest: seen.append((path, digest)))
    assert seen == [(path, decoded_digest(drawn(seed=seed))) for seed, path in enumerate(paths)]
    assert pixels.numpy().tobytes() == load_pixels(paths, preprocessing).numpy().tobytes()


def test_the_digest_fields_hold_everything_that_shapes_the_pixels(tmp_path: Path) -> None:
    drawn().save(tmp_path / "rgb.png")
    drawn().convert("RGBA").save(tmp_path / "rgba.png")
    ordinary, unusual = [tmp_path / "rgb.png"], [tmp_path / "rgb.png", tmp_path / "rgba.png"]
    before_there_were_rules = {
        "image_size": 224,
        "mean": (0.52997664, 0.48070561, 0.41943838),
        "std": (0.27608301, 0.26593025, 0.28238822),
    }
    assert Preprocessing(rule=1).digest_fields(unusual) == before_there_were_rules
    assert Preprocessing(rule=2).digest_fields(ordinary) == before_there_were_rules
    assert Preprocessing(rule=2).digest_fields(unusual) == before_there_were_rules | {"rule": 2}
    assert asdict(Preprocessing()) == before_there_were_rules | {"rule": 2, "arithmetic": "native"}
    portable = Preprocessing(rule=2, arithmetic="portable")
    assert portable.digest_fields(ordinary) == before_there_were_rules | {"arithmetic": "portable"}
    both = {"rule": 2, "arithmetic": "portable"}
    assert portable.digest_fields(unusual) == before_there_were_rules | both
