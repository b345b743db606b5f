import csv
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from clip_hba_behavior.data.image_files import locate_images
from clip_hba_behavior.data.things import (
    AnnotationTable,
    DataError,
    Fault,
    examine_annotations,
    image_digests,
    read_annotations,
    read_human_halves,
    read_human_rdm,
    read_prompts,
    targets_digest,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError

THINGS = Path(__file__).parents[3] / "shared" / "things"
with_things = pytest.mark.skipif(not THINGS.is_dir(), reason="the THINGS tables are not here")

HEADER = ["", "image_name", *map(str, range(66))]


def row(name: str, first: str = "0.5") -> list[str]:
    return ["0", name, first, *["1.25"] * 65]


def write_table(path: Path, *rows: list[str], header: list[str] = HEADER, delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def symmetric(size: int = 48) -> np.ndarray:
    values = np.random.Generator(np.random.Philox(3)).random((size, size))
    return values + values.T


def message_of(work: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        work()
    return str(caught.value)


# --- tables of targets ---


def test_targets_are_exactly_the_numbers_in_the_file(tmp_path: Path) -> None:
    # pandas' former default parser missed the first by an ulp
    texts = ["0.3412201532504557", "85.82517215060831", "1e-320", "-0.0", "7"]
    path = write_table(tmp_path / "t.csv", *(row(f"a_{i:02d}b.jpg", text) for i, text in enumerate(texts)))
    table = read_annotations(path)
    assert table.path == path
    assert table.image_names == tuple(f"a_{i:02d}b.jpg" for i in range(5))
    assert table.targets.dtype == np.float64
    assert table.targets.shape == (5, 66)
    assert table.targets[:, 0].tobytes() == np.array([float(text) for text in texts]).tobytes()


def test_any_index_header_column_order_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    header = ["row", *reversed(HEADER[1:])]
    path = write_table(tmp_path / "t.csv", ["9", *(str(i) for i in range(65, -1, -1)), "a.jpg"], header=header)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    table = read_annotations(path)
    assert table.image_names == ("a.jpg",)
    assert table.targets[0].tolist() == list(range(66))


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_table_with_semicolons_or_tabs_is_the_same_table(tmp_path: Path, delimiter: str) -> None:
    rows = [row("a.jpg", "0.3412201532504557"), row("b; c.jpg", "1e-320")]
    tables = [
        read_annotations(write_table(tmp_path / f"{number}.csv", *rows, delimiter=each))
        for number, each in enumerate((",", delimiter))
    ]
    assert tables[0].image_names == tables[1].image_names == ("a.jpg", "b; c.jpg")
    assert targets_digest(tables[0]) == targets_digest(tables[1])


@with_things
@pytest.mark.parametrize(("name", "rows"), [("1806train", 1806), ("48val", 48), ("48val_reordered", 48)])
def test_the_real_tables_are_read_without_a_problem(name: str, rows: int) -> None:
    table = read_annotations(THINGS / f"spose_embedding66d_rescaled_{name}.csv")
    assert table.targets.shape == (rows, 66)
    assert np.isfinite(table.targets).all()


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    assert message_of(lambda: read_annotations(tmp_path / "no.csv")) == (
        f"{tmp_path / 'no.csv'}: there is no such file\n  give the path of the CSV file"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        ("index,image_name".encode("utf-16"), "it is UTF-16 text, not UTF-8 text\n  save it as UTF-8"),
        (b"PK\x03\x04\xff", "it is a zip archive, as Excel's .xlsx is, not UTF-8 text\n  export it as text"),
        (b"\x1f\x8b\x08", "it is compressed by gzip, not UTF-8 text\n  decompress it"),
        ("index,größe".encode("latin-1"), "it is not UTF-8 text: byte 0xf6 after 'index,gr'\n  save it as UTF-8"),
        (b'a,"b\n', "it is not a readable CSV file"),
        (b"\x89PNG\r\n\x1a\n", "it is not UTF-8 text: byte 0x89 at the beginning"),
        (",".join(HEADER).encode() + b"\n", "it has a header but no rows"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    assert message_of(lambda: read_annotations(path)).startswith(f"{path}: {reason}")


def test_a_directory_is_refused_as_a_table(tmp_path: Path) -> None:
    assert "it is not a readable CSV file" in message_of(lambda: read_annotations(tmp_path))


def test_missing_columns_are_named(tmp_path: Path) -> None:
    header = [column for column in HEADER if column not in ("image_name", "17")]
    path = write_table(tmp_path / "t.csv", ["0"] * len(header), header=header)
    assert message_of(lambda: read_annotations(path)) == (
        f"{path}: columns image_name, 17 missing\n"
        "  found:    66 columns, separated by commas: ['', '0', '1', '2', '3', '4', '5', '6', '7', '8', ...]\n"
        "  expected: an index, image_name, and 0 to 65, separated by commas, semicolons or tabs\n"
        "  export the table again"
    )


def test_a_column_that_is_there_twice_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", [*row("a.jpg"), "1"], header=[*HEADER, "17"])
    assert f"{path}: column 17 there twice" in message_of(lambda: read_annotations(path))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "not a number"),
        ("abc", "not a number"),
        ("1.5,", "not a number"),
        ("1_000", "not a number"),
        ("nan", "not finite"),
        ("-inf", "not finite"),
        ("1e999", "not finite"),
    ],
)
def test_a_bad_target_is_named_with_line_image_column_and_value(tmp_path: Path, text: str, fault: str) -> None:
    path = write_table(tmp_path / "t.csv", row("a.jpg"), row("b.jpg", text))
    assert message_of(lambda: read_annotations(path)) == (
        f"{path}, line 3: image b.jpg, column 0: {text!r} is {fault}\n"
        "  expected: a finite number\n  repair the value"
    )


@pytest.mark.parametrize("text", ["1,5", "-0,25", ",5", "1.234,5", "1,5E-07"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_decimal_comma_is_refused_by_name(tmp_path: Path, text: str, delimiter: str) -> None:
    path = write_table(tmp_path / "t.csv", row("a.jpg"), row("b.jpg", text), delimiter=delimiter)
    assert message_of(lambda: read_annotations(path)) == (
        f"{path}, line 3: image b.jpg, column 0: {text!r} is written with a decimal comma\n"
        "  expected: a finite number\n  export the table again with decimal points"
    )


def test_decimal_commas_between_commas_are_suspected(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(",".join(HEADER) + "\n0,a.jpg," + ",".join(["0,5"] * 66) + "\n")
    assert message_of(lambda: read_annotations(path)) == (
        f"{path}, line 2: it has 134 cells\n  expected: 68, as in the header\n"
        "  if its numbers have decimal commas, export the table again with decimal points"
    )


@pytest.mark.parametrize(
    "change", [lambda cells: cells[:-1], lambda cells: [*cells, "1"], lambda cells: cells[:1]]
)
def test_a_line_with_too_few_or_too_many_cells_is_refused(
    tmp_path: Path, change: Callable[[list[str]], list[str]]
) -> None:
    cells = change(row("b.jpg"))
    path = write_table(tmp_path / "t.csv", row("a.jpg"), cells)
    found = message_of(lambda: read_annotations(path))
    assert found == (
        f"{path}, line 3: it has {len(cells)} cells\n  expected: 68, as in the header\n  repair the line"
    )


def test_a_duplicate_image_is_refused_with_both_lines(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", row("a.jpg"), row("b.jpg"), row("a.jpg"))
    assert message_of(lambda: read_annotations(path)) == (
        f"{path}, line 4: image a.jpg is there already, in line 2\n  remove one of the two lines"
    )


HOSTILE = {
    "": "is empty",
    "  ": "is empty",
    "/etc/passwd": "has a path separator",
    "../a.jpg": "has a path separator",
    "a\\b.jpg": "has a path separator",
    "C:\\a.jpg": "has a path separator",
    "..": "begins with a dot",
    ".._01b.jpg": "begins with a dot",
    "a\0.jpg": "has a control character",
    "a\n.jpg": "has a control character",
}


@pytest.mark.parametrize(("name", "reason"), HOSTILE.items())
def test_a_name_that_could_lead_elsewhere_is_refused_by_the_table_and_by_the_search(
    tmp_path: Path, name: str, reason: str
) -> None:
    path = write_table(tmp_path / "t.csv", row(name))
    refused = message_of(lambda: read_annotations(path))
    assert f"image name {name!r} {reason}" in refused
    assert "expected: a file name such as aardvark_01b.jpg" in refused
    assert f"image name {name!r} {reason}" in message_of(lambda: locate_images(tmp_path, [name]))


def test_examining_a_table_reports_every_problem_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "t.csv", row("a.jpg", "nan"), row("../x"), row("a.jpg", "x"), row("c.jpg")[:5], row("d.jpg")
    )
    table, problems = examine_annotations(path)
    assert [problem.fault for problem in problems] == [
        Fault.NOT_FINITE,
        Fault.NAME,
        Fault.DUPLICATE,
        Fault.NOT_A_NUMBER,
        Fault.ROW,
    ]
    assert table is not None
    assert table.image_names == ("a.jpg", "../x", "a.jpg", "c.jpg", "d.jpg")
    assert np.isnan(table.targets[:, 0]).tolist() == [True, False, True, True, False]
    assert message_of(lambda: read_annotations(path)) == (
        f"{problems[0].message}\n  and 4 more, which `clip-hba data check` lists"
    )


def test_the_digest_of_targets_sees_every_bit_name_and_order(tmp_path: Path) -> None:
    def table(names: tuple[str, ...], targets: np.ndarray) -> AnnotationTable:
        return AnnotationTable(tmp_path, names, targets)

    zeros = np.zeros((2, 66))
    negative = zeros.copy()
    negative[1, 65] = -0.0
    digests = [
        targets_digest(table(("ab", "c"), zeros)),
        targets_digest(table(("a", "bc"), zeros)),
        targets_digest(table(("c", "ab"), zeros)),
        targets_digest(table(("ab", "c"), negative)),
    ]
    assert len(set(digests)) == 4
    big_endian_columns_first = np.asfortranarray(zeros.astype(">f8"))
    assert targets_digest(table(("ab", "c"), big_endian_columns_first)) == digests[0]


# --- prompts ---


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_prompts_are_read_one_a_line(tmp_path: Path, end: str) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(("flat; paper\ncafé " + end).encode())
    assert read_prompts(path, expected=2) == ("flat; paper", "café ")


@with_things
def test_the_real_prompts_are_66() -> None:
    assert read_prompts(THINGS / "prompts66.txt")[0] == "metallic; artificial"


def test_bad_prompts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    assert message_of(lambda: read_prompts(path)).startswith(f"{path}: there is no such file")
    path.write_text("a\nb\n")
    assert message_of(lambda: read_prompts(path)) == (
        f"{path}: wrong number of prompts\n  found:    2\n  expected: 66, one a line\n"
        "  give one prompt for each dimension"
    )
    path.write_text("")
    assert "found:    0" in message_of(lambda: read_prompts(path))
    path.write_text("a\n \nb\n")
    assert message_of(lambda: read_prompts(path, 3)).startswith(f"{path}, line 2: the prompt is empty")
    path.write_text("a\nb\n\n")
    assert message_of(lambda: read_prompts(path, 2)).startswith(f"{path}, line 3: the prompt is empty")
    path.write_bytes(b"caf\xe9\n")
    assert message_of(lambda: read_prompts(path, 1)).startswith(f"{path}: it is not UTF-8 text")


# --- the human RDM ---


def test_the_human_rdm_is_read_in_rows_of_float64(tmp_path: Path) -> None:
    rdm = symmetric()
    scipy.io.savemat(tmp_path / "r.mat", {"RDM48_triplet": rdm})
    found = read_human_rdm(tmp_path / "r.mat")
    assert found.dtype == np.float64
    assert found.flags.c_contiguous
    assert found.tobytes() == rdm.tobytes()


@with_things
def test_the_real_rdm_is_read() -> None:
    assert read_human_rdm(THINGS / "RDM48_triplet.mat").shape == (48, 48)


def test_both_halves_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    first, second = symmetric(), 2 * symmetric()
    halves = {"RDM48_triplet_split1": first, "RDM48_triplet_split2": second}
    scipy.io.savemat(tmp_path / "h.mat", halves)
    found = read_human_halves(tmp_path / "h.mat")
    assert [each.tobytes() for each in found] == [first.tobytes(), second.tobytes()]
    scipy.io.savemat(tmp_path / "r.mat", {"RDM48_triplet": first})
    message = message_of(lambda: read_human_halves(tmp_path / "r.mat"))
    assert "r.mat: variable RDM48_triplet_split1 is missing\n  found:    RDM48_triplet\n" in message
    assert message.endswith("give the path of RDM48_triplet_splithalf.mat")


def bad_at(value: float) -> np.ndarray:
    rdm = symmetric()
    rdm[3, 5] = value
    return rdm


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (
            {"rdm": np.ones(3), "x": np.ones(2)},
            "found:    rdm, x\n  save the matrix under the name RDM48_triplet, or",
        ),
        ({}, "variable RDM48_triplet is missing\n  found:    no variables"),
        ({"RDM48_triplet": symmetric(47)}, "found:    47 x 47 of class double\n  expected: 48 x 48 real numbers"),
        ({"RDM48_triplet": np.full((48, 48), "x", dtype=object)}, "found:    48 x 48 of class cell"),
        ({"RDM48_triplet": {"a": 1.0}}, "found:    1 x 1 of class struct"),
        ({"RDM48_triplet": symmetric() * 1j}, "found:    (48, 48) of complex128"),
        ({"RDM48_triplet": bad_at(np.nan)}, "row 4, column 6 is nan\n  expected: finite numbers"),
        ({"RDM48_triplet": bad_at(np.inf)}, "row 4, column 6 is inf\n  expected: finite numbers"),
        ({"RDM48_triplet": bad_at(7.5)}, "is not symmetric\n  found:    7.5 in row 4, column 6; "),
    ],
)
def test_a_bad_rdm_is_refused(tmp_path: Path, variables: dict[str, object], expected: str) -> None:
    path = tmp_path / "r.mat"
    scipy.io.savemat(path, variables)
    message = message_of(lambda: read_human_rdm(path))
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert message.endswith("give the path of RDM48_triplet.mat")


def test_an_rdm_that_is_symmetric_up_to_rounding_is_taken(tmp_path: Path) -> None:
    rdm = symmetric()
    rdm[3, 5] += 1e-9
    scipy.io.savemat(tmp_path / "r.mat", {"RDM48_triplet": rdm})
    assert read_human_rdm(tmp_path / "r.mat").tobytes() == rdm.tobytes()


@pytest.mark.parametrize("content", [b"", b"not a mat file" * 40, b"\x89HDF\r\n\x1a\n" + bytes(600), bytes(200)])
def test_what_is_no_mat_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.mat"
    assert message_of(lambda: read_human_rdm(path)).startswith(f"{path}: there is no such file")
    path.write_bytes(content)
    message = message_of(lambda: read_human_rdm(path))
    assert message.startswith(f"{path}: ")
    assert message.endswith("give the path of RDM48_triplet.mat")


def test_a_truncated_mat_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.mat"
    scipy.io.savemat(path, {"RDM48_triplet": symmetric()})
    path.write_bytes(path.read_bytes()[:9000])
    assert f"{path}: " in message_of(lambda: read_human_rdm(path))


# --- images ---


def test_image_digests_are_sha256_of_the_bytes_and_report_progress(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"one")
    paths[1].write_bytes(b"")
    seen: list[tuple[int, int]] = []
    digests = image_digests(paths, lambda done, total: seen.append((done, total)))
    assert digests == (hashlib.sha256(b"one").hexdigest(), hashlib.sha256(b"").hexdigest())
    assert seen == [(1, 2), (2, 2)]
    missing = message_of(lambda: image_digests([tmp_path / "c"]))
    assert missing == f"{tmp_path / 'c'}: it cannot be read: No such file or directory\n  restore the file"


def test_a_data_error_is_bad_input_for_the_command_line() -> None:
    assert issubclass(DataError, BadInputError)
    assert issubclass(DataError, ValueError)
