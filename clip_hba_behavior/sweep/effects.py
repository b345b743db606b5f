"""What perturbations did, each beside its null: computed from the rows of a sweep's table alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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


def effects_of(rows: Sequence[Mapping[str, Any]], later_epochs: bool = False) -> Effects:
    """Compare every perturbed run with its baseline, and with the null of the same state.

    Args:
        rows: of one sweep's table or of several, as `aggregate` returns them or `read_table` reads them.
        later_epochs: also at every other epoch from the first perturbed one on, as `later`.
    """
    raise NotImplementedError
