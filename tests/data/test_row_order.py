from pathlib import Path

import numpy as np
import pytest

from clip_hba_behavior.data.row_order import NUM_SHUFFLES, RowOrder, row_order, wrong_order_message
from clip_hba_behavior.data.standin import write_standin_dataset
from clip_hba_behavior.data.things import read_annotations, read_human_rdm
from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation


def tables(directory: Path, held_out: str) -> tuple[np.ndarray, np.ndarray]:
    return read_annotations(directory / held_out).targets, read_human_rdm(directory / "RDM48_triplet.mat")


@pytest.fixture(params=["synthetic", "things"])
def right(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    """Held-out targets in the right order, and the human RDM."""
    if request.param == "synthetic":
        return tables(request.getfixturevalue("standin_data"), "inference48.csv")
    return tables(request.getfixturevalue("things"), "spose_embedding66d_rescaled_48val_reordered.csv")


def test_the_right_order_raises_no_alarm(right: tuple[np.ndarray, np.ndarray]) -> None:
    order = row_order(*right)
    assert order is not None
    assert order.share == 1
    assert order.rho > 0.85
    assert not order.looks_wrong


def test_other_orders_do_in_95_of_100_cases(right: tuple[np.ndarray, np.ndarray]) -> None:
    targets, human_rdm = right
    draws = np.random.Generator(np.random.Philox(1))
    orders = [row_order(targets[draws.permutation(48)], human_rdm) for _ in range(40)]
    assert sum(each is not None and each.looks_wrong for each in orders) >= 34


def test_the_alphabetical_order_of_things_does(things: Path) -> None:
    order = row_order(*tables(things, "spose_embedding66d_rescaled_48val.csv"))
    assert order is not None
    assert order.looks_wrong
    assert str(order) == "0.0365, above 78.0 % of 999 random orders"


@pytest.mark.parametrize("seed", range(1, 4))
def test_no_other_synthetic_data_set_raises_an_alarm(tmp_path: Path, seed: int) -> None:
    write_standin_dataset(tmp_path, num_images=1, seed=seed)
    order = row_order(*tables(tmp_path, "inference48.csv"))
    assert order is not None
    assert not order.looks_wrong


def test_rho_is_the_runs_and_the_share_that_of_shuffles_done_one_by_one(standin_data: Path) -> None:
    targets, human_rdm = tables(standin_data, "inference48.csv")
    weak = targets + 90 * np.random.Generator(np.random.Philox(0)).random(targets.shape)
    order = row_order(weak, human_rdm)
    assert order is not None
    assert order.rho == rank_correlation(correlation_distances(weak), human_rdm)[0]
    draws = np.random.Generator(np.random.Philox(1))
    reached = [
        rank_correlation(correlation_distances(weak[draws.permutation(48)]), human_rdm)[0] for _ in range(200)
    ]
    assert order.share == pytest.approx(np.mean(np.array(reached) < order.rho), abs=0.1)


def test_similarities_are_told_from_a_wrong_order(standin_data: Path) -> None:
    targets, human_rdm = tables(standin_data, "inference48.csv")
    order, shuffled = row_order(targets, 1 - human_rdm), row_order(targets[::-1], human_rdm)
    assert order is not None
    assert shuffled is not None
    text = wrong_order_message(order, "t.csv", "r.mat", "at least 0.5")
    assert text.startswith("r.mat looks to hold similarities: ")
    assert text.endswith("give dissimilarities, which are 0 on the diagonal, such as 1 - similarity")
    assert "the rows of t.csv look to be in the wrong order" in wrong_order_message(shuffled, "t.csv", "r.mat", "")


def test_the_share_is_never_rounded_up() -> None:
    assert str(RowOrder(0.5, (NUM_SHUFFLES - 1) / NUM_SHUFFLES)).startswith("0.5000, above 99.8 %")
    assert RowOrder(0.5, 0.9499).looks_wrong
    assert not RowOrder(0.5, 0.95).looks_wrong


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_targets_leave_the_order_unknown(standin_data: Path, bad: float) -> None:
    targets, human_rdm = tables(standin_data, "inference48.csv")
    targets[3, 5] = bad
    assert row_order(targets, human_rdm) is None
    targets[3] = 1
    assert row_order(targets, human_rdm) is None
