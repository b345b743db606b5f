"""What perturbations did, each beside its null: computed from the rows of a sweep's table alone."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_hba_behavior.sweep import nulls
from clip_hba_behavior.sweep.baselines import Baselines, baselines_of
from clip_hba_behavior.sweep.claims import Family, OverBaselines, claim_of, families_of, over_baselines
from clip_hba_behavior.sweep.effect import Effect, compare_with_nulls


@dataclass(frozen=True)
class Effects:
    """All effects of the rows that were given.

    Attributes:
        effects: in the order of the rows.
        families: one for each baseline, kind, length, seed, measure and `when`, where there is a matched null.
        over_baselines: where the rows are of two baselines or more.
        baselines: which baselines the rows are of.
        notes: sentences that belong beside the numbers, such as why there is no null.
    """

    effects: tuple[Effect, ...]
    families: tuple[Family, ...]
    over_baselines: tuple[OverBaselines, ...]
    baselines: Baselines
    notes: tuple[str, ...]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of `sweep_effects.csv`; none where there is no null."""
        families = {claim_of(each): each for each in self.families}
        for effect in self.effects:
            matched, wider = effect.matched, effect.wider
            if effect.when == "later" or not (matched or wider):
                continue
            family = families.get(claim_of(effect))
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
                "matched_null_mean": matched.mean() if matched else None,
                "matched_null_spread": matched.spread() if matched else None,
                "matched_p_value": matched.p_value if matched else None,
                "wider_null_runs": len(wider.effects) if wider else 0,
                "wider_p_value": wider.p_value if wider else None,
                "family_epochs": len(family.start_epochs) if family and matched else None,
                "family_p_value": family.p_value if family and matched else None,
                "family_epoch_p_value": family.epoch_p_values[place] if family and place is not None else None,
                "adjusted_p_value": adjusted[place] if adjusted and place is not None else None,
            }


def effects_of(rows: Sequence[Mapping[str, Any]], later_epochs: bool = False) -> Effects:
    """Compare every perturbed run with its baseline, and with the null of the same state.

    Args:
        rows: of one sweep's table or of several, as `aggregate` returns them or `read_table` reads them.
        later_epochs: also at every other epoch from the first perturbed one on, as `later`.

    Raises:
        BadInputError: two tables have other results of the same run.
    """
    effects = compare_with_nulls(rows, later_epochs)
    at_once = [each for each in effects if each.when != "later"]
    families = tuple(families_of(at_once))
    baselines = baselines_of(rows)
    over = tuple(over_baselines(at_once, baselines))
    notes = (*_notes(effects, families), *baselines.notes()) if effects else ()
    return Effects(effects, families, over, baselines, notes)


def _notes(effects: Sequence[Effect], families: Sequence[Family]) -> Iterator[str]:
    if not any(each.matched for each in effects):
        yield (
            "effects have no null to be judged against: add null_seeds: 19 to the sweep's file, and run it again "
            "(reorder with seeds 1 to 19 for each start and length)"
        )
    least = min((len(each.null_seeds) for each in families), default=19)
    if least < 19:
        yield nulls.least_p_note(least)
    claimed = {claim_of(each) for each in families}
    lacking = (each for each in effects if each.when != "later" and each.matched and claim_of(each) not in claimed)
    for kind, length in dict.fromkeys((each.kind, each.length) for each in lacking):
        yield (
            f"no claim for all start epochs of {kind}, length {length}: no seed of the null has a run at each of "
            "them; run what is missing"
        )
    reasons: dict[str, dict[str, None]] = defaultdict(dict)  # why, and of which claims
    for family in families:
        if family.why_not_adjusted is not None:
            reasons[family.why_not_adjusted][f"{family.when} of length {family.length}"] = None
    yield from (f"{why} (claims: {', '.join(claims)})" for why, claims in reasons.items())
