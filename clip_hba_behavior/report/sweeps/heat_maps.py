"""Heat maps of a sweep: start epoch by later epoch, and start epoch by length."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_hba_behavior.report.figure import Cell, Figure, Heat, Panel, Table, epoch_step
from clip_hba_behavior.report.sweeps.null import LEVEL, RULE, is_outside
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
        _mean(effects) for by_kind in cells.values() for of in by_kind.values() for effects in of.values()
    )
    for length in sorted(cells):
        starts = sorted({start for of in cells[length].values() for start, _ in of})
        epochs = list(range(starts[0], record.plan.last_epoch + 1))
        name = MEASURE_NAMES[measure]
        plural = "s" if length > 1 else ""
        yield Figure(
            f"{record.prefix}epochs-{measure.replace('_', '-')}-{length}",
            f"Change of {name} over epochs: {length} perturbed epoch{plural}",
            f"The {name} of the perturbed run minus the baseline’s, by the first perturbed epoch (rows) and the epoch "
            "after which both are evaluated (columns); the mean over seeds. All panels of this measure, of all "
            f"lengths, have one scale. {_marks_text(record)}",
            f"Change of {name} for {len(starts)} start epochs and {len(epochs)} epochs, {len(cells[length])} kinds.",
            tuple(
                _panel(of, kind, starts, epochs, f"change ({UNITS[measure]})", end, record.has_null())
                for kind, of in cells[length].items()
            ),
            Table(
                ("kind", "start_epoch", "epoch", "change", "seeds", "outside_null"),
                [
                    (kind, start, epoch, _mean(effects), len(effects), is_outside(effects))
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
    values = [[_mean(cells.get((start, epoch), [])) for epoch in epochs] for start in starts]
    marked = [[is_outside(cells.get((start, epoch), [])) for epoch in epochs] for start in starts]
    return _heat_panel(values, marked if is_marked else None, kind, starts, list(map(str, epochs)), label, end, "epoch")


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
    baseline = {epoch: row[measure] for epoch, row in record.baseline.rows.items()}
    found = {kind: _best(record, measure, baseline, kind) for kind in record.plan.file.kinds}
    null = _best(record, measure, baseline, "reorder")
    cells = {kind: values for kind, values in found.items() if values}
    starts = sorted({start for values in cells.values() for start, _ in values})
    lengths = sorted({length for values in cells.values() for _, length in values})
    means = {
        kind: {cell: float(np.mean(list(by_seed.values()))) for cell, by_seed in values.items()}
        for kind, values in (cells | ({"reorder": null} if null else {})).items()
    }
    p_values: dict[str, dict[tuple[int, int], list[float]]] = {
        kind: {
            cell: [p_value(value, list(null[cell].values())) for value in by_seed.values()] if cell in null else []
            for cell, by_seed in values.items()
        }
        for kind, values in cells.items()
    }
    end = _end_of_scale(value for each in means.values() for value in each.values())
    what = BEST_NAMES[measure]
    panels = []
    for kind, of in means.items():
        p_of = p_values.get(kind, {})
        marked = [[_all_small(p_of.get((start, length), [])) for length in lengths] for start in starts]
        grid = [[of.get((start, length), math.nan) for length in lengths] for start in starts]
        sizes = {len(by_seed) for by_seed in null.values()}
        title = kind if kind != "reorder" else f"null (reorder): mean of {max(sizes)} runs"
        panels.append(
            _heat_panel(
                grid, marked if kind != "reorder" and null else None, title, starts,
                list(map(str, lengths)), f"difference ({UNITS[measure]})", end, "perturbed epochs",
            )
        )  # fmt: skip
    beside = (
        f"Beside them the mean of the null. {_marks_text(record)}"
        if null
        else "There is no null to put beside it: see the effects below."
    )
    rows: list[tuple[Cell, ...]] = [
        (kind, *cell, seed, value, len(null.get(cell, {})), None if not p_values.get(kind, {}).get(cell) else p_values[kind][cell][place])
        for kind, values in (cells | ({"reorder": null} if null else {})).items()
        for cell, by_seed in sorted(values.items())
        for place, (seed, value) in enumerate(by_seed.items())
    ]  # fmt: skip
    return Figure(
        f"{record.prefix}best-{measure.replace('_', '-')}",
        f"{what[0].upper()}{what[1:]} by start and length",
        f"The {what} that a run reaches from its first perturbed epoch to its end, minus the baseline’s over the same "
        f"epochs; the mean over seeds. {beside}",
        f"{what[0].upper()}{what[1:]} minus the baseline’s, for {len(starts)} start epochs and {len(lengths)} lengths.",
        tuple(panels),
        Table(("kind", "start_epoch", "length", "seed", "difference", "null_runs", "p"), rows),
    )


def _best(
    record: SweepRecord, measure: str, baseline: Mapping[int, float], kind: str
) -> dict[tuple[int, int], dict[int, float]]:
    """Return of each start and length each seed's best minus the baseline's best over the same epochs."""
    best: Any = _BEST[measure]
    found: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for rows in record.runs(kind):
        first = rows[0]
        same = [baseline[row["epoch"]] for row in rows]
        found[first["perturb_epoch"], first["perturb_length"]][first["seed"]] = best(
            row[measure] for row in rows
        ) - best(same)
    return dict(found)


def _all_small(p_values: Sequence[float]) -> bool:
    return bool(p_values) and max(p_values) <= LEVEL


def _mean(effects: Sequence[Effect]) -> float:
    return float(np.mean([effect.value for effect in effects])) if effects else math.nan


def _end_of_scale(values: Iterator[float]) -> float:
    """Return where a scale around 0 ends: at the largest absolute value."""
    return max((abs(value) for value in values), default=0.0) or 1.0


def _marks_text(record: SweepRecord) -> str:
    if not record.has_null():
        return "There is no null to judge cells against: see the effects below."
    several = ", in every seed" if len(record.plan.file.seeds) > 1 else ""
    return f"A cross marks {RULE}{several}."
