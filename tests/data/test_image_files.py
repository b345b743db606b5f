from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.data.image_files import locate_images
from clip_hba_behavior.data.things import DataError


def message_of(work: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    return str(caught.value)


def put(directory: Path, *names: str) -> list[Path]:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(b"")
    return [directory / name for name in names]


def test_images_are_found_flat_in_their_concepts_folder_and_in_any_other(tmp_path: Path) -> None:
    paths = ["flat_01b.jpg", "ice_cream/ice_cream_01s.jpg", "camera/camera1_01b.jpg"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    names = [Path(path).name for path in paths]
    assert locate_images(tmp_path, names) == tuple(tmp_path / path for path in paths)


def test_missing_images_are_counted_and_the_first_five_named(tmp_path: Path) -> None:
    (tmp_path / "here.jpg").write_bytes(b"")
    assert message_of(lambda: locate_images(tmp_path, ["here.jpg", *(f"{i}.jpg" for i in range(7))])) == (
        f"{tmp_path}: 7 of 8 images are missing: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg, ...\n"
        "  found:    1 file in it and its folders, such as here.jpg\n"
        "  expected: each image flat in that directory or in one folder a concept\n"
        "  put them there, or correct img_dir"
    )


def test_a_missing_image_directory_is_refused(tmp_path: Path) -> None:
    message = message_of(lambda: locate_images(tmp_path / "no", ["a.jpg"]))
    assert message.startswith(f"{tmp_path / 'no'}: there is no such directory")


def test_an_image_in_two_other_folders_is_refused(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a_01b.jpg").write_bytes(b"")
    assert message_of(lambda: locate_images(tmp_path, ["a_01b.jpg"])) == (
        f"image a_01b.jpg is there twice: {tmp_path / 'x' / 'a_01b.jpg'} and {tmp_path / 'y' / 'a_01b.jpg'}\n"
        "  remove one of the two"
    )


@pytest.mark.parametrize(
    ("name", "suffix", "file"),
    [
        ("a_01b.jpg", None, "a_01b.jpg"),
        ("a_01b", ".jpg", "a_01b.jpg"),
        ("a_01b.png", ".jpg", "a_01b.jpg"),
        ("a_01b.JPEG", ".jpg", "a_01b.jpg"),
        ("a_01b.jpg", ".JPG", "a_01b.JPG"),
        ("a_01b.jpg", ".jpg", "a_01b.jpg"),
        ("dr.pepper_01b", ".jpg", "dr.pepper_01b.jpg"),  # .pepper_01b is no suffix of an image
        ("a_01b.jpg", ".png", "a/a_01b.png"),
        ("a_01b", ".png", "elsewhere/a_01b.png"),
    ],
)
def test_a_suffix_replaces_that_of_an_image_or_is_added(
    tmp_path: Path, name: str, suffix: str | None, file: str
) -> None:
    assert locate_images(tmp_path, put(tmp_path, file) and [name], suffix) == (tmp_path / file,)


@pytest.mark.parametrize(
    ("names", "files", "suffix", "found", "advice"),
    [
        (["a.jpg", "b.jpg"], ["a.png", "c/b.png"], None, "2 of them", "set image_suffix: .png in the"),
        (["a", "b"], ["a.JPG", "b.JPG"], None, "2 of them", "set image_suffix: .JPG in the configuration"),
        (["a.png", "b.png"], ["a.PNG", "b.png"], None, "1 of them", "rename the files"),
        (["a.PNG", "b.png"], ["a.png", "b.png"], None, "1 of them", "set image_suffix: .png in the"),
        (["a.jpg", "b.jpg"], ["a.png", "b.png"], ".jpeg", "2 of them", "set image_suffix: .png in the configura"),
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"], ".png", "2 of them", "leave image_suffix out"),
        (
            ["a.jpg", "b.jpg"],
            ["a.png"],
            None,
            "1 of them",
            "set image_suffix: .png in the configuration, by which 1 of them are found",
        ),
        (["a.jpg", "b.jpg"], ["a.jpg", "b.png"], None, "1 of them", "rename the files"),
        (["a.jpg ", " b.jpg"], ["a.jpg", "b.jpg"], None, "2 of them", "rename the files"),
        (["a.jpg"], ["a"], None, "1 of them", "rename the files"),
        (["A.jpg", "b.jpg"], ["a.jpg", "B.jpg"], None, "2 of them", "rename the files"),
        (["u\u0308.jpg"], ["\u00fc.jpg"], None, "1 of them", "rename the files"),  # two forms of one u with dots
        (
            ["a.jpg"],
            ["a.jpg.crdownload"],
            None,
            "1 file in it and its folders, such as a.jpg.",
            "put them there",
        ),
        (["a.jpg"], [], None, "0 files in it and its folders\n", "put them there, or correct img_dir"),
    ],
)
def test_what_is_there_in_place_of_missing_images_is_told_with_the_key_that_helps(
    tmp_path: Path, names: list[str], files: list[str], suffix: str | None, found: str, advice: str
) -> None:
    put(tmp_path, *files)
    message = message_of(lambda: locate_images(tmp_path, names, suffix))
    assert f"\n  found:    {found}" in message
    assert f"\n  {advice}" in message
    if "of them" in found:
        assert f"under another name, such as {tmp_path}/" in message


def test_two_names_of_one_file_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg")
    assert locate_images(tmp_path, ["a.jpg", "a.jpg"], ".jpg") == (tmp_path / "a.jpg",) * 2
    assert message_of(lambda: locate_images(tmp_path, ["a.png", "a.jpg"], ".jpg")) == (
        "images a.png and a.jpg are both the file a.jpg by image_suffix .jpg\n"
        "  leave image_suffix out, or remove one of the two from the tables"
    )


def test_a_name_in_another_unicode_form_is_told_apart(tmp_path: Path) -> None:
    put(tmp_path, "\u00fc.jpg")
    message = message_of(lambda: locate_images(tmp_path, ["u\u0308.jpg"]))
    assert f"such as {tmp_path}/\u00fc.jpg for 'u\\u0308.jpg', in another Unicode form\n" in message


def test_directories_and_broken_links_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    (tmp_path / "b.jpg").symlink_to(tmp_path / "nowhere")
    message = message_of(lambda: locate_images(tmp_path, ["a.jpg", "b.jpg"]))
    assert f"found:    2 of them no files: {tmp_path}/a.jpg is a directory or a broken link\n" in message
    put(tmp_path, "file")
    assert message_of(lambda: locate_images(tmp_path / "file", ["a.jpg"])) == (
        f"{tmp_path / 'file'}: it is no directory\n  give the directory of the images"
    )
