"""Where an effect is outside its null, in figures."""

import math
from collections.abc import Sequence

from clip_hba_behavior.sweep.effect import Effect, Null
from clip_hba_behavior.sweep.nulls import p_value

LEVEL = 0.05
LEAST_NULL = 19  # with fewer null runs, no p-value can be 0.05
RULE = (
    "a cell outside the null: p of at most 0.05, where p is (1 + number of null runs at least as large in "
    "absolute value) / (K + 1); not corrected for the number of cells, of which one in twenty is outside where "
    "nothing is"
)


def limit_of(null: Sequence[float]) -> float:
    """Return the largest absolute difference that is within the null: one above it has p of at most `LEVEL`.

    With fewer than `LEAST_NULL` null runs none has; it is then the largest of theirs. An undefined one (nan)
    counts as larger than any.

    Args:
        null: `[K]`, K of 1 or more.
    """
    sizes = [math.inf if math.isnan(each) else abs(each) for each in null]
    return max(each for each in sizes if p_value(each, sizes) > LEVEL)


def is_outside(effects: Sequence[Effect]) -> bool:
    """Return whether the effects of all seeds are outside their nulls; False where one has no null."""
    return bool(effects) and all(each.matched is not None and each.matched.p_value <= LEVEL for each in effects)


def null_size(nulls: Sequence[Null]) -> str:
    """Say K: how many runs the nulls have."""
    sizes = sorted({len(null.effects) for null in nulls})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
