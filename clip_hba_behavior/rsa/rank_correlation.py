"""Representational dissimilarity matrices (RDMs) and their rank correlation."""

import numpy as np
from numpy.typing import NDArray

NAN = float("nan")


def correlation_distances(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 - Pearson's correlation between every two rows.

    Args:
        embeddings: `[n, d]`, one row an image; computed in float64 whatever its precision.

    Returns:
        `[n, n] float64`. Where a row is constant or not finite the correlation is undefined: nan.

    Raises:
        ValueError: `embeddings` has not two axes, or less than one column.
    """
    rows = rows_of(embeddings)
    if len(rows) == 0:
        return np.empty((0, 0))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        distances: NDArray[np.float64] = 1.0 - np.atleast_2d(np.corrcoef(rows))
        # A constant row's mean may miss it by a rounding error, which would pass for a tiny variance.
        undefined = ~(rows.max(axis=1) > rows.min(axis=1)) | ~np.isfinite(rows).all(axis=1)
    distances[undefined, :] = NAN
    distances[:, undefined] = NAN
    return distances


def rank_correlation(model_rdm: NDArray[np.floating], human_rdm: NDArray[np.floating]) -> tuple[float, float]:
    """Return Spearman's correlation of two RDMs over their upper triangles, and its two-sided p.

    The last digit depends on the order of the arguments: as the earlier pipeline did, the human RDM's
    ranks come first in the arithmetic, so that its recorded values are reached to the last digit.

    Args:
        model_rdm: `[n, n]`; the diagonal and what is below it are not read.
        human_rdm: `[n, n]`.

    Returns:
        rho and p; both nan where the correlation is undefined: an entry is nan, one side is constant,
        or there are fewer than three pairs.

    Raises:
        ValueError: The two are not square matrices of one size.
    """
    pairs = pairs_of(model_rdm, human_rdm)
    if pairs is None:
        return NAN, NAN
    model, human = pairs
    return _spearman(human, model)


def _spearman(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[float, float]:
    """Return Spearman's correlation of two samples and its two-sided p, with the bits of `scipy.stats.spearmanr`.

    The arithmetic is SciPy's, step by step; a test holds the two together. `scipy.stats` itself takes half as long
    to import as torch.

    Args:
        first: `[n]`, n at least 3, without nan, not constant.
        second: `[n]`, the same.
    """
    from scipy.special import stdtr

    ranks = np.stack((ranks_of(first), ranks_of(second)))
    rho = np.atleast_2d(np.corrcoef(ranks))[1, 0]  # [0, 1] may differ in the last digit
    degrees_of_freedom = len(first) - 2
    with np.errstate(divide="ignore"):  # rho may be 1 or -1
        t = rho * np.sqrt((degrees_of_freedom / ((rho + 1.0) * (1.0 - rho))).clip(0))
    return float(rho), float(2 * stdtr(degrees_of_freedom, -np.abs(t)))


def rows_of(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return embeddings, `[n, d]`, in float64.

    Raises:
        ValueError: `embeddings` has not two axes, or less than one column.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] < 1:
        raise ValueError(f"embeddings of shape {embeddings.shape}; expected [images, dimensions]")
    return embeddings.astype(np.float64)


def pairs_of(
    model_rdm: NDArray[np.floating], human_rdm: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return two RDMs' upper triangles, row by row, or None where their correlation is undefined.

    Raises:
        ValueError: The two are not square matrices of one size.
    """
    shape = model_rdm.shape
    if len(shape) != 2 or shape[0] != shape[1] or human_rdm.shape != shape:
        raise ValueError(f"RDMs of shapes {shape} and {human_rdm.shape}; expected two [n, n] of one size")
    pairs = np.triu_indices(shape[0], k=1)
    model, human = model_rdm[pairs].astype(np.float64), human_rdm[pairs].astype(np.float64)
    if len(model) < 3 or not _has_ranks(model) or not _has_ranks(human):
        return None
    return model, human


def ranks_of(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each value's rank, counted from 1; equal ones share the mean of theirs. Exact."""
    ordered = np.sort(values)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    ranks: NDArray[np.float64] = (below + up_to + 1) / 2
    return ranks


def _has_ranks(values: NDArray[np.float64]) -> bool:
    return not np.isnan(values).any() and bool((values != values[0]).any())
