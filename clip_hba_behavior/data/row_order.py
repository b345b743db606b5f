"""Whether the held-out rows are in the order of the human RDM, which nothing in the files says.

The targets' dissimilarities agree with the human ones in the right order, and no more than by chance in another.
So they are compared with what the same rows give in random orders.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.rsa import rank_correlation as rsa
from clip_hba_behavior.rsa.resampling import permuted_products, random_orders

NUM_SHUFFLES = 999
LEAST_SHARE = 0.95


@dataclass(frozen=True)
class RowOrder:
    """How far the rows' order agrees with the human RDM.

    Attributes:
        rho: Spearman's correlation of the targets' correlation distances with the human RDM.
        share: of the same rows in random orders, those that reach less.
    """

    rho: float
    share: float

    @property
    def looks_wrong(self) -> bool:
        """Whether the rows agree with the RDM no better than they may by chance."""
        return self.share < LEAST_SHARE

    def __str__(self) -> str:
        """Return both numbers; the share is cut, so that all of them is said of all of them alone."""
        return f"{self.rho:.4f}, above {int(1000 * self.share) / 10} % of {NUM_SHUFFLES} random orders"


def row_order(targets: NDArray[np.float64], human_rdm: NDArray[np.float64]) -> RowOrder | None:
    """Compare held-out targets with the human RDM; the random orders are always the same.

    Args:
        targets: `[n, 66]`.
        human_rdm: `[n, n]`.

    Returns:
        None where the correlation is undefined: a target is not finite, or a row or the RDM is constant.
    """
    distances = rsa.correlation_distances(targets)
    rho, _ = rsa.rank_correlation(distances, human_rdm)
    if np.isnan(rho):
        return None
    orders = random_orders("the order of the held-out rows", NUM_SHUFFLES, len(targets))
    reached, shuffled, _ = permuted_products(distances, human_rdm, orders)
    return RowOrder(rho, float((shuffled < reached).mean()))


def wrong_order_message(order: RowOrder, table: Path | str, rdm_file: Path | str, expected: str) -> str:
    """Return the complete message on rows that look to be in the wrong order, or on an RDM of similarities."""
    if order.rho < 0 and order.share == 0:  # opposite, and more so than any chance
        return (
            f"{rdm_file} looks to hold similarities: the dissimilarities of the targets of {table} agree with it "
            f"to a rank correlation of {order}\n  expected: {expected} (0.8644 for THINGS)\n"
            "  give dissimilarities, which are 0 on the diagonal, such as 1 - similarity"
        )
    return (
        f"the rows of {table} look to be in the wrong order: their targets' dissimilarities agree with "
        f"{rdm_file} to a rank correlation of {order}\n  expected: {expected} (0.8644 for THINGS)\n"
        "  give the table whose rows are in the RDM's order, such as "
        "spose_embedding66d_rescaled_48val_reordered.csv"
    )
