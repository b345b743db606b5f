"""An effect beside its null: p-values by counting, one claim for many epochs, and effects over baselines."""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.rsa.dimensions import benjamini_hochberg

FALSE_DISCOVERY_RATE = 0.05
LEAST_BASELINES = 6  # with fewer, the signed-rank test's least p is above 0.05: 2 / 2^5


def p_value(value: float, null: Sequence[float]) -> float:
    """Return (1 + number of null values at least as large in absolute value) / (K + 1).

    Valid where the value is exchangeable with the null's if the effect is nothing; never 0. Phipson and Smyth,
    "Permutation p-values should never be zero", Stat. Appl. Genet. Mol. Biol. 9 (2010).

    What is undefined (nan) shows nothing: as a value it has the p 1, in the null it counts as at least as large.
    """
    return (1 + sum(not abs(each) < abs(value) for each in null)) / (len(null) + 1)


def least_p_value(num_null: int) -> float:
    """Return the least p that K null runs can give."""
    return 1 / (num_null + 1)


def least_p_text(num_null: int) -> str:
    """Return the least p in the four digits that tables show, so that none of theirs is below it."""
    return f"{least_p_value(num_null):.4g}"


def least_p_note(num_null: int) -> str:
    """Say what the least p of K null runs is, and how many 0.05 takes."""
    return (
        f"with {num_null} null runs no p-value is below {least_p_text(num_null)}; null_seeds: 19 is the "
        "least for 0.05"
    )


def family_statistics(
    values: Sequence[float], null: Sequence[Sequence[float]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each epoch's statistic, and the largest of each seed of the null.

    A run's statistic at an epoch is its absolute value there, divided by the root mean square of the other K
    runs', the perturbed one among them. So all K + 1 runs are treated alike. Division by the null's spread alone
    would make the perturbed run's statistic too large, and the claim wrong too often.

    The largest over the epochs gives one claim for all of them (Westfall and Young, "Resampling-Based Multiple
    Testing", Wiley 1993).

    Args:
        values: `[m]`, of the perturbed runs; nan counts as 0.
        null: `[K, m]`, of the null's seeds at the same epochs; nan counts as infinite.

    Returns:
        `[m]` of the perturbed runs, and `[K]`, the null's maxima over the epochs.
    """
    observed = np.nan_to_num(np.asarray([values], dtype=np.float64), nan=0.0, posinf=math.inf, neginf=-math.inf)
    chance = np.nan_to_num(np.asarray(null, dtype=np.float64), nan=math.inf, posinf=math.inf, neginf=-math.inf)
    everyone = np.vstack([observed, chance])
    squares = everyone**2
    # sorted, so that equal runs have equal sums and tie
    others = np.stack(
        [np.sort(np.delete(squares, row, axis=0), axis=0).mean(axis=0) for row in range(len(squares))]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.nan_to_num(np.abs(everyone) / np.sqrt(others), nan=0.0, posinf=math.inf)  # 0 / 0: nothing
    return found[0], found[1:].max(axis=1)


def adjusted_p_values(p_values: Sequence[float], num_null: int) -> tuple[float, ...] | None:
    """Adjust the p-values of m epochs by Benjamini and Hochberg; None where K is too small to find anything.

    The least p is 1 / (K + 1), and a single one must be at most q / m: so (K + 1) >= m / q is needed. Benjamini
    and Hochberg, "Controlling the false discovery rate", J. R. Stat. Soc. B 57 (1995).

    Args:
        p_values: `[m]`.
        num_null: K.
    """
    if num_null < null_needed(len(p_values)):
        return None
    return tuple(benjamini_hochberg(np.array(p_values, dtype=np.float64)).tolist())


def null_needed(num_epochs: int) -> int:
    """Return the least K with which `adjusted_p_values` can find anything in so many epochs."""
    return math.ceil(round(num_epochs / FALSE_DISCOVERY_RATE, 6)) - 1


def standard_deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of two values or more, divided by their number less 1; nan if one is none."""
    # statistics.stdev raises AttributeError for nan and for an infinite one
    return statistics.stdev(values) if all(map(math.isfinite, values)) else math.nan


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean by Student's t: from baselines whose effects are taken for normal.

    Args:
        values: `[B]`, one of each baseline; B of 2 or more.
    """
    from scipy.stats import t

    mean, error = statistics.fmean(values), standard_deviation(values) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean - half, mean + half


def signed_rank_p_value(values: Sequence[float]) -> float | None:
    """Return the p of the Wilcoxon signed-rank test, two-sided; None below `LEAST_BASELINES` or if all are 0.

    It takes the effects for symmetric about their median, not for normal.
    """
    if len(values) < LEAST_BASELINES or not any(values):
        return None
    from scipy.stats import wilcoxon

    return float(wilcoxon(values).pvalue)
