"""Correlations per dimension: Pearson's r, a p that is valid for sparse dimensions, and its correction."""

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from clip_hba_behavior.data.things import read_annotations
from clip_hba_behavior.rsa.dimensions import benjamini_hochberg, dimension_correlations

Array = NDArray[np.float64]


def correlated(seed: int, images: int = 60, dimensions: int = 8) -> tuple[Array, Array]:
    """Normal predictions and targets whose correlation grows with the dimension, from none."""
    rng = np.random.default_rng(seed)
    targets = rng.normal(size=(images, dimensions))
    return rng.normal(size=targets.shape) + np.linspace(0, 0.7, dimensions) * targets, targets


def test_r_is_pearsons_and_p_that_of_normal_numbers_where_they_are_normal() -> None:
    predictions, targets = correlated(1)
    found = dimension_correlations(predictions, targets)
    theirs = [scipy.stats.pearsonr(*columns) for columns in zip(predictions.T, targets.T, strict=True)]
    np.testing.assert_allclose(found.r, [each.statistic for each in theirs], atol=1e-14)
    np.testing.assert_allclose(found.p, [each.pvalue for each in theirs], atol=0.02)
    assert found.p.min() >= 1e-4
    np.testing.assert_array_equal(found.p_adjusted, scipy.stats.false_discovery_control(found.p))
    assert (found.num_tests, found.num_images, found.permutations) == (8, 60, 9_999)


def test_adjusted_p_have_the_bits_of_scipy_stats() -> None:
    rng = np.random.default_rng(3)
    for number in (1, 2, 5, 66):
        for p in (rng.uniform(size=number), rng.integers(1, 5, number) / 4, 10.0 ** -rng.integers(1, 9, number)):
            np.testing.assert_array_equal(benjamini_hochberg(p), scipy.stats.false_discovery_control(p))


def test_the_same_seed_gives_the_same_p_and_another_seed_another() -> None:
    first = dimension_correlations(*correlated(2), permutations=199)
    again = dimension_correlations(*correlated(2), permutations=199)
    assert first.p.tobytes() == again.p.tobytes()
    assert first.p.tobytes() != dimension_correlations(*correlated(2), permutations=199, seed=1).p.tobytes()


def test_p_is_valid_for_dimensions_that_few_images_have_and_students_t_is_not() -> None:
    rng = np.random.default_rng(3)
    ours, students = [], []
    for number in range(10):  # 66 dimensions without an effect, ten times
        targets, predictions = (rng.gamma(0.1, size=(48, 66)) for _ in range(2))
        ours += dimension_correlations(predictions, targets, 999, seed=number).p.tolist()
        columns = zip(predictions.T, targets.T, strict=True)
        students += [scipy.stats.pearsonr(*each).pvalue for each in columns]
    rates = [np.mean(np.array(each) <= 0.005) for each in (ours, students)]
    assert rates[0] < 0.014  # three standard errors
    assert rates[1] > 0.02, "the twin: a t test finds four times as many as there may be"


@pytest.mark.system
def test_students_t_finds_too_much_in_the_targets_of_things(things: Path) -> None:
    rng = np.random.default_rng(0)
    table = read_annotations(things / "spose_embedding66d_rescaled_1806train.csv").targets
    targets = table[rng.permutation(len(table))[:361]]  # as many as a run tests on
    predictions = targets + 0.1 * rng.normal(size=targets.shape)
    columns = [(each - each.mean(axis=0)) / each.std(axis=0) for each in (predictions, targets)]
    r = np.array([(columns[0] * columns[1][rng.permutation(361)]).mean(axis=0) for _ in range(2_000)])
    p = 2 * scipy.stats.t.sf(np.abs(r) * np.sqrt(359 / (1 - r * r)), 359)
    for level in (0.05, 0.01, 0.001, 0.0001):
        rates = (p <= level).mean(axis=0)
        print(f"p <= {level}: {rates.mean():.5f}, in the worst dimension {rates.max():.4f}")
    assert (p <= 0.001).mean() > 0.003


def test_a_constant_column_is_not_tested_and_does_not_count_for_the_others() -> None:
    predictions, targets = correlated(4)
    alone = dimension_correlations(predictions[:, 1:], targets[:, 1:])
    predictions[:, 0] = 0.1
    found = dimension_correlations(predictions, targets)
    assert np.isnan([found.r[0], found.p[0], found.p_adjusted[0]]).all()
    assert found.num_tests == 7
    np.testing.assert_array_equal(found.p_adjusted[1:], alone.p_adjusted)


def test_two_images_correlate_with_nothing() -> None:
    found = dimension_correlations(*correlated(5, images=2))
    assert found.num_tests == 0
    assert np.isnan(found.r).all()
    assert np.isnan(found.p_adjusted).all()


def test_what_does_not_belong_together_is_refused() -> None:
    predictions, targets = correlated(6)
    with pytest.raises(ValueError, match=r"shape \(60, 8\) and targets of shape \(59, 8\)"):
        dimension_correlations(predictions, targets[1:])
    with pytest.raises(ValueError, match="permutations: found 0"):
        dimension_correlations(predictions, targets, 0)
