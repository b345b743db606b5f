"""The learning rate as a pure function of the epoch: nothing to save, nothing to restore."""

import math
from decimal import ROUND_HALF_EVEN, Context, Decimal, DivisionByZero, InvalidOperation, localcontext

from clip_hba_behavior.config import Arithmetic

_PI = "3.14159265358979323846264338327950288419716939937510582097494459"


def learning_rate(
    epoch: int,
    schedule: str,
    peak: float,
    minimum: float,
    warmup_epochs: int,
    schedule_epochs: int,
    arithmetic: Arithmetic = "native",
) -> float:
    """Return the learning rate of one epoch.

    Definition: on a rise `peak * epoch / warmup_epochs`; with d epochs done of a descent of n, `minimum + (peak -
    minimum) * 0.5 * (1 + cos(pi * d / n))`, by float64 operations from left to right. d is `epoch - warmup_epochs`
    (without a rise `epoch - 1`), at most n; n is `schedule_epochs + 1 - warmup_epochs` (`schedule_epochs`), at
    least 1.

    Args:
        epoch: counted from 1.
        schedule: `constant`; `cosine`, from `peak` in epoch 1 down towards `minimum`, which it reaches
            one epoch after `schedule_epochs`; `warmup_cosine`, rising in equal steps to `peak` in epoch
            `warmup_epochs`, then the same.
        peak: the highest learning rate.
        minimum: kept behind the schedule's end.
        warmup_epochs: length of the rise; only for `warmup_cosine`.
        schedule_epochs: the last epoch of the descent.
        arithmetic: whether the cosine is the C library's, whose last bit depends on it, or `cosine_of`'s. All else
            is single IEEE operations in both.
    """
    if schedule == "constant":
        return peak
    rise = warmup_epochs if schedule == "warmup_cosine" else 1
    if epoch < rise:
        return peak * epoch / rise
    descended, descent = epoch - rise, max(1, schedule_epochs + 1 - rise)
    if arithmetic == "portable":
        cosine = cosine_of(min(descended, descent), descent)
    else:
        cosine = math.cos(math.pi * min(1.0, descended / descent))
    return minimum + (peak - minimum) * 0.5 * (1.0 + cosine)


def cosine_of(numerator: int, denominator: int) -> float:
    """Return the float64 nearest to the real number cos(pi * numerator / denominator), on every machine.

    Args:
        numerator: 0 to `denominator`.
        denominator: positive.
    """
    if 2 * numerator > denominator:
        return -cosine_of(denominator - numerator, denominator)
    digits = Context(
        prec=50, rounding=ROUND_HALF_EVEN, Emin=-999, Emax=999, clamp=0, traps=[InvalidOperation, DivisionByZero]
    )
    with localcontext(digits):
        # The sine of what is left to a right angle, which is exactly 0 there, by its series.
        angle = Decimal(_PI) * (denominator - 2 * numerator) / (2 * denominator)
        term, sine, before, k = angle, Decimal(0), Decimal(-1), 1
        while sine != before:
            before = sine
            sine += term
            term *= -angle * angle / ((k + 1) * (k + 2))
            k += 2
        return float(sine)
