"""What perturbations did, each beside its null: computed from the rows of a sweep's table alone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from clip_hba_behavior.sweep import nulls

MEASURES = ("test_loss", "behavioral_rsa_rho")
NullKind = Literal["reorder", "reseed"]
# The first perturbed epoch; the last one, where there are more; the run's last; any other from the first on.
When = Literal["perturbed", "window_end", "last", "later"]


@dataclass(frozen=True)
class Null:
    """Forks of the same baseline state without the perturbation, and where an effect stands among theirs.

    Attributes:
        kind: `reorder`, the matched null: same start and length, another order inside the window alone; or
            `reseed`, the wider one: other random streams in every epoch from the start on.
        seeds: of its K runs.
        effects: `[K]`, their differences from the baseline at the effect's epoch.
        p_value: (1 + number of runs whose difference is at least as large in absolute value) / (K + 1).
    """

    kind: NullKind
    seeds: tuple[int, ...]
    effects: tuple[float, ...]
    p_value: float

    def spread(self) -> float | None:
        """Return the standard deviation of the differences (divided by K - 1); None of a single run."""
        return float(np.std(self.effects, ddof=1)) if len(self.effects) > 1 else None


@dataclass(frozen=True)
class Effect:
    """The difference of one perturbed run from its baseline at one epoch.

    Attributes:
        baseline: its run directory.
        run: the perturbed run's name.
        kind: of the perturbation.
        length: perturbed epochs.
        start_epoch: the first perturbed one.
        seed: of the perturbation's draws.
        measure: one of `MEASURES`.
        when: which epoch it is.
        epoch: at whose end both were evaluated.
        value: the run's measure minus the baseline's.
        matched: the `reorder` runs of the same start and length; None where there are none.
        wider: the `reseed` runs of the same start; None where there are none.
    """

    baseline: str
    run: str
    kind: str
    length: int
    start_epoch: int
    seed: int
    measure: str
    when: When
    epoch: int
    value: float
    matched: Null | None
    wider: Null | None


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
        p_value: (1 + number of null maxima at least as large as the perturbed runs') / (K + 1).
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


@dataclass(frozen=True)
class Effects:
    """All effects of the rows that were given.

    Attributes:
        effects: in the order of the rows.
        families: one for each baseline, kind, length, seed, measure and `when`, where there is a matched null.
        over_baselines: where the rows are of two baselines or more.
        notes: sentences that belong beside the numbers, such as why there is no null.
    """

    effects: tuple[Effect, ...]
    families: tuple[Family, ...]
    over_baselines: tuple[OverBaselines, ...]
    notes: tuple[str, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of `sweep_effects.csv`; none where there is no null."""
        families = {_family_key(each): each for each in self.families}
        for effect in self.effects:
            matched, wider = effect.matched, effect.wider
            if effect.when == "later" or not (matched or wider):
                continue
            family = families.get(_family_key(effect))
            place = family.start_epochs.index(effect.start_epoch) if family and matched else None
            adjusted = family.adjusted_p_values if family else None
            yield {
                "baseline": effect.baseline,
                "run": effect.run,
                "kind": effect.kind,
                "length": effect.length,
                "start_epoch": effect.start_epoch,
                "seed": effect.seed,
                "measure": effect.measure,
                "when": effect.when,
                "epoch": effect.epoch,
                "effect": effect.value,
                "matched_null_runs": len(matched.effects) if matched else 0,
                "matched_null_mean": float(np.mean(matched.effects)) if matched else None,
                "matched_null_spread": matched.spread() if matched else None,
                "matched_p_value": matched.p_value if matched else None,
                "wider_null_runs": len(wider.effects) if wider else 0,
                "wider_p_value": wider.p_value if wider else None,
                "family_epochs": len(family.start_epochs) if family and matched else None,
                "family_p_value": family.p_value if family and matched else None,
                "adjusted_p_value": adjusted[place] if adjusted and place is not None else None,
            }


def effects_of(rows: Sequence[Mapping[str, Any]], later_epochs: bool = False) -> Effects:
    """Compare every perturbed run with its baseline, and with the null of the same state.

    Args:
        rows: of one sweep's table or of several, as `aggregate` returns them or `read_table` reads them.
        later_epochs: also at every other epoch from the first perturbed one on, as `later`.
    """
    runs: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        runs[row["parent"], row["run"]].append(row)
    forks: dict[_Start, dict[int, _ByEpoch]] = defaultdict(dict)  # of each null its runs by seed
    for found in runs.values():
        first = found[0]
        if first["kind"] in _NULLS:
            forks[_start_of(first["kind"], first)][first["seed"]] = {row["epoch"]: row for row in found}
    effects = tuple(
        effect
        for found in runs.values()
        if found[0]["kind"] not in ("none", *_NULLS)
        for effect in _effects_of_run(found, forks, later_epochs)
    )
    families = tuple(_families(effects))
    return Effects(effects, families, tuple(_over_baselines(effects)), tuple(_notes(effects, families)))


_NULLS: tuple[NullKind, ...] = ("reorder", "reseed")
_ByEpoch = dict[int, Mapping[str, Any]]
_Start = tuple[str, str, int, int]  # null, baseline, start epoch, length


def _start_of(null: NullKind, row: Mapping[str, Any]) -> _Start:
    """Say which null runs a row's are compared with; those of other streams have no length."""
    return null, row["parent"], row["perturb_epoch"], row["perturb_length"] if null == "reorder" else 0


def _effects_of_run(
    rows: Sequence[Mapping[str, Any]], forks: Mapping[_Start, Mapping[int, _ByEpoch]], later_epochs: bool
) -> Iterator[Effect]:
    last = max(row["epoch"] for row in rows)
    for row in rows:
        when = _when(row["epoch"], row["perturb_epoch"], row["perturb_length"], last)
        if when == "later" and not later_epochs:
            continue
        for measure in MEASURES:
            value = row[f"{measure}_minus_baseline"]

            def null_of(kind: NullKind, row: Mapping[str, Any] = row, measure: str = measure) -> Null | None:
                found = forks.get(_start_of(kind, row), {})
                there = {seed: run[row["epoch"]] for seed, run in sorted(found.items()) if row["epoch"] in run}
                values = tuple(float(each[f"{measure}_minus_baseline"]) for each in there.values())
                p_value = nulls.p_value(row[f"{measure}_minus_baseline"], values)
                return Null(kind, tuple(there), values, p_value) if there else None

            yield Effect(
                baseline=row["parent"],
                run=row["run"],
                kind=row["kind"],
                length=row["perturb_length"],
                start_epoch=row["perturb_epoch"],
                seed=row["seed"],
                measure=measure,
                when=when,
                epoch=row["epoch"],
                value=value,
                matched=null_of("reorder"),
                wider=null_of("reseed"),
            )


def _when(epoch: int, start: int, length: int, last: int) -> When:
    if epoch == start:
        return "perturbed"
    if epoch == start + length - 1:
        return "window_end"
    return "last" if epoch == last else "later"


def _family_key(each: Effect | Family) -> tuple[str, str, int, int, str, str]:
    return each.baseline, each.kind, each.length, each.seed, each.measure, each.when


def _families(effects: Sequence[Effect]) -> Iterator[Family]:
    groups: dict[tuple[str, str, int, int, str, str], dict[int, tuple[Effect, Null]]] = defaultdict(dict)
    for each in effects:
        if each.matched is not None and each.when != "later":
            groups[_family_key(each)][each.start_epoch] = (each, each.matched)
    for members in groups.values():
        values = [effect.value for effect, _ in members.values()]
        by_seed = [dict(zip(null.seeds, null.effects, strict=True)) for _, null in members.values()]
        seeds = tuple(sorted(set.intersection(*(set(each) for each in by_seed))))
        if not seeds:
            continue
        statistics, maxima = nulls.family_statistics(values, [[null[seed] for null in by_seed] for seed in seeds])
        p_values = [null.p_value for _, null in members.values()]
        adjusted = nulls.adjusted_p_values(p_values, min(len(null.seeds) for _, null in members.values()))
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
            statistics=tuple(statistics.tolist()),
            null_maxima=tuple(maxima.tolist()),
            p_value=nulls.p_value(float(statistics.max()), maxima.tolist()),
            adjusted_p_values=adjusted,
            why_not_adjusted=None if adjusted is not None else _why_not_adjusted(len(members), len(seeds)),
        )


def _why_not_adjusted(num_epochs: int, num_null: int) -> str:
    return (
        f"no p-value is adjusted for {num_epochs} epochs by Benjamini and Hochberg: with {num_null} null runs none is "
        f"below {1 / (num_null + 1):.2g}, and a single one would have to be at most "
        f"{nulls.FALSE_DISCOVERY_RATE / num_epochs:.2g}; null_seeds: {nulls.null_needed(num_epochs)} would do"
    )


def _over_baselines(effects: Sequence[Effect]) -> Iterator[OverBaselines]:
    groups: dict[tuple[str, int, int, str, When], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in effects:
        if each.when != "later":
            key = (each.kind, each.length, each.start_epoch, each.measure, each.when)
            groups[key][each.baseline].append(each.value)
    for (kind, length, start, measure, when), of_baseline in groups.items():
        if len(of_baseline) < 2:
            continue
        values = tuple(float(np.mean(each)) for each in of_baseline.values())
        low, high = nulls.t_interval(values)
        yield OverBaselines(
            kind=kind,
            length=length,
            start_epoch=start,
            measure=measure,
            when=when,
            baselines=tuple(of_baseline),
            values=values,
            mean=float(np.mean(values)),
            low=low,
            high=high,
            p_value=nulls.signed_rank_p_value(values),
        )


def _notes(effects: Sequence[Effect], families: Sequence[Family]) -> Iterator[str]:
    if not effects:
        return
    if not any(each.matched for each in effects):
        yield (
            "effects have no null to be judged against: add null_seeds: 19 to the sweep's file, and run it again "
            "(reorder with seeds 1 to 19 for each start and length)"
        )
    least = min((len(each.null_seeds) for each in families), default=19)
    if least < 19:
        yield f"with {least} null runs no p-value is below {1 / (least + 1):.2g}; null_seeds: 19 is the least for 0.05"
    yield from dict.fromkeys(each.why_not_adjusted for each in families if each.why_not_adjusted is not None)
    baselines = len({each.baseline for each in effects})
    if 1 < baselines < nulls.LEAST_BASELINES:
        yield (
            f"over {baselines} baselines there is a t interval, which takes their effects for normal, and no "
            f"signed-rank test, which cannot be below 0.05 with fewer than {nulls.LEAST_BASELINES}"
        )
