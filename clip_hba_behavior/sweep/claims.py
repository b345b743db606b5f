"""What is claimed of many effects together: of all start epochs, and over several baselines."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clip_hba_behavior.sweep import nulls
from clip_hba_behavior.sweep.baselines import Baselines
from clip_hba_behavior.sweep.effect import Effect, Null, When


@dataclass(frozen=True)
class Family:
    """One claim for all start epochs of a perturbation: whether it did anything at any of them.

    A run's statistic at a start epoch is its absolute difference from the baseline, divided by the root mean
    square of the K others' there; a seed's maximum is the largest over the start epochs.

    Attributes:
        baseline: its run directory.
        kind: of the perturbation.
        length: perturbed epochs.
        seed: of the perturbation's draws.
        measure: one of `MEASURES`.
        when: which epoch of each run.
        start_epochs: `[m]`, those with the perturbed run and the matched null.
        null_seeds: `[K]`, those that the matched null has at every start epoch.
        statistics: `[m]`, of the perturbed runs.
        null_maxima: `[K]`, of the null's seeds.
        epoch_p_values: `[m]`, (1 + number of null maxima at least as large as the start epoch's statistic) /
            (K + 1): which start epochs are claimed, with one error for all of them.
        p_value: the least of them, that of the perturbed runs' own maximum.
        adjusted_p_values: `[m]`, by Benjamini and Hochberg; None where K is too small for them to find anything.
        why_not_adjusted: the sentence that says so, and the `null_seeds` that would do.
    """

    baseline: str
    kind: str
    length: int
    seed: int
    measure: str
    when: When
    start_epochs: tuple[int, ...]
    null_seeds: tuple[int, ...]
    statistics: tuple[float, ...]
    null_maxima: tuple[float, ...]
    epoch_p_values: tuple[float, ...]
    p_value: float
    adjusted_p_values: tuple[float, ...] | None
    why_not_adjusted: str | None


@dataclass(frozen=True)
class OverBaselines:
    """An effect over several baselines, each of which counts once: the random unit is the baseline.

    Attributes:
        kind: of the perturbation.
        length: perturbed epochs.
        start_epoch: the first perturbed one.
        measure: one of `MEASURES`.
        when: which epoch.
        baselines: `[B]`, run directories.
        values: `[B]`, each baseline's effect, the mean over its seeds.
        mean: over the baselines.
        low: of the 95 % t interval of the mean; it takes the values for normal.
        high: of the same.
        p_value: of the Wilcoxon signed-rank test; None below 6 baselines, where it cannot fall below 0.05.
    """

    kind: str
    length: int
    start_epoch: int
    measure: str
    when: When
    baselines: tuple[str, ...]
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    p_value: float | None


def claim_of(each: Effect | Family) -> tuple[str, str, int, int, str, str]:
    """Say which claim an effect belongs to."""
    return each.baseline, each.kind, each.length, each.seed, each.measure, each.when


def families_of(effects: Sequence[Effect]) -> Iterator[Family]:
    """Make one claim of all start epochs, for each baseline, kind, length, seed, measure and `when`."""
    groups: dict[tuple[str, str, int, int, str, str], dict[int, tuple[Effect, Null]]] = defaultdict(dict)
    for each in effects:
        if each.matched is not None:
            groups[claim_of(each)][each.start_epoch] = (each, each.matched)
    for members in groups.values():
        values = [effect.value for effect, _ in members.values()]
        by_seed = [dict(zip(null.seeds, null.effects, strict=True)) for _, null in members.values()]
        seeds = tuple(sorted(set.intersection(*(set(each) for each in by_seed))))
        if not seeds:
            continue
        own, maxima = nulls.family_statistics(values, [[null[seed] for null in by_seed] for seed in seeds])
        epoch_p_values = tuple(nulls.p_value(each, maxima.tolist()) for each in own.tolist())
        p_values = [null.p_value for _, null in members.values()]
        num_null = min(len(null.seeds) for _, null in members.values())
        adjusted = nulls.adjusted_p_values(p_values, num_null)
        first = next(iter(members.values()))[0]
        yield Family(
            baseline=first.baseline,
            kind=first.kind,
            length=first.length,
            seed=first.seed,
            measure=first.measure,
            when=first.when,
            start_epochs=tuple(members),
            null_seeds=seeds,
            statistics=tuple(own.tolist()),
            null_maxima=tuple(maxima.tolist()),
            epoch_p_values=epoch_p_values,
            p_value=min(epoch_p_values),
            adjusted_p_values=adjusted,
            why_not_adjusted=None if adjusted is not None else _why_not_adjusted(len(members), num_null),
        )


def _why_not_adjusted(num_epochs: int, num_null: int) -> str:
    return (
        f"no p-value is adjusted for {num_epochs} epoch{'s' if num_epochs > 1 else ''} by Benjamini and "
        f"Hochberg: with {num_null} null runs "
        f"none is below {nulls.least_p_text(num_null)}, and a single one would have to be at most "
        f"{nulls.FALSE_DISCOVERY_RATE / num_epochs:.2g}; null_seeds: {nulls.null_needed(num_epochs)} would do"
    )


def over_baselines(effects: Sequence[Effect], baselines: Baselines) -> Iterator[OverBaselines]:
    """Summarise each effect over the baselines that have it, two or more.

    Directories that hold one baseline count once, and of them each seed; where the runs of the baselines end after
    different epochs, nothing is summarised at the last one.
    """
    groups: dict[tuple[str, int, int, str, When], dict[str, dict[int, float]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for each in effects:
        if each.when == "last" and not baselines.has_one_end():
            continue
        key = (each.kind, each.length, each.start_epoch, each.measure, each.when)
        groups[key][baselines.first_of[each.baseline]].setdefault(each.seed, each.value)
    for (kind, length, start, measure, when), of_baseline in groups.items():
        if len(of_baseline) < 2:
            continue
        values = tuple(statistics.fmean(by_seed.values()) for by_seed in of_baseline.values())
        low, high = nulls.t_interval(values)
        yield OverBaselines(
            kind=kind,
            length=length,
            start_epoch=start,
            measure=measure,
            when=when,
            baselines=tuple(of_baseline),
            values=values,
            mean=statistics.fmean(values),
            low=low,
            high=high,
            p_value=nulls.signed_rank_p_value(values),
        )
