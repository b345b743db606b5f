"""`training_res.csv`: a row for each epoch; floats are written exactly."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from clip_hba_behavior.reproducibility.record.lines import Position, Schema

COLUMNS = (
    "epoch",
    "train_loss",
    "test_loss",
    "behavioral_rsa_rho",
    "behavioral_rsa_p_value",
    "used_random_targets",
    "used_shuffled_targets",
    "perturb_type",
)
METRICS = COLUMNS[1:5]
RESULTS_NAME = "training_res.csv"
# Stands wherever the column is shown.
P_VALUE_CAVEAT = (
    "behavioral_rsa_p_value treats the 1,128 pairs of 48 images as independent, which they are not: "
    "use it to rank, not to test."
)


def format_row(metrics: Mapping[str, Any]) -> str:
    """Return a row without its end; floats are written with repr and read back exactly."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(
        [repr(value) if isinstance(value, float) else value for value in (metrics[each] for each in COLUMNS)]
    )
    return text.getvalue()


def parse_row(line: str) -> dict[str, str]:
    """Return the cells of a row by column.

    Raises:
        ValueError: it is not a row of this file.
    """
    cells = next(csv.reader([line], strict=True), [])
    row = dict(zip(COLUMNS, cells, strict=True))
    if not row["epoch"].isdecimal():
        raise ValueError("not an epoch")
    for name in METRICS:
        float(row[name])
    return row


def _position_of_row(line: str) -> Position:
    try:
        return int(parse_row(line)["epoch"]), 0
    except csv.Error as error:
        raise ValueError(str(error)) from None


def _can_begin(text: str) -> bool:
    return text[:1].isdigit() and len(text) < 1000 and text.isprintable()


RESULTS = Schema("the results", _position_of_row, _can_begin, header=",".join(COLUMNS))
