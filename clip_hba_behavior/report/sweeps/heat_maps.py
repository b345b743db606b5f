"""Heat maps of a sweep: start epoch by later epoch, and start epoch by length."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_hba_behavior.report.figure import Figure, Heat, Panel, Table
from clip_hba_behavior.report.sweeps.null import LEVEL, is_outside, marks_text
from clip_hba_behavior.report.sweeps.record import MEASURE_NAMES, UNITS, SweepRecord
from clip_hba_behavior.sweep.effect import Effect
from clip_hba_behavior.sweep.nulls import p_value

_ROW = 18  # pixels, of one start epoch
_BEST = {"behavioral_rsa_rho": max, "test_loss": min}
BEST_NAMES = {"behavioral_rsa_rho": "best behavioural RSA", "test_loss": "lowest test loss"}


def over_epochs(record: SweepRecord, measure: str) -> Iterator[Figure]:
    """Yield a figure for each length: a panel for each kind, start epoch by later epoch, all in one scale."""
    cells: dict[int, dict[str, dict[tuple[int, int], list[Effect]]]] = defaultdict(lambda: defaultdict(dict))
    for effect in record.effects_of(measure):
        cells[effect.length][effect.kind].setdefault((effect.start_epoch, effect.epoch), []).append(effect)
    end = _end_of_scale(
        _mean_of(effects) for by_kind in cells.values() for of in by_kind.values() for effects in of.values()
    )
    for length in sorted(cells):
        starts = sorted({start for of in cells[length].values() for start, _ in of})
        epochs = list(range(starts[0], record.plan.last_epoch + 1))
        name = MEASURE_NAMES[measure]
        plural = "s" if length > 1 else ""
        yield Figure(
            f"{record.prefix}epochs-{measure.replace('_', '-')}-{length}",
            f"Change of {name} over epochs: {length} perturbed epoch{plural}",
            f"The {name} of the perturbed run minus the baseline’s, by the first perturbed epoch (rows) and the "
            "epoch after which both are evaluated (columns); the mean over seeds. All panels of this measure, of "
            f"all lengths, have one scale. {marks_text(record, measure)}",
            f"Change of {name} for {len(starts)} start epochs and {len(epochs)} epochs, by "
            f"{len(cells[length])} kinds of perturbation.",
            tuple(
                _panel(of, kind, starts, epochs, f"change ({UNITS[measure]})", end, record.has_null())
                for kind, of in cells[length].items()
            ),
            Table(
                ("kind", "start_epoch", "epoch", "change", "seeds", "outside_null"),
                [
                    (kind, start, epoch, _mean_of(effects), len(effects), is_outside(effects))
                    for kind, of in cells[length].items()
                    for (start, epoch), effects in sorted(of.items())
                ],
            ),
        )


def _panel(
    cells: Mapping[tuple[int, int], Sequence[Effect]],
    kind: str,
    starts: Sequence[int],
    epochs: Sequence[int],
    label: str,
    end: float,
    is_marked: bool,
) -> Panel:
    values = [[_mean_of(cells.get((start, epoch), [])) for epoch in epochs] for start in starts]
    marked = [[bool(is_outside(cells.get((start, epoch), []))) for epoch in epochs] for start in starts]
    return _heat_panel(
        values, marked if is_marked else None, kind, starts, list(map(str, epochs)), label, end, "epoch"
    )


def _heat_panel(
    values: Sequence[Sequence[float]],
    marked: Sequence[Sequence[bool]] | None,
    title: str,
    starts: Sequence[int],
    columns: Sequence[str],
    label: str,
    end: float,
    x_label: str,
) -> Panel:
    heat = Heat(
        values,
        columns,
        list(map(str, starts)),
        label,
        -end,
        end,
        "diverging",
        marked,
        "outside the null" if marked is not None and any(map(any, marked)) else "",
    )
    return Panel((heat,), x_label, "first perturbed epoch", title, height=max(280, 150 + _ROW * len(starts)))


def best_by_length(record: SweepRecord, measure: str) -> Figure:
    """Return the figure of the best that each run reaches, start epoch by length, beside its null's mean."""
    found = {kind: _best(record, measure, kind) for kind in [*record.plan.file.kinds, "reorder"]}
    found = {kind: cells for kind, cells in found.items() if cells}
    null = found.get("reorder", {})
    starts = sorted({start for cells in found.values() for start, _ in cells})
    lengths = sorted({length for cells in found.values() for _, length in cells})
    end = _end_of_scale(_mean(by_seed.values()) for cells in found.values() for by_seed in cells.values())
    panels = []
    for kind, cells in found.items():
        marked = [
            [_is_outside(cells.get(cell), null.get(cell)) for cell in _row(start, lengths)] for start in starts
        ]
        panels.append(
            _heat_panel(
                [[_mean(cells.get(cell, {}).values()) for cell in _row(start, lengths)] for start in starts],
                marked if null and kind != "reorder" else None,
                kind if kind != "reorder" else f"null (reorder): mean of {max(map(len, null.values()))} runs",
                starts,
                list(map(str, lengths)),
                f"difference ({UNITS[measure]})",
                end,
                "perturbed epochs",
            )
        )
    what = BEST_NAMES[measure]
    beside = "Beside them the mean of the null. " if null else ""
    return Figure(
        f"{record.prefix}best-{measure.replace('_', '-')}",
        f"{what[0].upper()}{what[1:]} by start and length",
        f"The {what} that a run reaches from its first perturbed epoch to its end, minus the baseline’s over the "
        f"same epochs; the mean over seeds. {beside}{marks_text(record, measure)}",
        f"{what[0].upper()}{what[1:]} minus the baseline’s, for {len(starts)} start epochs and {len(lengths)} "
        "lengths.",
        tuple(panels),
        Table(
            ("kind", "start_epoch", "length", "seed", "difference", "null_runs", "p"),
            [
                (kind, *cell, seed, value, len(null.get(cell, {})), _p_value(kind, value, null.get(cell)))
                for kind, cells in found.items()
                for cell, by_seed in sorted(cells.items())
                for seed, value in by_seed.items()
            ],
        ),
    )


def _row(start: int, lengths: Sequence[int]) -> list[tuple[int, int]]:
    return [(start, length) for length in lengths]


def _is_outside(by_seed: Mapping[int, float] | None, null: Mapping[int, float] | None) -> bool:
    """Return whether every seed's value is outside the null."""
    if not by_seed or not null:
        return False
    return all(p_value(value, list(null.values())) <= LEVEL for value in by_seed.values())


def _p_value(kind: str, value: float, null: Mapping[int, float] | None) -> float | None:
    return p_value(value, list(null.values())) if null and kind != "reorder" else None


def _best(record: SweepRecord, measure: str, kind: str) -> dict[tuple[int, int], dict[int, float]]:
    """Return of each start and length each seed's best minus the baseline's best over the same epochs."""
    best: Any = _BEST[measure]
    found: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for rows in record.runs(kind):
        first = rows[0]
        same = [record.baseline.rows[row["epoch"]][measure] for row in rows]
        own, its = ([each for each in of if math.isfinite(each)] for of in ([row[measure] for row in rows], same))
        value = best(own) - best(its) if own and its else math.nan
        found[first["perturb_epoch"], first["perturb_length"]][first["seed"]] = value
    return dict(found)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return float(np.mean(values)) if values else math.nan


def _mean_of(effects: Sequence[Effect]) -> float:
    return _mean(effect.value for effect in effects)


def _end_of_scale(values: Iterator[float]) -> float:
    """Return where a scale around 0 ends: at the largest absolute value."""
    return max((abs(value) for value in values if math.isfinite(value)), default=0.0) or 1.0
