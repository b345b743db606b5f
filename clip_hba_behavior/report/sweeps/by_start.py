"""Figures of what a perturbation did, by the epoch that it began with."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from clip_hba_behavior.report.colours import INK
from clip_hba_behavior.report.figure import Cell, Figure, Level, Mark, Panel, Series, Table, epoch_step
from clip_hba_behavior.report.sweeps.null import LEAST_NULL, limit_of, null_size
from clip_hba_behavior.report.sweeps.record import MEASURE_NAMES, UNITS, SweepRecord
from clip_hba_behavior.sweep.effect import Effect, Null

ByKind = dict[str, dict[int, list[Effect]]]  # of each kind and start epoch the effects, one for each seed


def effect_by_start(record: SweepRecord, measure: str, styles: Mapping[str, int]) -> Figure:
    """Return the figure of a measure's change at the end of the first perturbed epoch, and of the whole window."""
    chosen = at_the_window(record, measure)
    name = MEASURE_NAMES[measure]
    return _figure(
        record,
        f"{record.prefix}change-{measure.replace('_', '-')}",
        f"Change of {name} by the perturbation",
        f"The {name} of the perturbed run minus the baseline’s, after the epoch that the panel names.",
        measure,
        chosen,
        {length: f"after {epochs_text(length, 'perturbed ')}" for length in chosen},
        styles,
    )


def final_by_start(record: SweepRecord, measure: str, styles: Mapping[str, int]) -> Figure:
    """Return the figure of the difference that is left at the end of each run."""
    chosen = at_the_end(record, measure)
    name = MEASURE_NAMES[measure]
    return _figure(
        record,
        f"{record.prefix}final-{measure.replace('_', '-')}",
        f"Final {name} against onset",
        f"The {name} of the perturbed run minus the baseline’s, after the last epoch of the run.",
        measure,
        chosen,
        {length: f"perturbed for {epochs_text(length)}" for length in chosen},
        styles,
    )


def at_the_window(record: SweepRecord, measure: str) -> dict[int, ByKind]:
    """Choose the effects after n perturbed epochs: 1, where all lengths are the same run, and each length."""
    found: dict[int, dict[str, dict[int, dict[int, Effect]]]] = _nested()
    for effect in record.effects_of(measure):
        if effect.when == "perturbed":
            there = found[1][effect.kind][effect.start_epoch]
            if effect.seed not in there or there[effect.seed].length > effect.length:
                there[effect.seed] = effect
        elif effect.when == "window_end":
            found[effect.length][effect.kind][effect.start_epoch][effect.seed] = effect
    return _by_seed(found)


def at_the_end(record: SweepRecord, measure: str) -> dict[int, ByKind]:
    """Choose the effects at each run's last epoch, by length."""
    last: dict[str, Effect] = {}
    for effect in record.effects_of(measure):
        if effect.run not in last or last[effect.run].epoch < effect.epoch:
            last[effect.run] = effect
    found: dict[int, dict[str, dict[int, dict[int, Effect]]]] = _nested()
    for effect in last.values():
        found[effect.length][effect.kind][effect.start_epoch][effect.seed] = effect
    return _by_seed(found)


def _nested() -> dict[int, dict[str, dict[int, dict[int, Effect]]]]:
    return defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))


def _by_seed(found: Mapping[int, Mapping[str, Mapping[int, Mapping[int, Effect]]]]) -> dict[int, ByKind]:
    return {
        length: {
            kind: {start: list(by_start[start].values()) for start in sorted(by_start)}
            for kind, by_start in found[length].items()
        }
        for length in sorted(found)
    }


def epochs_text(number: int, what: str = "") -> str:
    """Return a number of epochs in words, such as `2 perturbed epochs`."""
    return f"{number} {what}epoch{'s' if number != 1 else ''}"


def _figure(
    record: SweepRecord,
    name: str,
    title: str,
    text: str,
    measure: str,
    chosen: Mapping[int, ByKind],
    titles: Mapping[int, str],
    styles: Mapping[str, int],
) -> Figure:
    everything = [
        effect for by_kind in chosen.values() for each in by_kind.values() for of in each.values() for effect in of
    ]
    seeds = len({effect.seed for effect in everything})
    lines = " Lines are means over seeds, points single seeds." if seeds > 1 else ""
    largest = max(everything, key=lambda effect: -1.0 if math.isnan(effect.value) else abs(effect.value))
    return Figure(
        name,
        title,
        f"{text}{lines} {_null_text(everything)}",
        f"{title}, by start epoch. The largest change, {largest.value:.3g}, is by {largest.kind} in epoch "
        f"{largest.start_epoch}.",
        tuple(_panel(by_kind, measure, titles[length], styles) for length, by_kind in chosen.items()),
        Table(
            (
                "perturbed_epochs", "kind", "start_epoch", "seed", "epoch", "change", "null_runs", "null_mean",
                "null_limit", "p",
            ),
            [
                (length, *_row(effect))
                for length, by_kind in chosen.items()
                for by_start in by_kind.values()
                for effects in by_start.values()
                for effect in effects
            ],
        ),
    )  # fmt: skip


def _null_text(effects: Sequence[Effect]) -> str:
    nulls = [effect.matched for effect in effects if effect.matched is not None]
    if not nulls:
        return "There is no null to judge it against: see “Effects and claims”."
    size = null_size(nulls)
    least = min(len(null.effects) for null in nulls)
    band = (
        "has p above 0.05 by their number alone, not corrected for the number of epochs and kinds"
        if least >= LEAST_NULL
        else f"is not larger than the largest of theirs; with K below {LEAST_NULL} no p can be 0.05"
    )
    return (
        f"The band is that of the matched null: K = {size} runs whose images come in another order in the same "
        f"epochs. A change within it {band}."
    )


def _row(effect: Effect) -> tuple[Cell, ...]:
    null = effect.matched
    shown: tuple[Cell, ...] = (0, None, None, None)
    if null is not None:
        shown = (len(null.effects), float(np.mean(null.effects)), limit_of(null.effects), null.p_value)
    return (effect.kind, effect.start_epoch, effect.seed, effect.epoch, effect.value, *shown)


def _panel(by_kind: ByKind, measure: str, title: str, styles: Mapping[str, int]) -> Panel:
    starts = sorted({start for by_start in by_kind.values() for start in by_start})
    marks: list[Mark] = [*_null_band(by_kind), Level(0.0)]
    for kind, by_start in by_kind.items():
        x = [float(start) for start in by_start]
        if any(len(effects) > 1 for effects in by_start.values()):
            points = [effect for effects in by_start.values() for effect in effects]
            marks.append(
                Series(
                    [float(each.start_epoch) for each in points],
                    [each.value for each in points],
                    style=styles[kind],
                    kind="points",
                    hover=[f"{kind}, seed {each.seed}" for each in points],
                    is_faint=True,
                )
            )
        means = [float(np.mean([each.value for each in effects])) for effects in by_start.values()]
        marks.append(Series(x, means, kind, styles[kind], "both", hover=[kind] * len(x)))
    return start_panel(marks, measure, title, starts)


def start_panel(marks: Sequence[Mark], measure: str, title: str, starts: Sequence[int]) -> Panel:
    """Return a panel of changes over start epochs, which ascend."""
    step = epoch_step(starts[0], starts[-1])
    return Panel(tuple(marks), "first perturbed epoch", f"change ({UNITS[measure]})", title, x_step=step)


def _null_band(by_kind: ByKind) -> list[Mark]:
    """Return the band of the matched null, which all kinds of one length and start share."""
    nulls: dict[int, Null] = {}
    for by_start in by_kind.values():
        for start, effects in by_start.items():
            if effects[0].matched is not None:
                nulls[start] = effects[0].matched
    if not nulls:
        return []
    x = sorted(nulls)
    limits = [limit if math.isfinite(limit := limit_of(nulls[start].effects)) else math.nan for start in x]
    kind: Literal["line", "points"] = "line" if len(x) > 1 else "points"  # a band needs two
    means = [float(np.mean(nulls[start].effects)) for start in x]
    return [
        Series(
            [float(start) for start in x],
            means if kind == "points" else [0.0] * len(x),
            "null (reorder)",
            INK,
            kind,
            [-limit for limit in limits],
            limits,
            is_faint=True,
        )
    ]
