import math
from pathlib import Path

import pandas
import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.sweep.columns import COLUMNS, EFFECT_COLUMNS, read_table


def test_each_column_has_a_rule_of_one_sentence() -> None:
    for column in (*COLUMNS.values(), *EFFECT_COLUMNS.values()):
        assert column.rule.endswith(".")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ("run,kind\n", "is not a sweep's table: it has no column parent, "),
        (",".join(COLUMNS) + "\n1,2\n", "sweep.csv, line 2: "),
        (",".join(COLUMNS) + "\n" + ",".join("x" for _ in COLUMNS) + "\n", "sweep.csv, line 2: invalid literal"),
    ],
)
def test_what_is_no_table_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "sweep.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BadInputError, match=message) as caught:
        read_table(path)
    assert "write it again with `clip-hba sweep table`" in str(caught.value)


def test_nan_is_nan_also_where_pandas_wrote_it_again(tmp_path: Path) -> None:
    texts = {bool: "True", int: "1", str: "x", float: "nan"}
    row = {name: texts[column.type] for name, column in COLUMNS.items()}
    (tmp_path / "sweep.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    pandas.read_csv(tmp_path / "sweep.csv").to_csv(tmp_path / "again.csv", index=False)
    (first,), (again,) = read_table(tmp_path / "sweep.csv"), read_table(tmp_path / "again.csv")
    assert repr(first) == repr(again)
    assert math.isnan(again["behavioral_rsa_rho"])
