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
        name: what of its settings is not as in the other groups; empty where there is one group.
        runs: in the order in which they were given.
    """

    name: str
    runs: tuple[RunRecord, ...]

    def over_epochs(self, metric: str) -> tuple[list[float], NDArray[np.float64]]:
        """Return the epochs that all runs of the group have, and a metric of each, `[runs, epochs] float64`."""
        epochs = sorted(set.intersection(*(set(run.rows) for run in self.runs)))
        values = [[run.rows[epoch][metric] for epoch in epochs] for run in self.runs]
        return [float(epoch) for epoch in epochs], np.array(values, dtype=np.float64).reshape(len(self.runs), -1)

    def at_best(self, metric: str) -> NDArray[np.float64]:
        """Return a metric of each run in its epoch with the lowest test loss, `[runs]`."""
        return np.array([run.rows[run.best_epoch()][metric] for run in self.runs])


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
            "" if len(distinct) == 1 else _name(shape, differing),
            tuple(record for record, its in zip(records, shapes, strict=True) if its == shape),
        )
        for shape in distinct
    ]


def _shape(record: RunRecord) -> dict[str, Any] | None:
    if record.config is None:
        return None
    settings = record.config.trajectory()
    settings.pop("random_seed")
    return settings | {f"{name} digest": value for name, value in record.environment.get("digests", {}).items()}


def _name(shape: dict[str, Any] | None, differing: Sequence[str]) -> str:
    if shape is None:
        return UNKNOWN
    values = {key: shape.get(key) for key in differing}
    return ", ".join(f"{key} {_short(value)}" for key, value in values.items()) or "settings as recorded"


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 16 else f"{text[:12]}…"
