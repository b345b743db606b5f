"""What a study found, as text: of each kind, where nothing is, and of a known weak effect."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from scipy.stats import norm

from clip_hba_behavior.sweep.effect import MEASURES, Effect
from clip_hba_behavior.sweep.effects import Effects, effects_of

Rows = Sequence[dict[str, Any]]
LEVEL = 0.05


def print_kinds(rows: Rows) -> None:
    """Print of each kind, length, measure and time what is claimed, and of how many cells."""
    found = effects_of(rows)
    print("\nWhat the kinds do. Cells: start epochs of all baselines. In spreads: of the matched null's runs.")
    _print_effects(found)
    for note in found.notes:
        print(f"note: {note}")


def _print_effects(found: Effects, expected: bool = False) -> None:
    claims = _grouped(found.families)
    for key, effects in _grouped(found.effects).items():
        p_values = [each.p_value for each in claims.get(key, [])]
        nulls = [each.matched for each in effects if each.matched is not None]
        sizes = [size for each in effects if (size := in_spreads(each)) is not None]
        kind, length, measure, when = key
        line = (
            f"{kind}, length {length}, {measure}, {when}: mean effect "
            f"{statistics.fmean(each.value for each in effects):+.4f}"
        )
        if sizes:
            line += f", {min(sizes):.1f} to {max(sizes):.1f} spreads (median {statistics.median(sizes):.1f})"
        line += f"; p at most {LEVEL} in {sum(null.p_value <= LEVEL for null in nulls)} of {len(nulls)} cells"
        if expected:
            line += f", {sum(map(probability_outside, effects)):.1f} expected from their sizes"
        print(f"{line}; claims' p {', '.join(f'{each:.2g}' for each in p_values) or 'none'}")


def _grouped(found: Iterable[Any]) -> dict[tuple[str, int, str, str], list[Any]]:
    groups: dict[tuple[str, int, str, str], list[Any]] = defaultdict(list)
    for each in found:
        groups[each.kind, each.length, each.measure, each.when].append(each)
    return groups


def in_spreads(effect: Effect) -> float | None:
    """Return an effect's distance from the mean of its null, in standard deviations of the null."""
    null = effect.matched
    spread = null.spread() if null is not None else None
    return abs(effect.value - null.mean()) / spread if null is not None and spread else None


def probability_outside(effect: Effect) -> float:
    """Return how probable it is that K normal null runs, of the null's mean and spread, are all smaller."""
    null = effect.matched
    spread = null.spread() if null is not None else None
    if null is None or not spread or 1 / (len(null.effects) + 1) > LEVEL:
        return 0.0
    size = abs(effect.value)
    smaller = norm.cdf(size, null.mean(), spread) - norm.cdf(-size, null.mean(), spread)
    return float(smaller ** len(null.effects))


def print_nothing(rows: Rows) -> None:
    """Print what is found where nothing is: of controls, and of null runs that are taken for a perturbation."""
    controls = [row for row in rows if row["kind"] == "none"]
    equal = sum(row["equals_baseline"] for row in controls)
    print(f"\nWhere nothing is. Controls: {equal} of {len(controls)} epochs equal to the last bit.")
    null = [row for row in rows if row["kind"] == "reorder"]
    taken = [
        effects_of([row | {"kind": "taken"} if row["seed"] == seed else row for row in null])
        for seed in sorted({row["seed"] for row in null})
    ]
    _print_shares(
        "each reorder seed beside the others",
        [each.p_value for found in taken for each in found.families],
        [each.matched.p_value for found in taken for each in found.effects if each.matched is not None],
    )
    # a reseed's first epoch is one more order of that epoch
    shortest = min((row["perturb_length"] for row in null), default=1)
    null = [row | {"perturb_length": 1} for row in null if row["perturb_length"] == shortest]
    reseeds = [row for row in rows if row["kind"] == "reseed" and row["epoch"] == row["perturb_epoch"]]
    taken = [
        effects_of(null + [row | {"kind": "taken", "perturb_length": 1} for row in reseeds if row["seed"] == seed])
        for seed in sorted({row["seed"] for row in reseeds})
    ]
    for measure in MEASURES:
        _print_shares(
            f"each reseed beside reorder, perturbed epoch, {measure}",
            [each.p_value for found in taken for each in found.families if each.measure == measure],
            [
                each.matched.p_value
                for found in taken
                for each in found.effects
                if each.matched is not None and each.measure == measure
            ],
        )


def _print_shares(what: str, claims: Sequence[float], single: Sequence[float]) -> None:
    for name, p_values in (("claims", claims), ("effects", single)):
        if p_values:
            shares = ", ".join(
                f"{sum(p <= level + 1e-9 for p in p_values) / len(p_values):.1%} at most {level}"
                for level in (0.053, 0.1, 0.25, 0.5, 0.75)  # 1 / 19 is the least of 18 others
            )
            print(f"{what}: {len(p_values)} {name}, p {shares}; mean {statistics.fmean(p_values):.3f}")


def print_changes(rows: Rows, changed: Rows) -> None:
    """Print how often a learning rate that is larger by some percent is found, and how often it should be."""
    print("\nA known weak effect: a larger learning rate in one epoch.")
    null = [row for row in rows if row["kind"] == "reorder" and row["perturb_length"] == 1]
    _print_effects(effects_of([*null, *changed]), expected=True)
