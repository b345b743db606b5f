import csv
from pathlib import Path

import pytest

from clip_hba_behavior.data.delimiter import find_delimiter


@pytest.mark.parametrize(
    ("content", "delimiter"),
    [
        ("index,name,0\n", ","),
        ("index;name;0\n", ";"),
        ("\n\nindex\tname\t0\n", "\t"),
        ('"index";"name";"0"\n', ";"),
        ('"index, or; number",name,0\n', ","),
        ("index;name,0\n", ","),  # in doubt
        ("index|name|0\n", ","),
        ("", ","),
        ('a;"name\n', ","),
    ],
)
def test_the_delimiter_is_the_one_by_which_the_header_has_most_of_the_columns(
    tmp_path: Path, content: str, delimiter: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    assert find_delimiter(path, 1000, ("name", "0")) == delimiter


def test_what_cannot_be_read_is_told_as_by_the_reader_of_rows(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_delimiter(tmp_path / "none.csv", 1000, ("name",))
    (tmp_path / "t.csv").write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        find_delimiter(tmp_path / "t.csv", 1000, ("name",))
    (tmp_path / "t.csv").write_text("x" * (csv.field_size_limit() + 1))
    assert find_delimiter(tmp_path / "t.csv", 10**6, ("name",)) == ","
