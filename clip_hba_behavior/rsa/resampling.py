"""Test and interval of the rank correlation of RDMs, with the images as the random units.

The n (n - 1) / 2 pairs of n images are not independent: every image is in n - 1 of them. So the test permutes the
images (Mantel 1967), and the interval resamples them (Efron 1979; for RDMs Schütt et al. 2023).

Draws are pure functions of seed and number of images, so two models of the same images get the same ones. Ranks
are doubled and centred, hence integers, and so their sums of products are exact: a permutation that ties with what
was observed is counted as one, on every machine.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.reproducibility.state.philox import stream_of
from clip_hba_behavior.rsa.rank_correlation import NAN, pairs_of, rank_correlation, ranks_of

PERMUTATIONS = 9_999
RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 512  # rows of draws, to bound memory


class MantelTest(NamedTuple):
    """Mantel's test of a rank correlation.

    A p is (1 + number of permutations that reach the observed correlation) / (1 + number of permutations).

    Attributes:
        rho: what was observed.
        p_greater: one-sided; a permutation counts if its correlation is at least rho.
        p_two_sided: a permutation counts if its correlation is at least rho in size.
        null_sd: the standard deviation of the permutations' correlations.
        permutations: their number.
    """

    rho: float
    p_greater: float
    p_two_sided: float
    null_sd: float
    permutations: int


def mantel(
    model_rdm: NDArray[np.floating],
    human_rdm: NDArray[np.floating],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> MantelTest:
    """Test whether two RDMs of the same images agree, by permuting one's images.

    Source: Mantel (1967), Cancer Research 27, 209-220, with Spearman's correlation; p as in Phipson and Smyth
    (2010), Statistical Applications in Genetics and Molecular Biology 9, 39.

    Args:
        model_rdm: `[n, n]`; the diagonal and what is below it are not read.
        human_rdm: `[n, n]`.
        permutations: how many are drawn, independently.
        seed: of the draws.

    Returns:
        The test; all nan where the correlation is undefined, as in `rank_correlation`.

    Raises:
        ValueError: the two are not square matrices of one size, or `permutations` is less than 1.
    """
    if permutations < 1:
        raise ValueError(f"permutations: found {permutations}, expected at least 1")
    rho, _ = rank_correlation(model_rdm, human_rdm)
    if np.isnan(rho):
        return MantelTest(NAN, NAN, NAN, NAN, permutations)
    orders = random_orders(f"Mantel's test, seed {seed}", permutations, len(human_rdm))
    observed, null, scale = permuted_products(model_rdm, human_rdm, orders)
    greater, in_size = (null >= observed).sum(), (np.abs(null) >= abs(observed)).sum()
    null_sd = float(np.std(null / scale, ddof=1)) if permutations > 1 else NAN
    total = permutations + 1
    return MantelTest(rho, (1 + int(greater)) / total, (1 + int(in_size)) / total, null_sd, permutations)


def random_orders(purpose: str, number: int, size: int) -> NDArray[np.int64]:
    """Draw orders of some images, `[number, size]`, each a permutation; a pure function of the arguments."""
    words = stream_of(purpose).random_raw(number * size).reshape(number, size)
    return words.argsort(axis=1, kind="stable")


def permuted_products(
    model_rdm: NDArray[np.floating], human_rdm: NDArray[np.floating], orders: NDArray[np.int64]
) -> tuple[float, NDArray[np.float64], float]:
    """Return what of the rank correlation a permutation of the model's images changes.

    Args:
        model_rdm: `[n, n]`, with a defined rank correlation.
        human_rdm: `[n, n]`.
        orders: `[k, n]`, each a permutation.

    Returns:
        The sum of products of the observed ranks; those of the permuted ones, `[k]`; and the number that divides
        both to give the correlation. The sums are integers, exact up to 600 images.
    """
    pairs = pairs_of(model_rdm, human_rdm)
    assert pairs is not None
    model, human = (2 * ranks_of(values) - (len(values) + 1) for values in pairs)
    first, second = np.triu_indices(len(model_rdm), k=1)
    square = np.zeros(model_rdm.shape)
    square[first, second] = square[second, first] = model
    null = np.empty(len(orders))
    for start in range(0, len(orders), _AT_ONCE):
        some = orders[start : start + _AT_ONCE]
        null[start : start + _AT_ONCE] = square[some[:, first], some[:, second]] @ human
    return float(model @ human), null, float(np.sqrt((model @ model) * (human @ human)))


def bootstrap(
    model_rdms: Sequence[NDArray[np.floating]],
    human_rdm: NDArray[np.floating],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Correlate RDMs with the human one over images drawn with replacement.

    A pair of one image with itself, which its being drawn twice gives, is left out; a pair of different images
    counts as often as it is drawn. All models see the same draws, so columns can be subtracted.

    Args:
        model_rdms: m of `[n, n]`, such as those of several epochs or runs.
        human_rdm: `[n, n]`.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        `[resamples, m] float64`, Spearman's correlations; nan where one is undefined, as in `rank_correlation`.

    Raises:
        ValueError: the RDMs are not square matrices of one size, or `resamples` is less than 2.
    """
    if resamples < 2:
        raise ValueError(f"resamples: found {resamples}, expected at least 2")
    estimates = np.full((resamples, len(model_rdms)), NAN)
    pairs = {column: found for column, rdm in enumerate(model_rdms) if (found := pairs_of(rdm, human_rdm))}
    if not pairs:
        return estimates
    size = len(human_rdm)
    first, second = np.triu_indices(size, k=1)
    counts = draw_counts(resamples, size, seed)
    human = _Ranked(next(iter(pairs.values()))[1])
    models = {column: _Ranked(values) for column, (values, _) in pairs.items()}
    for start in range(0, resamples, _AT_ONCE):
        some = counts[start : start + _AT_ONCE]
        weights = some[:, first] * some[:, second]
        human_scores = human.scores(weights)
        weighted = weights * human_scores
        human_squares = (weighted * human_scores).sum(axis=1)
        for column, model in models.items():
            scores = model.scores(weights)
            squares = (weights * scores * scores).sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                found = (weighted * scores).sum(axis=1) / np.sqrt(human_squares * squares)
            estimates[start : start + _AT_ONCE, column] = found
    return estimates


def draw_counts(resamples: int, size: int, seed: int) -> NDArray[np.float64]:
    """Draw `size` of `size` images with replacement, and return how often each came, `[resamples, size]`."""
    words = stream_of(f"bootstrap of images, seed {seed}").random_raw(resamples * size)
    drawn = (words % np.uint64(size)).astype(np.int64).reshape(resamples, size)
    counts = np.zeros((resamples, size))
    np.add.at(counts, (np.arange(resamples)[:, np.newaxis], drawn), 1)
    return counts


def spread(estimates: NDArray[np.float64], level: float = LEVEL) -> tuple[float, float, float]:
    """Return the standard deviation of bootstrap estimates and their percentile interval.

    Args:
        estimates: `[resamples]`, of a correlation or of a difference of two.
        level: the share of the estimates within, the same share left out on either side.

    Returns:
        Standard deviation, low and high end; nan if an estimate is.
    """
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(np.std(estimates, ddof=1)), float(low), float(high)


class _Ranked:
    """Values in order, to be ranked again and again as often as each is drawn."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        distinct, self._group = np.unique(values, return_inverse=True)
        self._order = np.argsort(values, kind="stable")
        self._ends = np.searchsorted(values[self._order], distinct, side="right") - 1

    def scores(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the values' ranks, doubled and centred, where each is there `weights` times.

        Args:
            weights: `[resamples, values]`; so is what is returned.
        """
        up_to = np.cumsum(weights[:, self._order], axis=1)[:, self._ends]
        below = np.concatenate((np.zeros((len(weights), 1)), up_to[:, :-1]), axis=1)
        return (below + up_to - up_to[:, -1:])[:, self._group]
