"""Where the files of a table's images are."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_hba_behavior.data.things import DataError, unsafe_name_reason
from clip_hba_behavior.reproducibility.state.untrusted import quote, shown

_MAX_NAME_BYTES = 255  # of most file systems
_IMAGE_SUFFIX = re.compile(r"\.(jpe?g|jpe|png|bmp|webp|tiff?|gif)", re.IGNORECASE)


def locate_images(image_dir: Path, image_names: Sequence[str], suffix: str | None = None) -> tuple[Path, ...]:
    """Find each image, flat in `image_dir` or in one folder a concept.

    Args:
        image_dir: the directory of all images.
        image_names: as in the tables.
        suffix: of the files, if it is not that of the names: the configuration's `image_suffix`.

    Raises:
        DataError: The directory or images are missing, a name would lead out of the directory, an image is
            found in two folders, or two names are those of one file.
    """
    paths = find_images(image_dir, image_names, suffix)
    if None in paths:
        raise DataError(missing_images_message(image_dir, image_names, paths, suffix))
    return tuple(path for path in paths if path is not None)


def find_images(image_dir: Path, image_names: Sequence[str], suffix: str | None = None) -> tuple[Path | None, ...]:
    """Find each image as `locate_images` does; None for one that is not there.

    A file straight in `image_dir` comes before one in the folder of its concept (the name without its
    number), and that before one in any other folder.

    Raises:
        DataError: As `locate_images`, but not for missing images.
    """
    if not image_dir.is_dir():
        what = "it is no directory" if image_dir.exists() else "there is no such directory"
        raise DataError(f"{image_dir}: {what}\n  give the directory of the images")
    name_of: dict[str, str] = {}
    for name in image_names:
        if reason := unsafe_name_reason(name):
            raise DataError(f"image name {quote(name)} {reason}\n  expected: a file name\n  repair the name")
        file_name = _file_name(name, suffix)
        if len(os.fsencode(file_name)) > _MAX_NAME_BYTES:
            raise DataError(f"image name {quote(name)} is too long for a file name by image_suffix {suffix}")
        other = name_of.setdefault(file_name, name)
        if other != name:
            raise DataError(
                f"images {other} and {name} are both the file {file_name} by image_suffix {suffix}\n"
                "  leave image_suffix out, or remove one of the two from the tables"
            )
    found = {file_name: _expected_place(image_dir, file_name) for file_name in name_of}
    absent = {file_name for file_name, path in found.items() if path is None}
    if absent:
        found |= _scan_folders(image_dir, absent)
    return tuple(found[_file_name(name, suffix)] for name in image_names)


def images_below(directory: Path) -> tuple[list[Path], list[Path]]:
    """Return the files of a directory and its folders, sorted: those with an image's suffix, and the others."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    images = [path for path in files if _IMAGE_SUFFIX.fullmatch(path.suffix)]
    return images, [path for path in files if not _IMAGE_SUFFIX.fullmatch(path.suffix)]


def missing_images_message(
    image_dir: Path, image_names: Sequence[str], paths: Sequence[Path | None], suffix: str | None
) -> str:
    """Return the complete message on images that are not there, with what is there instead.

    Args:
        image_dir: the directory of all images.
        image_names: of all.
        paths: what `find_images` found of them, with this suffix.
        suffix: as of `locate_images`.
    """
    missing = [name for name, path in zip(image_names, paths, strict=True) if path is None]
    some = ", ".join(_file_name(name, suffix) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    files = list(_all_files(image_dir))
    like = {_likeness(path.name): path for path in files}
    instead = {name: like[_likeness(name)] for name in missing if _likeness(name) in like}
    no_files = [path for name in missing if os.path.lexists(path := image_dir / _file_name(name, suffix))]
    advice = "put them there, or correct img_dir"
    if instead:
        name, path = next(iter(instead.items()))
        file_name = _file_name(name, suffix)
        looks_equal = _composed(path.name) == _composed(file_name)
        found = f"{len(instead)} of them under another name, such as {path} for "
        found += f"{file_name!a}, in another Unicode form" if looks_equal else quote(file_name)
        advice = "rename the files, or correct the names in the tables"
        counts = Counter(path.suffix for path in instead.values() if _IMAGE_SUFFIX.fullmatch(path.suffix))
        suffixes = [each for each, _ in counts.most_common()]
        for better in [None, *suffixes] if suffix else suffixes:
            if (num_found := _num_found_too(image_dir, image_names, paths, better)) > 0:
                key = f"set image_suffix: {better} in the configuration" if better else "leave image_suffix out"
                some_of = "" if num_found == len(missing) else f", by which {num_found} of them are found"
                advice = f"{key}{some_of}; or {advice}"
                break
    elif no_files:
        found = f"{len(no_files)} of them no files: {shown(str(no_files[0]))} is a directory or a broken link"
    else:
        found = f"{len(files)} file{'' if len(files) == 1 else 's'} in it and its folders"
        found += f", such as {shown(files[0].name)}" if files else ""
    return (
        f"{image_dir}: {len(missing)} of {len(image_names)} images are missing: {some}\n"
        f"  found:    {found}\n"
        "  expected: each image flat in that directory or in one folder a concept\n"
        f"  {advice}"
    )


def _num_found_too(
    image_dir: Path, image_names: Sequence[str], paths: Sequence[Path | None], suffix: str | None
) -> int:
    """Return how many missing images another suffix finds; 0 if it loses one that is found without it."""
    try:
        others = find_images(image_dir, image_names, suffix)
    except DataError:
        return 0
    if any(path is not None and other is None for path, other in zip(paths, others, strict=True)):
        return 0
    return sum(path is None and other is not None for path, other in zip(paths, others, strict=True))


def _file_name(name: str, suffix: str | None) -> str:
    """Return the name of an image's file: another suffix replaces an image's; any other ending is kept."""
    return name if suffix is None else _stem(name) + suffix


def _stem(name: str) -> str:
    path = Path(name)  # dr.pepper_01b has no suffix
    return path.stem if _IMAGE_SUFFIX.fullmatch(path.suffix) else name


def _likeness(name: str) -> str:
    """Return what names have in common that differ in suffix, capitals, blanks around or Unicode form alone."""
    return _composed(_stem(name.strip())).casefold()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _expected_place(image_dir: Path, name: str) -> Path | None:
    concept = re.sub(r"_\d+[a-z]*$", "", Path(name).stem)
    for path in (image_dir / name, image_dir / concept / name):
        if path.is_file():
            return path
    return None


def _scan_folders(image_dir: Path, names: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in _files_in_folders(image_dir):
        if path.name in names:
            if path.name in found:
                both = f"{found[path.name]} and {path}"
                raise DataError(f"image {path.name} is there twice: {both}\n  remove one of the two")
            found[path.name] = path
    return found


def _all_files(image_dir: Path) -> Iterator[Path]:
    yield from (path for path in sorted(image_dir.iterdir()) if path.is_file())
    yield from _files_in_folders(image_dir)


def _files_in_folders(image_dir: Path) -> Iterator[Path]:
    for folder in sorted(path for path in image_dir.iterdir() if path.is_dir()):
        yield from (path for path in sorted(folder.iterdir()) if path.is_file())
