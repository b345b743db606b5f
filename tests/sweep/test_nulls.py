"""The statistics of effects against simulated nulls, and against known answers."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats

from clip_hba_behavior.sweep.nulls import (
    adjusted_p_values,
    family_statistics,
    null_needed,
    p_value,
    signed_rank_p_value,
    standard_deviation,
    t_interval,
)

Claim = Callable[[np.ndarray, np.ndarray], float]


def family_p_value(values: np.ndarray, null: np.ndarray) -> float:
    statistics, maxima = family_statistics(values.tolist(), null.tolist())
    return p_value(float(statistics.max()), maxima.tolist())


def smallest_p_value(values: np.ndarray, null: np.ndarray) -> float:
    """What a reader does who looks for the best epoch."""
    return min(p_value(value, column) for value, column in zip(values, null.T.tolist(), strict=True))


def family_p_value_by_the_nulls_spread(values: np.ndarray, null: np.ndarray) -> float:
    """What treats the perturbed run in another way than the null's."""
    spread = null.std(axis=0, ddof=1)
    return p_value(float(np.abs(values / spread).max()), np.abs(null / spread).max(axis=1).tolist())


def family_of(
    chance: np.random.Generator, num_null: int, num_epochs: int, effect: float
) -> tuple[np.ndarray, ...]:
    """A perturbed run and a null over epochs whose spreads differ and which correlate, as a sweep's do."""
    shared = chance.standard_normal((num_null + 1, 1))
    drawn = (shared + chance.standard_normal((num_null + 1, num_epochs))) / np.sqrt(2)
    everyone = drawn * 10.0 ** np.linspace(-3, 1, num_epochs)
    everyone[0, num_epochs // 2] += effect * 10.0 ** np.linspace(-3, 1, num_epochs)[num_epochs // 2]
    return everyone[0], everyone[1:]


def share_found(claim: Claim, cases: int, effect: float = 0.0, num_null: int = 19, num_epochs: int = 12) -> float:
    chance = np.random.Generator(np.random.Philox(1))
    return float(np.mean([claim(*family_of(chance, num_null, num_epochs, effect)) <= 0.05 for _ in range(cases)]))


SOME = 400
CASES = [pytest.param(SOME, 0.03), pytest.param(2000, 0.012, marks=pytest.mark.system)]  # and about 2.5 errors


@pytest.mark.parametrize(("cases", "tolerance"), CASES)
def test_p_is_uniform_where_nothing_is(cases: int, tolerance: float) -> None:
    chance = np.random.Generator(np.random.Philox(2))
    found = np.array([p_value(*split(chance.standard_normal(20))) for _ in range(cases)])
    assert set(np.round(found * 20).astype(int)) <= set(range(1, 21))
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        error = tolerance * np.sqrt(level * (1 - level) / (0.05 * 0.95))
        assert abs(np.mean(found <= level + 1e-9) - level) < error, level


def split(drawn: np.ndarray) -> tuple[float, list[float]]:
    return float(drawn[0]), drawn[1:].tolist()


@pytest.mark.parametrize(("cases", "tolerance"), CASES)
def test_the_claim_for_twelve_epochs_is_wrong_as_often_as_it_says(cases: int, tolerance: float) -> None:
    assert abs(share_found(family_p_value, cases) - 0.05) < tolerance


@pytest.mark.parametrize("cases", [SOME, pytest.param(2000, marks=pytest.mark.system)])
def test_looking_for_the_best_epoch_or_dividing_by_the_nulls_spread_is_wrong_too_often(cases: int) -> None:
    assert share_found(smallest_p_value, cases) > 0.25
    assert share_found(family_p_value_by_the_nulls_spread, cases) > 0.1


def wrong_epoch(values: np.ndarray, null: np.ndarray) -> float:
    """The least p of an epoch without an effect, adjusted for all of them."""
    statistics, maxima = family_statistics(values.tolist(), null.tolist())
    without = np.delete(statistics, len(values) // 2)
    return p_value(float(without.max()), maxima.tolist())


@pytest.mark.parametrize("effect", [3.0, 100.0])
@pytest.mark.parametrize("cases", [SOME, pytest.param(2000, marks=pytest.mark.system)])
def test_an_epoch_without_an_effect_is_not_named_because_another_has_one(cases: int, effect: float) -> None:
    assert share_found(wrong_epoch, cases, effect=effect) < 0.075


@pytest.mark.parametrize("cases", [SOME, pytest.param(2000, marks=pytest.mark.system)])
def test_a_known_weak_effect_is_found_as_often_as_theory_says(cases: int) -> None:
    """An effect of 3 spreads at one epoch; a test that knew the epoch and the spread would find it in 85 %."""
    alone = share_found(family_p_value, cases, effect=3.0, num_epochs=1)
    assert abs(alone - power_of_one(3.0)) < 0.07
    assert 0.35 < share_found(family_p_value, cases, effect=3.0) < alone
    assert share_found(family_p_value, cases, effect=6.0) > 0.95


def power_of_one(effect: float, num_null: int = 19) -> float:
    """The probability that one normal value exceeds 19 others in absolute value."""
    grid = np.linspace(-8, 12, 20001)
    largest = (2 * scipy.stats.norm.cdf(np.abs(grid)) - 1) ** num_null
    return float(np.trapezoid(scipy.stats.norm.pdf(grid - effect) * largest, grid))


def test_ties_count_as_at_least_as_large() -> None:
    assert p_value(0.0, [0.0] * 19) == 1.0
    assert p_value(-2.0, [1.0, 2.0, -3.0]) == 3 / 4
    assert p_value(5.0, [1.0] * 19) == 1 / 20


def test_what_is_undefined_shows_nothing() -> None:
    nan = float("nan")
    assert p_value(nan, [0.1] * 19) == 1.0
    assert p_value(5.0, [nan, 0.1, 0.1]) == 2 / 4
    statistics, maxima = family_statistics([nan, 5.0], [[0.1, 0.1], [0.2, nan], [0.1, 0.2]])
    assert statistics.tolist() == [0.0, 0.0]
    assert maxima.max() == np.inf


def test_spread_and_interval_of_something_undefined_are_undefined() -> None:
    nan = float("nan")
    assert np.isnan(standard_deviation([1.0, nan, 2.0]))
    assert np.isnan(standard_deviation([1.0, np.inf]))
    assert np.isnan(t_interval([1.0, nan, 2.0])).all()
    assert standard_deviation([1.0, 3.0]) == pytest.approx(2**0.5)


def test_equal_runs_tie_whatever_the_order_of_a_sum() -> None:
    chance = np.random.Generator(np.random.Philox(4))
    for _ in range(200):
        null = chance.standard_normal((19, 3))
        assert family_p_value(null[7], null) >= 2 / 20


def test_a_statistic_is_a_multiple_of_the_others_root_mean_square() -> None:
    statistics, maxima = family_statistics([3.0, 0.0], [[1.0, 2.0], [-1.0, 2.0]])
    assert statistics.tolist() == pytest.approx([3.0, 0.0])
    assert maxima.tolist() == pytest.approx([2 / np.sqrt(2), 2 / np.sqrt(2)])


def test_an_epoch_in_which_nothing_differs_says_nothing() -> None:
    statistics, maxima = family_statistics([0.0, 1.0], [[0.0, 0.0], [0.0, 0.0]])
    assert statistics.tolist() == [0.0, np.inf]
    assert maxima.tolist() == [0.0, 0.0]


def test_p_values_are_adjusted_only_where_something_can_be_found() -> None:
    assert null_needed(12) == 239
    assert null_needed(1) == 19
    least = [1 / 240] + [0.9] * 11
    found = adjusted_p_values(least, 239)
    assert found is not None
    assert found[0] == pytest.approx(0.05)
    assert adjusted_p_values(least, 238) is None
    assert scipy.stats.false_discovery_control([1 / 239] + [0.9] * 11).min() > 0.05  # it could find nothing


def test_the_interval_over_baselines_is_students() -> None:
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.302652729749 / 3**0.5, 2 + 4.302652729749 / 3**0.5))


@pytest.mark.parametrize("cases", [SOME, pytest.param(2000, marks=pytest.mark.system)])
def test_the_interval_over_three_baselines_covers_the_mean_in_19_of_20(cases: int) -> None:
    chance = np.random.Generator(np.random.Philox(3))
    intervals = [t_interval((0.7 + chance.standard_normal(3)).tolist()) for _ in range(cases)]
    assert abs(np.mean([low <= 0.7 <= high for low, high in intervals]) - 0.95) < 0.03


def test_the_signed_rank_test_waits_for_six_baselines() -> None:
    assert signed_rank_p_value([1.0, 2.0, 3.0, 4.0, 5.0]) is None
    assert signed_rank_p_value([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == pytest.approx(2 / 2**6)
    assert signed_rank_p_value([0.0] * 6) is None
