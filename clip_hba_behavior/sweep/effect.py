"""The difference of each perturbed run from its baseline, beside the same difference of unperturbed runs."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.sweep import nulls

MEASURES = ("test_loss", "behavioral_rsa_rho")
NullKind = Literal["reorder", "reseed"]
# The first perturbed epoch; the last one, where there are more; the run's last; any other from the first on.
When = Literal["perturbed", "window_end", "last", "later"]
_NULLS: tuple[NullKind, ...] = ("reorder", "reseed")


@dataclass(frozen=True)
class Null:
    """Forks of the same baseline state without the perturbation, and where an effect stands among theirs.

    Attributes:
        kind: `reorder`, the matched null: same start and length, another order inside the window alone; or
            `reseed`, the wider one: other random streams in every epoch from the start on.
        seeds: of its K runs.
        effects: `[K]`, their differences from the baseline at the effect's epoch; of an effect at a run's last
            epoch each at its own last, since early stopping ends runs where they differ most.
        p_value: (1 + number of runs whose difference is at least as large in absolute value) / (K + 1).
    """

    kind: NullKind
    seeds: tuple[int, ...]
    effects: tuple[float, ...]
    p_value: float

    def mean(self) -> float:
        """Return the mean of the differences."""
        return statistics.fmean(self.effects)

    def spread(self) -> float | None:
        """Return the standard deviation of the differences (divided by K - 1); None of a single run."""
        return nulls.standard_deviation(self.effects) if len(self.effects) > 1 else None


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


def compare_with_nulls(rows: Sequence[Mapping[str, Any]], later_epochs: bool = False) -> tuple[Effect, ...]:
    """Compare every perturbed run with its baseline, and with the nulls of the same state; see `effects_of`."""
    runs = _by_run(rows)
    forks: dict[_Start, dict[int, _ByEpoch]] = defaultdict(dict)  # of each null its runs by seed
    for run in runs:
        first = next(iter(run.values()))
        if first["kind"] in _NULLS:
            forks[_start_of(first["kind"], first)][first["seed"]] = run
    return tuple(
        effect
        for run in runs
        if next(iter(run.values()))["kind"] not in ("none", *_NULLS)
        for effect in _effects_of_run(list(run.values()), forks, later_epochs)
    )


_ByEpoch = dict[int, Mapping[str, Any]]
_Start = tuple[str, str, int, int]  # null, baseline, start epoch, length


def _by_run(rows: Sequence[Mapping[str, Any]]) -> list[_ByEpoch]:
    """Return each run's rows, once where two tables have the same."""
    runs: dict[tuple[str, str], _ByEpoch] = defaultdict(dict)
    for row in rows:
        there = runs[row["parent"], row["run"]].setdefault(row["epoch"], row)
        for name in (f"{measure}_minus_baseline" for measure in MEASURES):
            if repr(there[name]) != repr(row[name]):  # nan is nan
                raise BadInputError(
                    f"two tables have other results of {row['run']}, a fork of {row['parent']}, "
                    f"epoch {row['epoch']}\n"
                    f"  found:    {name} {there[name]!r} and {row[name]!r}\n"
                    "  expected: sweeps of one baseline with the same settings; give one of the two"
                )
    return list(runs.values())


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
                value=row[f"{measure}_minus_baseline"],
                matched=_null_of("reorder", row, measure, when, forks),
                wider=_null_of("reseed", row, measure, when, forks),
            )


def _null_of(
    kind: NullKind,
    row: Mapping[str, Any],
    measure: str,
    when: When,
    forks: Mapping[_Start, Mapping[int, _ByEpoch]],
) -> Null | None:
    column, window_end = f"{measure}_minus_baseline", row["perturb_epoch"] + row["perturb_length"] - 1
    there = {
        seed: float(run[epoch][column])
        for seed, run in sorted(forks.get(_start_of(kind, row), {}).items())
        if (epoch := max(run) if when == "last" else row["epoch"]) in run
        # a run that ended with its window has no last epoch of its own, as an effect has none then
        and (when != "last" or epoch > window_end)
    }
    values = tuple(there.values())
    return Null(kind, tuple(there), values, nulls.p_value(row[column], values)) if there else None


def _when(epoch: int, start: int, length: int, last: int) -> When:
    if epoch == start:
        return "perturbed"
    if epoch == start + length - 1:
        return "window_end"
    return "last" if epoch == last else "later"
