import csv
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.stats

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


def rdm_of(pairs: np.ndarray, num_images: int) -> np.ndarray:
    rdm = np.full((num_images, num_images), np.nan)
    rdm[np.triu_indices(num_images, k=1)] = pairs
    return rdm


def pair_of_samples(generator: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    first, noise = generator.normal(size=n), generator.normal(size=n)
    scale = 10.0 ** generator.integers(-6, 2)
    match kind:
        case "independent":
            return first, noise
        case "nearly the same":
            return first, first**3 + scale * noise
        case "nearly reversed":
            return first, -first + scale * noise
        case "many ties":
            return np.round(2 * first), np.round(2 * noise)
        case "ties on one side":
            return first, np.round(first + noise, 1)
        case _:  # zeros of both signs, infinities, and numbers too small to be normal
            odd = generator.choice([0.0, -0.0, np.inf, -np.inf, 5e-324, -5e-324], size=n)
            return np.where(generator.random(n) < 0.5, odd, first), noise


@pytest.mark.parametrize(
    "kind", ["independent", "nearly the same", "nearly reversed", "many ties", "ties on one side", "odd numbers"]
)
def test_rho_and_p_have_the_bits_of_scipy_stats(kind: str) -> None:
    generator = np.random.Generator(np.random.Philox(11))
    num_undefined = 0
    for num_images in (3, 4, 5, 6, 7, 8, 9, 10, 12, 16, 17, 32, 48):
        n = num_images * (num_images - 1) // 2
        for _ in range(60):
            model, human = pair_of_samples(generator, n, kind)
            if (model == model[0]).all() or (human == human[0]).all():
                num_undefined += 1
                continue
            expected = scipy.stats.spearmanr(human, model)
            found = rank_correlation(rdm_of(model, num_images), rdm_of(human, num_images))
            assert np.float64(found).tobytes() == np.float64([expected.statistic, expected.pvalue]).tobytes(), (
                found,
                expected,
                n,
            )
    assert num_undefined < 60


def test_a_perfect_correlation_has_the_bits_of_scipy_stats_too() -> None:
    for num_images in (3, 4, 5, 11, 48):
        pairs = np.arange(num_images * (num_images - 1) // 2, dtype=np.float64)
        for other in (pairs, -pairs):
            expected = scipy.stats.spearmanr(other, pairs)
            found = rank_correlation(rdm_of(pairs, num_images), rdm_of(other, num_images))
            assert np.float64(found).tobytes() == np.float64([expected.statistic, expected.pvalue]).tobytes()


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
