"""How well any model could agree with a measured RDM, from RDMs of two halves of the same data."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.rsa.rank_correlation import rank_correlation


class NoiseCeiling(NamedTuple):
    """The reliability of a human RDM, and the correlation that it lets a model reach.

    Attributes:
        split_half: Spearman's correlation of the RDMs of the two halves.
        reliability: of the RDM of all data, by Spearman and Brown: `2 r / (1 + r)`. A second RDM from as many
            judgements is expected to agree with the first so well.
        maximum: `sqrt(reliability)`, what a model reaches whose RDM is the true one, without noise.
    """

    split_half: float
    reliability: float
    maximum: float


def noise_ceiling(first_half: NDArray[np.floating], second_half: NDArray[np.floating]) -> NoiseCeiling:
    """Estimate the ceiling from RDMs of two halves of the data.

    Source: Spearman (1910) and Brown (1910), British Journal of Psychology 3, 271-295 and 296-322, for a test
    twice as long; the root is classical test theory's index of reliability (Lord and Novick 1968). Both are
    derived for Pearson's correlation and halves with equal, independent noise; with ranks they are approximations.

    Args:
        first_half: `[n, n]`; the diagonal and what is below it are not read.
        second_half: `[n, n]`.

    Returns:
        The ceiling. Reliability and maximum are nan where the halves do not agree at all: their correlation is 0,
        negative or undefined.

    Raises:
        ValueError: the two are not square matrices of one size.
    """
    split_half, _ = rank_correlation(first_half, second_half)
    if not split_half > 0:
        return NoiseCeiling(split_half, math.nan, math.nan)
    reliability = 2 * split_half / (1 + split_half)
    return NoiseCeiling(split_half, reliability, math.sqrt(reliability))
