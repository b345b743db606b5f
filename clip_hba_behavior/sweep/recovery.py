"""How long a perturbed run takes to come back to its baseline, and the median over runs of which some do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Recovery:
    """When a run's test loss came back into the band of its baseline's, to stay.

    Attributes:
        after_window: epochs from the last perturbed one to the first of `band_epochs` consecutive ones within the
            band; None if there are none.
        after_start: epochs from the first perturbed one to the same epoch.
        followed: the largest `after_window` that could have been seen: the run ends `band_epochs` - 1 epochs
            later. A run that did not recover is censored there. 0 where nothing could have been seen.
        left_band: whether the loss was outside the band in any perturbed epoch; else there was nothing to recover
            from, and `after_window` is 1 unless it left the band later.
    """

    after_window: int | None
    after_start: int | None
    followed: int
    left_band: bool

    @property
    def censored(self) -> bool:
        """Whether the run ended before it recovered."""
        return self.after_window is None


def recovery_of(
    losses: Mapping[int, float],
    baseline: Mapping[int, float],
    first: int,
    length: int,
    band: float,
    band_epochs: int,
) -> Recovery:
    """Find when a perturbed run recovered.

    Args:
        losses: the run's test loss of each epoch, without a gap, from `first` on.
        baseline: the baseline's, of the same epochs at least.
        first: the first perturbed epoch.
        length: how many epochs are perturbed, at least 1.
        band: within it: the losses differ by at most this share of the baseline's.
        band_epochs: how many consecutive epochs must be within it, at least 1.
    """
    inside = {epoch: abs(loss - baseline[epoch]) <= band * abs(baseline[epoch]) for epoch, loss in losses.items()}
    window_end = first + length - 1
    last_entry = max(losses) - band_epochs + 1
    entry = next(
        (
            epoch
            for epoch in range(window_end + 1, last_entry + 1)
            if all(inside[each] for each in range(epoch, epoch + band_epochs))
        ),
        None,
    )
    return Recovery(
        after_window=None if entry is None else entry - window_end,
        after_start=None if entry is None else entry - first,
        followed=max(0, last_entry - window_end),
        left_band=any(not inside[epoch] for epoch in range(first, window_end + 1) if epoch in inside),
    )


def kaplan_meier_median(times: Sequence[float], censored: Sequence[bool]) -> float | None:
    """Return the median time to recovery by Kaplan and Meier: the first time by which at least half recovered.

    A run that ended before it recovered counts up to its end, and for no longer: leaving it out, or taking its end
    for its recovery, would make the median too small. None where fewer than half recover while they are followed.

    Kaplan and Meier, "Nonparametric estimation from incomplete observations", JASA 53 (1958); the estimate is
    SciPy's. It takes the end of a run to tell nothing of when it would have recovered, as where all runs end with
    their baseline.

    Args:
        times: `[runs]`, to recovery, or of a censored run to the last epoch in which it could have been seen.
        censored: `[runs]`, whether the run had not recovered by then.

    Raises:
        ValueError: there is no run, or not one of `censored` for each time.
    """
    if len(times) != len(censored) or not times:
        raise ValueError(f"found {len(times)} times and {len(censored)} of censored; expected as many, and some")
    if all(censored):
        return None
    from scipy.stats import CensoredData, ecdf

    recovered = [time for time, without_end in zip(times, censored, strict=True) if not without_end]
    others = [time for time, without_end in zip(times, censored, strict=True) if without_end]
    recovered_share = ecdf(CensoredData(uncensored=recovered, right=others)).cdf
    # half of the runs, whatever the last bit of a product of fractions
    reached = recovered_share.probabilities >= 0.5 - 1e-9
    return float(recovered_share.quantiles[reached][0]) if reached.any() else None
