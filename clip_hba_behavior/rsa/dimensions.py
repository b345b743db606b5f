"""How well each dimension of an embedding is predicted, tested for all of them together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.rsa.rank_correlation import NAN
from clip_hba_behavior.rsa.resampling import PERMUTATIONS, random_orders

CORRECTION = "Benjamini-Hochberg"
_AT_ONCE = 16  # permutations, so that they fit a cache
_TIE = 1e-12  # sums in another order may differ in their last digits


@dataclass(frozen=True)
class DimensionCorrelations:
    """Pearson's correlation of predictions with targets over images, for each dimension.

    Attributes:
        r: `[d]`; nan where predictions or targets are constant or not finite, or there are less than three images.
        p: `[d]`, two-sided, by permuting the images; nan where r is.
        p_adjusted: `[d]`, corrected for all tests by Benjamini and Hochberg: where it is at most q, the expected
            share of false discoveries is at most q.
        num_tests: the dimensions that could be tested.
        num_images: how many images each correlation is over.
        permutations: how many.
    """

    r: NDArray[np.float64]
    p: NDArray[np.float64]
    p_adjusted: NDArray[np.float64]
    num_tests: int
    num_images: int
    permutations: int


def dimension_correlations(
    predictions: NDArray[np.floating],
    targets: NDArray[np.floating],
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> DimensionCorrelations:
    """Correlate predictions and targets dimension by dimension.

    Most targets of a dimension are near zero and a few are large. Student's t, which `scipy.stats.pearsonr` uses,
    then gives far too many small p, so the images are permuted, the same way for all dimensions.

    Source: Phipson and Smyth (2010) for p, Benjamini and Hochberg (1995) for its correction; it holds for
    positively dependent tests too (Benjamini and Yekutieli 2001).

    Args:
        predictions: `[n, d]`, one row an image.
        targets: `[n, d]`.
        permutations: how many are drawn; the smallest p is 1 / (permutations + 1).
        seed: of the draws.

    Raises:
        ValueError: the two have not the same shape, or `permutations` is less than 1.
    """
    if predictions.ndim != 2 or predictions.shape != targets.shape:
        raise ValueError(
            f"predictions of shape {predictions.shape} and targets of shape {targets.shape}; "
            "expected two [images, dimensions] of one shape"
        )
    if permutations < 1:
        raise ValueError(f"permutations: found {permutations}, expected at least 1")
    size = len(predictions)
    predicted, expected = _standardized(predictions), _standardized(targets)
    r = (predicted * expected).sum(axis=0)
    least = np.abs(r) - _TIE
    orders = random_orders(f"correlation per dimension, seed {seed}", permutations, size)
    reached = np.zeros(len(r))
    for start in range(0, permutations, _AT_ONCE):
        permuted = np.einsum("kid,id->kd", predicted[orders[start : start + _AT_ONCE]], expected)  # each [k, d]
        reached += (np.abs(permuted) >= least).sum(axis=0)
    is_tested = ~np.isnan(r)
    p = np.where(is_tested, (1 + reached) / (1 + permutations), NAN)
    p_adjusted = np.full(len(r), NAN)
    if is_tested.any():
        p_adjusted[is_tested] = benjamini_hochberg(p[is_tested])
    return DimensionCorrelations(r, p, p_adjusted, int(is_tested.sum()), size, permutations)


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adjust the p of several tests, `[m]`, so that those of at most q have a false discovery rate of at most q.

    The i-th smallest of m becomes the least of p m / i over itself and the larger ones. Source: Benjamini and
    Hochberg (1995). The bits are those of `scipy.stats.false_discovery_control`, to which a test holds it;
    `scipy.stats` itself takes half as long to import as torch.
    """
    number = len(p)
    descending = np.argsort(p, kind="stable")[::-1]
    adjusted = np.empty(number)
    scaled = p[descending] * (number / np.arange(number, 0, -1))
    adjusted[descending] = np.minimum.accumulate(scaled).clip(max=1.0)
    return adjusted


def _standardized(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return columns with mean 0 and length 1; nan where one is constant or not finite."""
    columns = values.astype(np.float64)
    if len(columns) < 3:
        return np.full_like(columns, NAN)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        centred = columns - columns.mean(axis=0)
        found: NDArray[np.float64] = centred / np.sqrt((centred * centred).sum(axis=0))
    # a constant column's mean may miss it by a rounding error
    found[:, ~(columns.max(axis=0) > columns.min(axis=0))] = NAN
    return found
