"""THINGS on disk: the tables of targets, the prompts, the human RDM and where the images lie."""

import csv
import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import scipy.io
from numpy.typing import NDArray

from clip_hba_behavior.reproducibility.errors import BadInputError

NUM_DIMENSIONS = 66
NUM_HUMAN_IMAGES = 48
RDM_VARIABLE = "RDM48_triplet"
SYMMETRY_TOLERANCE = 1e-8
TARGET_COLUMNS = tuple(str(dimension) for dimension in range(NUM_DIMENSIONS))

_NUMERIC_CLASSES = {"double", "single"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


class DataError(BadInputError):
    """Bad input data; the message says what, where, and what to do."""


class Fault(StrEnum):
    """What can be wrong with a table of annotations."""

    FILE = "file"
    COLUMNS = "columns"
    ROW = "row"
    NAME = "name"
    DUPLICATE = "duplicate"
    NOT_A_NUMBER = "not a number"
    NOT_FINITE = "not finite"


@dataclass(frozen=True)
class AnnotationProblem:
    """One thing that is wrong with a table; `message` is complete for a user."""

    fault: Fault
    message: str


@dataclass(frozen=True)
class AnnotationTable:
    """The images of one CSV file and their targets.

    Attributes:
        path: of the CSV file.
        image_names: file names, in the order of the rows.
        targets: `[num_images, 66] float64`, exactly the numbers that are written in the file.
    """

    path: Path
    image_names: tuple[str, ...]
    targets: NDArray[np.float64]


def read_annotations(path: Path) -> AnnotationTable:
    """Read a table of targets: an index column, `image_name`, and the columns 0 to 65.

    Raises:
        DataError: The first thing that `examine_annotations` finds wrong.
    """
    table, problems = examine_annotations(path)
    if problems:
        raise DataError(problems[0].message)
    assert table is not None  # without a problem there is a table
    return table


def examine_annotations(path: Path) -> tuple[AnnotationTable | None, tuple[AnnotationProblem, ...]]:
    """Read a table of targets and say everything that is wrong with it.

    Every cell is read as text and converted by Python's `float`, which is exact.

    Returns:
        The table as far as it can be read, nan where a target is no number (None where there are no rows
        to read), and all its problems in the order of the file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            # Rows and lines differ where a quoted cell spans lines; the user looks for the line.
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, cells) for cells in reader if cells]
    except FileNotFoundError:
        return None, (_file_problem(path, "there is no such file", "give the path of the CSV file"),)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return None, (
            _file_problem(path, f"it is not a readable CSV file: {error}", "export the table again as CSV"),
        )
    if not lines:
        return None, (_file_problem(path, "it is empty", "export the table again"),)

    header = lines[0][1]
    if faulty := _header_problem(path, header):
        return None, (faulty,)
    if len(lines) == 1:
        return None, (_file_problem(path, "it has a header but no rows", "export the table again"),)

    names: list[str] = []
    targets = np.full((len(lines) - 1, NUM_DIMENSIONS), np.nan)
    problems: list[AnnotationProblem] = []
    first_line_of: dict[str, int] = {}
    columns = [header.index(column) for column in TARGET_COLUMNS]
    name_column = header.index("image_name")
    for row, (line, cells) in enumerate(lines[1:]):
        name = cells[name_column] if name_column < len(cells) else ""
        names.append(name)
        if len(cells) != len(header):
            message = f"it has {len(cells)} cells\n  expected: {len(header)}, as in the header\n  mend the line"
            problems.append(AnnotationProblem(Fault.ROW, f"{path}, line {line}: {message}"))
            continue
        if reason := unsafe_name_reason(name):
            message = (
                f"image name {name!r} {reason}\n  expected: a file name such as aardvark_01b.jpg\n  mend the line"
            )
            problems.append(AnnotationProblem(Fault.NAME, f"{path}, line {line}: {message}"))
        elif name in first_line_of:
            message = (
                f"image {name} is there already, in line {first_line_of[name]}\n  remove one of the two lines"
            )
            problems.append(AnnotationProblem(Fault.DUPLICATE, f"{path}, line {line}: {message}"))
        first_line_of.setdefault(name, line)
        for dimension, column in enumerate(columns):
            value = _parse(cells[column])
            if value is not None and math.isfinite(value):
                targets[row, dimension] = value
                continue
            fault = Fault.NOT_A_NUMBER if value is None else Fault.NOT_FINITE
            where = f"{path}, line {line}: image {name}, column {dimension}"
            message = f"{where}: {cells[column]!r} is {fault}\n  expected: a finite number\n  mend the value"
            problems.append(AnnotationProblem(fault, message))
    return AnnotationTable(path, tuple(names), targets), tuple(problems)


def unsafe_name_reason(name: str) -> str | None:
    """Return why an image name cannot be used, or None: it must not lead out of the image directory."""
    if not name.strip():
        return "is empty"
    if "/" in name or "\\" in name:
        return "has a path separator"
    if name.startswith("."):  # '..', and '.._01b.jpg', whose concept folder would be '..'
        return "begins with a dot"
    if not name.isprintable():
        return "has a control character"
    return None


def read_prompts(path: Path, expected: int = NUM_DIMENSIONS) -> tuple[str, ...]:
    """Read one prompt a line, UTF-8, as they stand; a newline at the end is no further prompt.

    Raises:
        DataError: The file cannot be read, a line is empty, or there are not `expected` prompts.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file\n  give the path of the prompts, one a line") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: it is not UTF-8 text: {error}\n  save it as UTF-8") from error
    prompts = text.removesuffix("\n").split("\n") if text else []
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise DataError(f"{path}, line {number}: the prompt is empty\n  write a prompt, or remove the line")
    if len(prompts) != expected:
        raise DataError(
            f"{path}: wrong number of prompts\n  found:    {len(prompts)}\n"
            f"  expected: {expected}, one a line\n  give one prompt for each dimension"
        )
    return tuple(prompts)


def read_human_rdm(path: Path) -> NDArray[np.float64]:
    """Read the human RDM of the 48 held-out images, `[48, 48] float64`.

    Only the variable `RDM48_triplet` is loaded, after its class is known: cells, structs and objects,
    which scipy would build from what the file says, never are.

    Raises:
        DataError: The file is missing or no .mat file, or the variable is missing or no finite,
            symmetric 48 x 48 matrix.
    """
    advice = "give the path of RDM48_triplet.mat"
    if not path.is_file():
        raise DataError(f"{path}: there is no such file\n  {advice}")
    try:
        found = {name: (shape, kind) for name, shape, kind in scipy.io.whosmat(str(path), appendmat=False)}
    except Exception as error:  # scipy raises nearly anything on a damaged file
        raise DataError(f"{path}: it is not a readable .mat file: {error}\n  {advice}") from error
    if RDM_VARIABLE not in found:
        raise DataError(
            f"{path}: variable {RDM_VARIABLE} is missing\n"
            f"  found:    {', '.join(sorted(found)) or 'no variables'}\n  {advice}"
        )
    shape, kind = found[RDM_VARIABLE]
    side = NUM_HUMAN_IMAGES
    expected = f"  expected: {side} x {side} real numbers\n  {advice}"
    described = f"{' x '.join(map(str, shape))} of class {kind}"
    if kind not in _NUMERIC_CLASSES or tuple(shape) != (side, side):
        raise DataError(
            f"{path}: {RDM_VARIABLE} is no RDM of the {side} images\n  found:    {described}\n{expected}"
        )
    try:
        loaded = scipy.io.loadmat(str(path), appendmat=False, variable_names=[RDM_VARIABLE])[RDM_VARIABLE]
    except Exception as error:
        raise DataError(f"{path}: {RDM_VARIABLE} cannot be read: {error}\n  {advice}") from error
    if loaded.shape != (side, side) or loaded.dtype.kind not in "fiu":
        described = f"{loaded.shape} of {loaded.dtype}"
        raise DataError(
            f"{path}: {RDM_VARIABLE} is no RDM of the {side} images\n  found:    {described}\n{expected}"
        )
    rdm = np.ascontiguousarray(loaded, dtype=np.float64)
    if not np.isfinite(rdm).all():
        row, column = np.argwhere(~np.isfinite(rdm))[0]
        raise DataError(
            f"{path}: {RDM_VARIABLE}, row {row + 1}, column {column + 1} is {rdm[row, column]}\n"
            f"  expected: finite numbers\n  {advice}"
        )
    difference = np.abs(rdm - rdm.T)
    if difference.max() > SYMMETRY_TOLERANCE:
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        raise DataError(
            f"{path}: {RDM_VARIABLE} is not symmetric\n"
            f"  found:    {rdm[row, column]} in row {row + 1}, column {column + 1}; {rdm[column, row]} across\n"
            f"  expected: equal within {SYMMETRY_TOLERANCE}\n  {advice}"
        )
    return rdm


def locate_images(image_dir: Path, image_names: Sequence[str]) -> tuple[Path, ...]:
    """Find each image, flat in `image_dir` or in one folder a concept.

    Raises:
        DataError: The directory or images are missing, a name would lead out of the directory, or an
            image is found in two folders.
    """
    found = find_images(image_dir, image_names)
    missing = [name for name, path in zip(image_names, found, strict=True) if path is None]
    if missing:
        raise DataError(missing_images_message(image_dir, missing, len(image_names)))
    return tuple(path for path in found if path is not None)


def missing_images_message(image_dir: Path, missing: Sequence[str], num_images: int) -> str:
    """Return the complete message on images that are not there: the first five and the count."""
    shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
    return (
        f"{image_dir}: {len(missing)} of {num_images} images are missing: {shown}\n"
        "  expected: each image flat in that directory or in one folder a concept\n"
        "  put them there, or correct img_dir"
    )


def find_images(image_dir: Path, image_names: Sequence[str]) -> tuple[Path | None, ...]:
    """Find each image as `locate_images` does; None for one that is not there.

    A file straight in `image_dir` comes before one in the folder of its concept (the name without its
    number), and that before one in any other folder.

    Raises:
        DataError: As `locate_images`, but not for missing images.
    """
    if not image_dir.is_dir():
        raise DataError(f"{image_dir}: there is no such directory\n  give the directory of the images")
    for name in image_names:
        if reason := unsafe_name_reason(name):
            raise DataError(f"image name {name!r} {reason}\n  expected: a file name\n  mend the name")
    found = [_expected_place(image_dir, name) for name in image_names]
    absent = {name for name, path in zip(image_names, found, strict=True) if path is None}
    if not absent:
        return tuple(found)
    elsewhere = _scan_folders(image_dir, absent)
    return tuple(path or elsewhere.get(name) for name, path in zip(image_names, found, strict=True))


def image_digests(paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> tuple[str, ...]:
    """Return the SHA-256 of each file's bytes, in hexadecimal.

    Args:
        paths: of the images.
        progress: called after each file with the number done and the number in all.

    Raises:
        DataError: A file cannot be read.
    """
    digests = []
    for done, path in enumerate(paths, start=1):
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise DataError(f"{path}: it cannot be read: {error.strerror}\n  restore the file") from error
        if progress:
            progress(done, len(paths))
    return tuple(digests)


def targets_digest(table: AnnotationTable) -> str:
    """Return the SHA-256 over a table's names and targets (float64, little-endian), in their order."""
    total = hashlib.sha256()
    for name in table.image_names:
        encoded = name.encode()
        # With its length before it, no two lists of names give the same bytes.
        total.update(len(encoded).to_bytes(8, "little") + encoded)
    total.update(np.ascontiguousarray(table.targets, dtype="<f8").tobytes())
    return total.hexdigest()


def _file_problem(path: Path, what: str, advice: str) -> AnnotationProblem:
    return AnnotationProblem(Fault.FILE, f"{path}: {what}\n  {advice}")


def _header_problem(path: Path, header: Sequence[str]) -> AnnotationProblem | None:
    wanted = ("image_name", *TARGET_COLUMNS)
    for what, columns in (
        ("missing", [column for column in wanted if column not in header]),
        ("there twice", [column for column in wanted if header.count(column) > 1]),
    ):
        if columns:
            shown = ", ".join(columns[:5]) + (f", ... ({len(columns)} in all)" if len(columns) > 5 else "")
            return AnnotationProblem(
                Fault.COLUMNS,
                f"{path}: column{'s' if len(columns) > 1 else ''} {shown} {what}\n"
                f"  expected: an index, image_name, and 0 to {NUM_DIMENSIONS - 1}\n  export the table again",
            )
    return None


def _parse(text: str) -> float | None:
    # float() also takes Python's "1_000", which no table writer means.
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


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


def _files_in_folders(image_dir: Path) -> Iterator[Path]:
    for folder in sorted(path for path in image_dir.iterdir() if path.is_dir()):
        yield from (path for path in sorted(folder.iterdir()) if path.is_file())
