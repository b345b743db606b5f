"""The columns of a sweep's tables, each with its rule, and their rows as CSV and Parquet."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, read_rows, shown
from clip_hba_behavior.run.results import METRICS

_MAX_BYTES = 512 * MIB  # some 1,000,000 rows


@dataclass(frozen=True)
class Column:
    """What stands in a column.

    Attributes:
        type: of its values; any may be None, which CSV leaves empty.
        rule: how the value comes about, in a sentence.
    """

    type: type
    rule: str


_COMPARED = METRICS[:3]
_EPOCHS = "the perturbed epochs are perturb_length from perturb_epoch on"
_P_VALUE = "(1 + number of null runs whose difference is not smaller in absolute value, or undefined) / (K + 1)"

COLUMNS: dict[str, Column] = {
    "run": Column(str, "The run's directory within the sweep's."),
    "parent": Column(str, "The baseline's run directory."),
    "parent_epoch": Column(int, "The baseline's epoch whose state the run began with."),
    "kind": Column(
        str,
        "The perturbation; none: a control, reorder: the matched null, reseed: that of other streams.",
    ),
    "perturb_epoch": Column(int, "The first perturbed epoch; of an unperturbed run its first."),
    "perturb_length": Column(int, "How many epochs are perturbed; 0 for none."),
    "seed": Column(int, "Of the perturbation's draws, or of the random streams."),
    "epoch": Column(int, "The row's epoch."),
    "perturbed": Column(bool, f"Whether the row's epoch is perturbed: {_EPOCHS}."),
    **{name: Column(float, f"The {name} of training_res.csv.") for name in METRICS},
    **{
        f"{name}_minus_baseline": Column(float, f"The run's {name} minus the baseline's at the same epoch.")
        for name in _COMPARED
    },
    "recovery_epochs": Column(
        int,
        "Epochs from the last perturbed one to the first of band_epochs consecutive ones whose test loss differs "
        "from the baseline's by at most band times it; empty where there are none, and for unperturbed runs.",
    ),
    "recovery_epochs_from_start": Column(
        int, "Epochs from the first perturbed one to the same epoch: recovery_epochs + perturb_length - 1."
    ),
    "followed_epochs": Column(
        int,
        "The largest recovery_epochs that could be seen before the run's end: the time of a censored run in "
        "a Kaplan-Meier estimate.",
    ),
    "censored": Column(bool, "Whether the run ended before it recovered; empty for unperturbed runs."),
    "left_band": Column(
        bool,
        "Whether the test loss was outside the band in any perturbed epoch; if not, there was nothing to recover "
        "from. Empty for unperturbed runs.",
    ),
    "state_digest": Column(str, "SHA-256 of the complete training state after the epoch."),
    "baseline_state_digest": Column(
        str,
        "The same of the baseline; directories with one in common hold one baseline, which counts once.",
    ),
    "equals_baseline": Column(bool, "Whether that is the baseline's, so that not one bit differs."),
}

EFFECT_COLUMNS: dict[str, Column] = {
    "baseline": Column(str, "The baseline's run directory."),
    "run": Column(str, "The perturbed run."),
    "kind": Column(str, "The perturbation."),
    "length": Column(int, "How many epochs are perturbed."),
    "start_epoch": Column(int, "The first perturbed epoch."),
    "seed": Column(int, "Of the perturbation's draws."),
    "measure": Column(str, "What is compared: test_loss or behavioral_rsa_rho."),
    "when": Column(
        str,
        "perturbed: the first perturbed epoch; window_end: the last, if there are more; last: the run's last, "
        "of runs that go on after the window.",
    ),
    "epoch": Column(int, "That epoch."),
    "effect": Column(float, "The run's measure minus the baseline's at that epoch."),
    "matched_null_runs": Column(
        int,
        "K, the reorder runs of the same start and length that have that epoch; for last, those that went on "
        "after the window, each compared at its own last epoch.",
    ),
    "matched_null_mean": Column(float, "The mean of their differences from the baseline."),
    "matched_null_spread": Column(float, "The standard deviation of the same (divided by K - 1)."),
    "matched_p_value": Column(float, f"{_P_VALUE}, of the reorder runs."),
    "wider_null_runs": Column(int, "K, the reseed runs of the same start, chosen in the same way."),
    "wider_p_value": Column(float, f"{_P_VALUE}, of the reseed runs."),
    "family_epochs": Column(
        int,
        "m, the start epochs of one claim: same kind, length, seed, measure and when, with the same null seeds.",
    ),
    "family_p_value": Column(
        float,
        "(1 + number of null seeds whose largest statistic over the m start epochs is at least the perturbed "
        "runs') / (K + 1); a statistic is the absolute difference divided by the root mean square of the other "
        "K runs'.",
    ),
    "family_epoch_p_value": Column(
        float,
        "The same of this start epoch's statistic, against the same maxima: so it is adjusted for all m.",
    ),
    "adjusted_p_value": Column(
        float, "matched_p_value by Benjamini and Hochberg over the m; empty where (K + 1) is less than m / 0.05."
    ),
}


def to_csv(columns: Mapping[str, Column], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Return rows as CSV; floats are written with repr and read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        values = (row[name] for name in columns)
        writer.writerow(
            ["" if each is None else repr(each) if isinstance(each, float) else each for each in values]
        )
    return text.getvalue().encode()


def to_parquet(
    columns: Mapping[str, Column], rows: Sequence[Mapping[str, Any]], metadata: dict[str, str]
) -> bytes:
    """Return rows as Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    fields = [pa.field(name, types[column.type]) for name, column in columns.items()]
    arrays = [pa.array([row[each.name] for row in rows], type=each.type) for each in fields]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata)), sink)
    return sink.getvalue()


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a `sweep.csv`, each value in its column's type; an empty cell is None.

    An empty cell of a number that is no integer is nan: pandas writes nan so.

    Raises:
        BadInputError: it is not there, or not such a table; names the line.
    """
    again = "  write it again with `clip-hba sweep table`"
    where, rows = f"{path}", []
    try:
        lines = read_rows(path, _MAX_BYTES)
        header = next(lines, (0, []))[1]
        if missing := [name for name in COLUMNS if name not in header]:
            raise BadInputError(f"{path} is not a sweep's table: it has no column {', '.join(missing)}\n{again}")
        for number, cells in lines:
            where = f"{path}, line {number}"
            row = dict(zip(header, cells, strict=True))
            rows.append({name: _value(column.type, row[name]) for name, column in COLUMNS.items()})
    except BadInputError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise BadInputError(f"{where}: {error}\n{again}") from None
    return rows


def _value(kind: type, text: str) -> Any:
    if not text:
        return math.nan if kind is float else None
    if kind is not bool:
        return kind(text)
    if text not in ("True", "False"):
        raise ValueError(f"found {shown(text)}, expected True or False")
    return text == "True"
