"""A results CSV, of this project or of the earlier pipeline in either of its two forms."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, quote, read_rows, shown
from clip_hba_behavior.run.results import COLUMNS, METRICS

_MAX_BYTES = 4 * MIB  # some 40,000 epochs
# the names of METRICS in the file, and the number of its first epoch
_FORMS = (
    (METRICS, 1),
    (("train_loss", "val_loss", "rsa_behavioral_corr", "rsa_behavioral_p"), 0),
)


@dataclass(frozen=True)
class ResultsTable:
    """The rows of a results CSV.

    Attributes:
        path: where it was read.
        form: says which form was found, for a person.
        rows: by number of completed epochs, `METRICS` as they stand in the file.
        is_own: whether this program wrote it, as its columns tell; the earlier pipeline's have others.
    """

    path: Path
    form: str
    rows: dict[int, dict[str, float]]
    is_own: bool


def read_results_table(path: Path) -> ResultsTable:
    """Read a results CSV; its header tells which form it has.

    The form with `test_loss` counts epochs from 1; the one with `val_loss` from 0, so its row 0 is the
    state after one completed epoch.

    Raises:
        BadInputError: no such file, neither header, or a row that is wrong; names the line.
    """
    try:
        lines = (each for each in read_rows(path, _MAX_BYTES) if each[1])
        header = [name.strip() for name in next(lines, (0, []))[1]]
        names, first = _form_of(path, header)
        rows: dict[int, dict[str, float]] = {}
        for number, cells in lines:
            where = f"{path}, line {number}"
            row = dict(zip(header, cells, strict=False))
            epoch = _number(where, "epoch", row.get("epoch"))
            if epoch != int(epoch) or epoch < first or int(epoch) - first + 1 in rows:
                raise BadInputError(
                    f"{where}: an epoch that cannot be\n  found:    {shown(row['epoch'])}\n"
                    f"  expected: a whole number from {first} on, each once"
                )
            rows[int(epoch) - first + 1] = {
                metric: _number(where, name, row.get(name)) for metric, name in zip(METRICS, names, strict=True)
            }
    except FileNotFoundError:
        raise BadInputError(f"there is no results CSV {path}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInputError(f"{path} is no CSV: {error}") from None
    form = f"header {', '.join(names)}; epochs from {first}"
    return ResultsTable(path, form, rows, is_own=tuple(header) == COLUMNS)


def _form_of(path: Path, header: list[str]) -> tuple[tuple[str, ...], int]:
    for names, first in _FORMS:
        if {"epoch", *names} <= set(header):
            return names, first
    raise BadInputError(
        f"{path} is no results CSV\n  found:    {shown(', '.join(header)) or 'nothing'}\n  expected: "
        + "\n         or ".join(", ".join(("epoch", *names)) for names, _ in _FORMS)
    )


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        raise BadInputError(f"{where}: {name} is {quote(text)}, not a number") from None
    if name == "epoch" and not math.isfinite(value):
        raise BadInputError(f"{where}: epoch is {quote(text)}, not a number")
    return value
