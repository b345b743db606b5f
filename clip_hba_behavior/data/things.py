"""THINGS on disk: the tables of targets, the prompts, the human RDM and the images' bytes."""

import csv
import hashlib
import io
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.data.delimiter import DELIMITERS, find_delimiter
from clip_hba_behavior.data.problems import group_problems
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular, open_text, quote, read_rows, shown

NUM_DIMENSIONS = 66
NUM_HUMAN_IMAGES = 48
RDM_VARIABLE = "RDM48_triplet"
HALVES_VARIABLES = ("RDM48_triplet_split1", "RDM48_triplet_split2")
SYMMETRY_TOLERANCE = 1e-8
MAX_IMAGE_BYTES = 128 * MIB  # the largest of THINGS has 3
_MAX_TABLE_BYTES = 64 * MIB  # the table of THINGS has 2.2
_MAX_ROWS = 100_000
_MAX_PROBLEMS = 10_000
_MAX_PROMPTS_BYTES = 2**18
_MAX_RDM_BYTES = 4 * MIB  # unpacked; the RDM of THINGS has 18 kB
_MAX_NAME_BYTES = 255  # of a file, on any common file system
TARGET_COLUMNS = tuple(str(dimension) for dimension in range(NUM_DIMENSIONS))
_COLUMNS = ("image_name", *TARGET_COLUMNS)

_DECIMAL_COMMA = re.compile(r"\s*[+-]?[\d.]*,\d+(e[+-]?\d+)?\s*", re.IGNORECASE | re.ASCII)
_OTHER_FORMATS = (
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (b"PK\x03\x04", "a zip archive, as Excel's .xlsx is", "export it as text: a table as CSV"),
    (b"\x1f\x8b", "compressed by gzip", "decompress it"),
)
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
    DECIMAL_COMMA = "written with a decimal comma"


TARGET_FAULTS = {Fault.NOT_A_NUMBER, Fault.NOT_FINITE, Fault.DECIMAL_COMMA}


@dataclass(frozen=True)
class AnnotationProblem:
    """One thing that is wrong with a table; `message` is complete for a user."""

    fault: Fault
    message: str

    def kind(self) -> tuple[Fault, str]:
        """Return what it shares with equal problems of other lines: the fault and the advice."""
        return self.fault, self.message.partition("\n")[2]


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

    Cells are separated by commas, or by semicolons or tabs if the header is.

    Raises:
        DataError: The first thing that `examine_annotations` finds wrong, with equal problems of other lines.
    """
    table, problems = examine_annotations(path)
    if problems:
        first, *others = group_problems((problem.kind(), problem.message) for problem in problems)
        more = f"\n  and {len(others)} more, which `clip-hba data check` lists" if others else ""
        raise DataError(first + more)
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
        delimiter = find_delimiter(path, _MAX_TABLE_BYTES, _COLUMNS)
        rows = (each for each in read_rows(path, _MAX_TABLE_BYTES, delimiter) if each[1])
        header = next(rows, (0, []))[1]
        if not header:
            return None, (_file_problem(path, "it is empty", "export the table again"),)
        if faulty := _header_problem(path, header, delimiter):
            return None, (faulty,)
        table, problems = _examine_rows(path, header, rows)
    except FileNotFoundError:
        return None, (_file_problem(path, "there is no such file", "give the path of the CSV file"),)
    except UnicodeDecodeError as error:
        return None, (_file_problem(path, *_not_utf8(error)),)
    except (OSError, csv.Error) as error:
        return None, (
            _file_problem(path, f"it is not a readable CSV file: {error}", "export the table again as CSV"),
        )
    if not table.image_names:
        return None, (_file_problem(path, "it has a header but no rows", "export the table again"),)
    return table, tuple(problems)


def _examine_rows(
    path: Path, header: Sequence[str], rows: Iterator[tuple[int, list[str]]]
) -> tuple[AnnotationTable, list[AnnotationProblem]]:
    names: list[str] = []
    targets: list[NDArray[np.float64]] = []
    problems: list[AnnotationProblem] = []
    first_line_of: dict[str, int] = {}
    columns = [header.index(column) for column in TARGET_COLUMNS]
    name_column = header.index("image_name")
    for line, cells in rows:  # rows and lines differ where a quoted cell spans lines; the user looks for the line
        if len(names) == _MAX_ROWS or len(problems) >= _MAX_PROBLEMS:
            what = f"{len(names)} rows and {len(problems)} problems are read up to line {line}, and no more"
            problems.append(_file_problem(path, what, "repair these first, or give a smaller table"))
            break
        name = cells[name_column] if name_column < len(cells) else ""
        names.append(name)
        numbers = np.full(NUM_DIMENSIONS, np.nan)
        targets.append(numbers)
        if len(cells) != len(header):
            advice = "repair the line"
            if len(cells) >= len(header) + NUM_DIMENSIONS // 2:  # as 0,5 gives two cells
                advice = "if its numbers have decimal commas, export the table again with decimal points"
            message = f"it has {len(cells)} cells\n  expected: {len(header)}, as in the header\n  {advice}"
            problems.append(AnnotationProblem(Fault.ROW, f"{path}, line {line}: {message}"))
            continue
        if reason := unsafe_name_reason(name):
            advice = "give the names alone, and their directory as img_dir" if "/" in name else "repair the line"
            message = (
                f"image name {quote(name)} {reason}\n  expected: a file name such as aardvark_01b.jpg\n  {advice}"
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
                numbers[dimension] = value
                continue
            fault, advice = Fault.NOT_FINITE, "repair the value"
            if value is None:
                fault = Fault.NOT_A_NUMBER
            if _DECIMAL_COMMA.fullmatch(cells[column]):
                fault, advice = Fault.DECIMAL_COMMA, "export the table again with decimal points"
            where = f"{path}, line {line}: image {shown(name)}, column {dimension}"
            message = f"{where}: {quote(cells[column])} is {fault}\n  expected: a finite number\n  {advice}"
            problems.append(AnnotationProblem(fault, message))
    together = np.stack(targets) if targets else np.empty((0, NUM_DIMENSIONS))
    return AnnotationTable(path, tuple(names), together), problems


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
    if len(name.encode()) > _MAX_NAME_BYTES:
        return "is too long"
    return None


def read_prompts(path: Path, expected: int = NUM_DIMENSIONS) -> tuple[str, ...]:
    """Read one prompt a line, UTF-8, as they stand; a newline at the end is no further prompt.

    Raises:
        DataError: The file cannot be read, a line is empty, or there are not `expected` prompts.
    """
    try:
        with open_text(path, _MAX_PROMPTS_BYTES, encoding="utf-8-sig") as file:
            text = file.read()
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file\n  give the path of the prompts, one a line") from None
    except OSError as error:
        raise DataError(f"{path}: it cannot be read: {error}\n  give a text file, one prompt a line") from error
    except UnicodeDecodeError as error:
        what, advice = _not_utf8(error)
        raise DataError(f"{path}: {what}\n  {advice}") from error
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

    Raises:
        DataError: The file is missing or no .mat file, or the variable `RDM48_triplet` is missing or no finite,
            symmetric 48 x 48 matrix.
    """
    return _read_rdm(path, RDM_VARIABLE, "give the path of RDM48_triplet.mat")


def read_human_halves(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read the human RDMs of two halves of the triplets, each `[48, 48] float64`.

    Raises:
        DataError: as `read_human_rdm`, of the variables `RDM48_triplet_split1` and `RDM48_triplet_split2`.
    """
    advice = "give the path of RDM48_triplet_splithalf.mat"
    first, second = (_read_rdm(path, name, advice) for name in HALVES_VARIABLES)
    return first, second


def _read_rdm(path: Path, variable: str, advice: str) -> NDArray[np.float64]:
    """Read a matrix of 48 x 48.

    Only the variable that is asked for is loaded, after its class is known: cells, structs and objects,
    which scipy would build from what the file says, never are.
    """
    import scipy.io  # takes long, and nothing else here needs it

    try:
        content: Any = _read_mat(path)  # scipy-stubs know of file names only
        listed = scipy.io.whosmat(content)
        found = {name: (shape, kind) for name, shape, kind in listed}
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file\n  {advice}") from None
    except Exception as error:  # scipy raises nearly anything on a damaged file
        reason = shown(str(error)) or type(error).__name__
        raise DataError(f"{path}: it is not a readable .mat file: {reason}\n  {advice}") from error
    if len(found) < len(listed):
        raise DataError(f"{path}: it holds two variables of the same name\n  {advice}")
    if variable not in found:
        raise DataError(
            f"{path}: variable {variable} is missing\n"
            f"  found:    {shown(', '.join(sorted(found))) or 'no variables'}\n"
            f"  save the matrix under the name {variable}, or {advice}"
        )
    shape, kind = found[variable]
    side = NUM_HUMAN_IMAGES
    expected = f"  expected: {side} x {side} real numbers\n  {advice}"
    described = f"{' x '.join(map(str, shape or ['nothing']))} of class {kind}"
    if kind not in _NUMERIC_CLASSES or tuple(shape or ()) != (side, side):
        raise DataError(f"{path}: {variable} is no RDM of the {side} images\n  found:    {described}\n{expected}")
    try:
        loaded = scipy.io.loadmat(content, variable_names=[variable])[variable]
    except Exception as error:
        reason = shown(str(error)) or type(error).__name__
        raise DataError(f"{path}: {variable} cannot be read: {reason}\n  {advice}") from error
    if not isinstance(loaded, np.ndarray):
        raise DataError(f"{path}: {variable} cannot be read: {shown(str(loaded))}\n  {advice}")
    if loaded.shape != (side, side) or loaded.dtype.kind not in "fiu":
        described = f"{loaded.shape} of {loaded.dtype}"
        raise DataError(f"{path}: {variable} is no RDM of the {side} images\n  found:    {described}\n{expected}")
    rdm = np.ascontiguousarray(loaded, dtype=np.float64)
    if not np.isfinite(rdm).all():
        row, column = np.argwhere(~np.isfinite(rdm))[0]
        raise DataError(
            f"{path}: {variable}, row {row + 1}, column {column + 1} is {rdm[row, column]}\n"
            f"  expected: finite numbers\n  {advice}"
        )
    difference = np.abs(rdm - rdm.T)
    if difference.max() > SYMMETRY_TOLERANCE:
        row, column = np.unravel_index(int(difference.argmax()), difference.shape)
        raise DataError(
            f"{path}: {variable} is not symmetric\n"
            f"  found:    {rdm[row, column]} in row {row + 1}, column {column + 1}; {rdm[column, row]} across\n"
            f"  expected: equal within {SYMMETRY_TOLERANCE}\n  {advice}"
        )
    return rdm


class _MatFile(io.BytesIO):
    """A .mat file's bytes, of which a reader may take only so much: a header can send scipy round in circles."""

    num_reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self.num_reads += 1
        if self.num_reads > 100_000:
            raise OSError("its variables do not end")
        return super().read(size)


def _read_mat(path: Path) -> _MatFile:
    """Read a .mat file whole, and refuse one whose compressed variables unpack to more than is allowed.

    In version 5 a variable is a tag of two numbers, its kind and its length, and its content; kind 15 is
    compressed by zlib. In version 4, of which a zero is among the first four bytes, nothing is.
    """
    with open_regular(path, _MAX_RDM_BYTES) as file:
        content = file.read(_MAX_RDM_BYTES + 1)
    order = "<" if content[126:128] == b"IM" else ">"
    position, left = 128, _MAX_RDM_BYTES
    while 0 not in content[:4] and position + 8 <= len(content):
        kind, length = struct.unpack_from(f"{order}2L", content, position)
        if kind == 15:
            packed = content[position + 8 : position + 8 + length]
            left -= len(zlib.decompressobj().decompress(packed, left + 1))
        if left < 0:
            raise ValueError(f"it unpacks to more than {_MAX_RDM_BYTES} bytes")
        position += 8 + length
    return _MatFile(content)


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
            with open_regular(path, MAX_IMAGE_BYTES) as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise DataError(f"{path}: it cannot be read: {error.strerror or error}\n  restore the file") from error
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


def _not_utf8(error: UnicodeDecodeError) -> tuple[str, str]:
    """Return what a file is that is not UTF-8, and the advice."""
    for start, what, advice in _OTHER_FORMATS:
        if error.object.startswith(start):
            return f"it is {what}, not UTF-8 text", advice
    before = error.object[max(0, error.start - 20) : error.start].decode(errors="replace")
    where = f"after {quote(before)}" if before else "at the beginning"
    return f"it is not UTF-8 text: byte 0x{error.object[error.start]:02x} {where}", "save it as UTF-8"


def _file_problem(path: Path, what: str, advice: str) -> AnnotationProblem:
    return AnnotationProblem(Fault.FILE, f"{path}: {what}\n  {advice}")


def _header_problem(path: Path, header: Sequence[str], delimiter: str) -> AnnotationProblem | None:
    found = f"{len(header)} columns, separated by {DELIMITERS[delimiter]}: {quote(list(header))}"
    if len(header) == 1:
        found = f"one column, {quote(header[0])}, without {', '.join(DELIMITERS.values())}"
    for what, columns in (
        ("missing", [column for column in _COLUMNS if column not in header]),
        ("there twice", [column for column in _COLUMNS if header.count(column) > 1]),
    ):
        if columns:
            some = ", ".join(columns[:5]) + (f", ... ({len(columns)} in all)" if len(columns) > 5 else "")
            return AnnotationProblem(
                Fault.COLUMNS,
                f"{path}: column{'s' if len(columns) > 1 else ''} {some} {what}\n  found:    {found}\n"
                f"  expected: an index, image_name, and 0 to {NUM_DIMENSIONS - 1}, separated by commas, "
                "semicolons or tabs\n  export the table again",
            )
    return None


def _parse(text: str) -> float | None:
    # float() also takes Python's "1_000", which no table writer means.
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None
