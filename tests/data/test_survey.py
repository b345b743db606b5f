from pathlib import Path

import numpy as np
from PIL import Image

from clip_hba_behavior.data.survey import Survey, survey_images


def noise(side: int, channels: int, seed: int) -> Image.Image:
    values = np.random.Generator(np.random.Philox(seed)).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Image.fromarray(values)


def test_ordinary_images_are_counted_and_nothing_is_unusual(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.png" for seed in range(3)]
    for seed, path in enumerate(paths):
        noise(32, 3, seed).save(path)
    noise(32, 3, 1).convert("L").save(tmp_path / "0.png")
    seen: list[tuple[int, int]] = []
    survey = survey_images(paths, 2, 32, lambda done, total: seen.append((done, total)))
    assert survey == Survey({"RGB": 2, "L": 1}, 0, 0, 0, 0, (), ())
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_is_unusual_is_counted_and_told_with_examples_and_how_it_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    for number in range(5):
        noise(32, 4, number).save(tmp_path / f"alpha{number}.png")
    noise(32, 3, 7).save(tmp_path / "turned.jpg", exif=exif)
    noise(32, 4, 8).convert("CMYK").save(tmp_path / "cmyk.tiff")
    deep = np.full((32, 32), 700, dtype=np.uint16)
    deep[0, 0] = 7000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    noise(31, 3, 9).save(tmp_path / "small.png")
    Image.new("RGB", (40, 40), (1, 2, 3)).save(tmp_path / "grey.png")
    (tmp_path / "again.png").write_bytes((tmp_path / "small.png").read_bytes())
    frames = [Image.new("L", (40, 40), value) for value in (0, 99)]
    frames[0].paste(255, (0, 0, 9, 9))
    frames[0].save(tmp_path / "moves.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "torn.png").write_bytes((tmp_path / "small.png").read_bytes()[:99])
    paths = sorted(tmp_path.iterdir())

    survey = survey_images(paths, 2, 32)
    assert survey.modes == {"RGBA": 5, "RGB": 4, "CMYK": 1, "I;16": 1, "P": 1}
    assert (survey.num_turned, survey.num_small, survey.num_constant, survey.num_equal) == (1, 2, 1, 1)
    assert survey.unusual == (
        "1 image 16-bit grey (deep.png): by preprocessing 2 the upper 8 bits are read",
        "5 images transparent (alpha0.png, alpha1.png, alpha2.png, ...): by preprocessing 2 laid over white",
        "1 image turned by EXIF (turned.jpg): by preprocessing 2 turned upright",
        "1 image CMYK (cmyk.tiff): by preprocessing 2 converted without a profile",
        "1 image of one colour alone (grey.png)",
        "1 image of several pictures, as an animation has them (moves.gif): the first is read",
        "2 images smaller than 32 x 32 (again.png, small.png): enlarged",
        "1 image with the bytes of another: again.png = small.png",
    )
    assert len(survey.unreadable) == 1
    assert survey.unreadable[0].startswith(f"{tmp_path / 'torn.png'}: the image cannot be read: ")

    survey = survey_images(paths, 1, 32)
    assert survey.num_constant == 2  # all of 16-bit grey is white
    assert survey.unusual[0] == (
        "1 image 16-bit grey (deep.png): by preprocessing 1 values above 255 are cut to white"
    )
