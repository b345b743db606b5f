"""Tables and lists of prompts that mean harm."""

from pathlib import Path

from hostile.files import Build, bytes_of, sparse

HEADER = ",".join(["", "image_name", *map(str, range(66))]).encode() + b"\n"


def one_long_line(directory: Path) -> Path:
    return sparse(directory / "file.csv", 60 * 2**20, start=HEADER[:-1])


TABLES: list[tuple[str, Build]] = [
    ("a row of more than", one_long_line),
    ("a row of more than", bytes_of("ten_million_columns", lambda: HEADER[:-1] + b"," * 10**7 + b"\n1\n")),
    ("a row of more than", bytes_of("wide_row", lambda: HEADER + b"1," * 10**7)),
    ("a row of more than", bytes_of("row_of_many_lines", lambda: HEADER + b'"\n",' * 10**6)),
    ("field larger than field limit", bytes_of("wide_cell", lambda: HEADER + b"x" * 200_000 + b"\n")),
    ("it has 1 cells", bytes_of("many_short_rows", lambda: HEADER + b"a\n" * 10**7)),
    ("is empty", bytes_of("many_bad_cells", lambda: HEADER + (b"," * 67 + b"\n") * 100_000)),
    ("found more than", bytes_of("many_empty_lines", lambda: b"\n" * 10**7)),
    ("missing", bytes_of("other_columns", lambda: b"x," * 100_000 + b"\n1\n")),
    ("is too long", bytes_of("long_name", lambda: HEADER + b"0," + b"x" * 300 + b",1" * 66 + b"\n")),
    ("has a control character", bytes_of("colours", lambda: HEADER + b"0,\x1b[31ma.jpg" + b",1" * 66 + b"\n")),
]
PROMPTS: list[tuple[str, Build]] = [
    ("wrong number of prompts", bytes_of("many", b"a\n" * 100_000)),
    ("expected at most", bytes_of("long", b"a" * 2**20)),
]
