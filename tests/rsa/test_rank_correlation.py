import csv
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
with_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="the recorded runs are not here")


def random_rows(rows: int, columns: int = 66) -> np.ndarray:
    return np.random.Generator(np.random.Philox(7)).normal(size=(rows, columns))


@with_reference
def test_the_recorded_rsa_of_epoch_6_is_reached_to_the_last_digit() -> None:
    predictions = np.load(REFERENCE / "run" / "pred48_epoch6.npy")
    human = scipy.io.loadmat(str(REFERENCE / "dataset" / "RDM48_triplet.mat"))["RDM48_triplet"]
    with (REFERENCE / "run" / "training_res.csv").open(newline="") as file:
        recorded = next(row for row in csv.DictReader(file) if row["epoch"] == "6")

    rho, p_value = rank_correlation(correlation_distances(predictions), human)

    assert repr(rho) == recorded["behavioral_rsa_rho"]
    assert repr(p_value) == recorded["behavioral_rsa_p_value"]


def test_distances_are_one_minus_pearsons_correlation_in_float64() -> None:
    rows = random_rows(5).astype(np.float32)
    distances = correlation_distances(rows)
    assert distances.dtype == np.float64
    assert distances.shape == (5, 5)
    assert distances.tobytes() == correlation_distances(rows.astype(np.float64)).tobytes()
    a, b = rows[1].astype(np.float64), rows[3].astype(np.float64)
    a, b = a - a.mean(), b - b.mean()
    assert distances[1, 3] == pytest.approx(1 - (a @ b) / np.sqrt((a @ a) * (b @ b)), abs=1e-12)
    assert distances[1, 3] == distances[3, 1]


@pytest.mark.parametrize("value", [0.0, 0.1, -3e30, np.nan, np.inf])
def test_a_constant_row_has_no_distances_and_the_others_keep_theirs(value: float) -> None:
    rows = random_rows(4)
    whole = correlation_distances(rows)
    rows[2] = value
    distances = correlation_distances(rows)
    assert np.isnan(distances[2]).all()
    assert np.isnan(distances[:, 2]).all()
    others = np.ix_([0, 1, 3], [0, 1, 3])
    np.testing.assert_array_max_ulp(distances[others], whole[others], maxulp=64)


def test_one_bad_value_in_a_row_makes_that_row_undefined() -> None:
    rows = random_rows(3)
    rows[0, 5] = np.inf
    assert np.isnan(correlation_distances(rows)[0]).all()


def test_no_rows_and_one_row_give_matrices_too() -> None:
    assert correlation_distances(np.empty((0, 66))).shape == (0, 0)
    assert correlation_distances(random_rows(1)).shape == (1, 1)


def test_rank_correlation_reads_the_upper_triangle_alone() -> None:
    model = correlation_distances(random_rows(6))
    human = model**3
    human[np.tril_indices(6)] = 99.0
    rho, p_value = rank_correlation(model, human)
    assert rho == pytest.approx(1.0, abs=1e-12)
    assert p_value < 1e-12
    assert type(rho) is float
    assert type(p_value) is float


def test_rank_correlation_is_nan_where_it_is_undefined() -> None:
    model = correlation_distances(random_rows(4))
    broken = model.copy()
    broken[0, 1] = np.nan
    two = correlation_distances(random_rows(2))
    for pair in ((broken, model), (model, broken), (model, np.ones((4, 4))), (np.ones((4, 4)), model), (two, two)):
        rho, p_value = rank_correlation(*pair)
        assert np.isnan(rho)
        assert np.isnan(p_value)


def test_wrong_shapes_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(5, 5\); expected two \[n, n\]"):
        rank_correlation(np.ones((4, 4)), np.ones((5, 5)))
    with pytest.raises(ValueError, match=r"shape \(66,\); expected \[images, dimensions\]"):
        correlation_distances(np.ones(66))
