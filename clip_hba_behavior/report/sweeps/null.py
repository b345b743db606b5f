"""Where an effect is outside its null, in figures."""

import math
from collections.abc import Sequence

from clip_hba_behavior.report.sweeps.record import SweepRecord
from clip_hba_behavior.sweep.effect import Effect, Null
from clip_hba_behavior.sweep.nulls import least_p_text, p_value

LEVEL = 0.05
LEAST_NULL = 19  # with fewer null runs, no p-value can be 0.05


def limit_of(null: Sequence[float]) -> float:
    """Return the largest absolute difference that is within the null: one above it has p of at most `LEVEL`.

    With fewer than `LEAST_NULL` null runs none has; it is then the largest of theirs. An undefined one (nan)
    counts as larger than any.

    Args:
        null: `[K]`, K of 1 or more.
    """
    sizes = [math.inf if math.isnan(each) else abs(each) for each in null]
    return max(each for each in sizes if p_value(each, sizes) > LEVEL)


def is_outside(effects: Sequence[Effect]) -> bool | None:
    """Return whether the effects of all seeds are outside their nulls; None where a null lacks or is too small."""
    nulls = [
        each.matched for each in effects if each.matched is not None and len(each.matched.effects) >= LEAST_NULL
    ]
    if not effects or len(nulls) < len(effects):
        return None
    return all(null.p_value <= LEVEL for null in nulls)


def marks_text(record: SweepRecord, measure: str) -> str:
    """Say what a cross in a cell means, or why no cell can have one."""
    sizes = {0 if each.matched is None else len(each.matched.effects) for each in record.effects_of(measure)}
    if max(sizes) == 0:
        return "No cell can be marked: there is no null to judge them against; see “Effects and claims” above."
    if max(sizes) < LEAST_NULL:
        return (
            f"No cell can be marked: with {max(sizes)} null runs no p is below "
            f"{least_p_text(max(sizes))}, however large an effect is; {LEAST_NULL} are the least for {LEVEL}."
        )
    several = " in every seed" if len(record.plan.file.seeds) > 1 else ""
    fewer = f" Cells with fewer than {LEAST_NULL} null runs cannot be marked." if min(sizes) < LEAST_NULL else ""
    return (
        f"A cross marks a cell outside the null: p of at most {LEVEL}{several}, where p is (1 + number of null "
        "runs at least as large in absolute value) / (K + 1). Not corrected for the number of cells: where "
        f"nothing is, up to one in twenty has a cross.{fewer}"
    )


def null_size(nulls: Sequence[Null]) -> str:
    """Say K: how many runs the nulls have."""
    sizes = sorted({len(null.effects) for null in nulls})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
