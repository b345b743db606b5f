"""The learning rate as a pure function of the epoch: nothing to save, nothing to restore."""

import math


def learning_rate(
    epoch: int, schedule: str, peak: float, minimum: float, warmup_epochs: int, schedule_epochs: int
) -> float:
    """Return the learning rate of one epoch.

    Args:
        epoch: counted from 1.
        schedule: `constant`; `cosine`, from `peak` in epoch 1 down towards `minimum`, which it reaches
            one epoch after `schedule_epochs`; `warmup_cosine`, rising in equal steps to `peak` in epoch
            `warmup_epochs`, then the same.
        peak: the highest learning rate.
        minimum: kept behind the schedule's end.
        warmup_epochs: length of the rise; only for `warmup_cosine`.
        schedule_epochs: the last epoch of the descent.
    """
    if schedule == "constant":
        return peak
    rise = warmup_epochs if schedule == "warmup_cosine" else 1
    if epoch < rise:
        return peak * epoch / rise
    progress = min(1.0, (epoch - rise) / max(1, schedule_epochs + 1 - rise))
    return minimum + (peak - minimum) * 0.5 * (1.0 + math.cos(math.pi * progress))
