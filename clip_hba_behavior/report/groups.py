"""Several runs sorted by their settings: which of them are one experiment with other seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.report.sources import RunRecord

UNKNOWN = "results tables"  # they say nothing of settings


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone, as far as is recorded.

    Attributes:
        name: a letter; empty where there is one group.
        settings: what of them is not as in the other groups.
        runs: in the order in which they were given.
    """

    name: str
    settings: str
    runs: tuple[RunRecord, ...]

    def distinct(self) -> tuple[RunRecord, ...]:
        """Return the runs without those that repeat another one's results: a copy is no further seed."""
        longest_first = sorted(self.runs, key=lambda run: -len(run.rows))  # the first of equal ones stays
        kept: list[RunRecord] = []
        for run in longest_first:
            if not any(_is_repeated(run, other) for other in kept):
                kept.append(run)
        return tuple(run for run in self.runs if run in kept)

    def repeating(self) -> tuple[RunRecord, ...]:
        """Return the runs that `distinct` leaves out."""
        distinct = self.distinct()
        return tuple(run for run in self.runs if run not in distinct)

    def over_epochs(self, metric: str) -> tuple[list[float], NDArray[np.float64]]:
        """Return the epochs that all distinct runs have, and a metric of each, `[runs, epochs] float64`."""
        runs = self.distinct()
        epochs = sorted(set.intersection(*(set(run.rows) for run in runs)))
        values = [[run.rows[epoch][metric] for epoch in epochs] for run in runs]
        return [float(epoch) for epoch in epochs], np.array(values, dtype=np.float64).reshape(len(runs), -1)

    def at_best(self, metric: str) -> NDArray[np.float64]:
        """Return a metric of each distinct run in its epoch with the lowest test loss, `[runs]`."""
        return np.array([run.rows[run.best_epoch()][metric] for run in self.distinct()])


def _is_repeated(run: RunRecord, other: RunRecord) -> bool:
    """Return whether another run has the same results in all epochs that both have."""
    both = run.rows.keys() & other.rows.keys()
    return bool(both) and all(repr(run.rows[epoch]) == repr(other.rows[epoch]) for epoch in both)


def groups_of(records: Sequence[RunRecord]) -> list[Group]:
    """Sort runs by what shapes them: settings but for the seed, data and weights."""
    shapes = [_shape(record) for record in records]
    distinct = [shape for index, shape in enumerate(shapes) if shape not in shapes[:index]]
    keys = {key for shape in distinct if shape for key in shape}
    differing = sorted(
        key for key in keys if len({repr(shape.get(key)) for shape in distinct if shape is not None}) > 1
    )
    return [
        Group(
            "" if len(distinct) == 1 else _letter(number),
            "" if len(distinct) == 1 else _settings(shape, differing),
            tuple(record for record, its in zip(records, shapes, strict=True) if its == shape),
        )
        for number, shape in enumerate(distinct)
    ]


def _letter(number: int) -> str:
    """Return A to Z, then A2 to Z2, and so on."""
    more = number // 26
    return chr(ord("A") + number % 26) + (str(more + 1) if more else "")


def _shape(record: RunRecord) -> dict[str, Any] | None:
    if record.config is None:
        return None
    settings = record.config.trajectory()
    unused = {"random_seed"}
    if settings["lr_schedule"] == "constant":
        unused |= {"lr_min", "lr_warmup_epochs", "lr_schedule_epochs"}
    if settings["perturb_type"] == "none":
        unused |= {key for key in settings if key.startswith("perturb_")} - {"perturb_type"}
    settings = {key: value for key, value in settings.items() if key not in unused}
    return settings | {f"{name} digest": value for name, value in record.environment.get("digests", {}).items()}


def _settings(shape: dict[str, Any] | None, differing: Sequence[str]) -> str:
    if shape is None:
        return UNKNOWN
    values = {key: shape[key] for key in differing if shape.get(key) is not None}
    return ", ".join(f"{key} {shortened(value)}" for key, value in values.items()) or "settings as recorded"


def shortened(value: Any) -> str:
    """Return a setting's value, a long one by its beginning."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"
