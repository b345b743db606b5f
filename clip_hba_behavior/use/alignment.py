"""How well a model's representation agrees with the human one: rank correlation, its test and its interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 9_999
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Alignment:
    """The agreement of one model's RDM with the human RDM.

    Attributes:
        rho: Spearman's correlation of the two RDMs over the pairs of images.
        p_greater: Mantel's test, one-sided: of the permutations of the images' labels, the share that reaches rho.
        p_two_sided: the share that reaches rho in size.
        null_sd: the standard deviation of rho under these permutations.
        permutations: how many.
        sd: the standard deviation of rho over resampled images.
        interval: its percentile interval, low and high, at `level`.
        level: of the interval, 0.95.
        resamples: how many.
        num_images: how many images the RDMs are of.
        seed: of the permutations and the resamples.
    """

    rho: float
    p_greater: float
    p_two_sided: float
    null_sd: float
    permutations: int
    sd: float
    interval: tuple[float, float]
    level: float
    resamples: int
    num_images: int
    seed: int


def alignment_of(
    predictions: NDArray[np.floating],
    human_rdm: NDArray[np.floating],
    seed: int = 0,
    permutations: int = PERMUTATIONS,
    resamples: int = RESAMPLES,
) -> Alignment:
    """Compare a model's predictions of some images with the human RDM of the same images.

    Args:
        predictions: `[n, 66]`, one row an image; their RDM is 1 - Pearson's correlation.
        human_rdm: `[n, n]`, in the same order.
        seed: of the permutations and the resamples; the same seed gives the same draws to every model.
        permutations: of the images' labels.
        resamples: of the images.

    Raises:
        ValueError: the two are not of the same images.
    """
    raise NotImplementedError
