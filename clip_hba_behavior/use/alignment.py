"""How well a model's representation agrees with the human one: rank correlation, its test and its interval."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.rsa.rank_correlation import correlation_distances
from clip_hba_behavior.rsa.resampling import LEVEL, PERMUTATIONS, RESAMPLES, bootstrap, mantel, spread


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
        interval: the percentile interval of rho over them, low and high.
        level: the share of the resamples within the interval, 0.95.
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

    def p_note(self) -> str:
        """Return what is to be said of a one-sided p that no permutation reached; else nothing."""
        if self.p_greater > 1 / (self.permutations + 1):
            return ""
        return f"{self.p_greater:.4g} is the least that {self.permutations:,} permutations can give"


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
        ValueError: the two are not of the same images, or a number of draws is too small.
    """
    model_rdm = correlation_distances(predictions)
    test = mantel(model_rdm, human_rdm, permutations, seed)
    sd, low, high = spread(bootstrap([model_rdm], human_rdm, resamples, seed)[:, 0])
    return Alignment(
        rho=test.rho,
        p_greater=test.p_greater,
        p_two_sided=test.p_two_sided,
        null_sd=test.null_sd,
        permutations=permutations,
        sd=sd,
        interval=(low, high),
        level=LEVEL,
        resamples=resamples,
        num_images=len(human_rdm),
        seed=seed,
    )
