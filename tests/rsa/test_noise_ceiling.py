"""The noise ceiling from split halves, against experiments whose truth is known."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from clip_hba_behavior.rsa.noise_ceiling import noise_ceiling
from clip_hba_behavior.rsa.rank_correlation import rank_correlation


def symmetric(rng: np.random.Generator, size: int = 120) -> NDArray[np.float64]:
    upper = np.triu(rng.normal(size=(size, size)), k=1)
    return upper + upper.T


@pytest.mark.parametrize("noise", [0.3, 1.0, 2.0])
def test_the_ceiling_is_what_a_second_experiment_and_the_truth_reach(noise: float) -> None:
    rng = np.random.default_rng(1)
    truth = symmetric(rng)
    halves = [truth + noise * symmetric(rng) for _ in range(4)]
    first, second = (halves[0] + halves[1]) / 2, (halves[2] + halves[3]) / 2
    found = noise_ceiling(halves[0], halves[1])
    assert found.split_half == rank_correlation(halves[0], halves[1])[0]
    assert found.reliability == pytest.approx(rank_correlation(first, second)[0], abs=0.03)
    assert found.maximum == pytest.approx(rank_correlation(truth, first)[0], abs=0.03)
    assert found.split_half < found.reliability < found.maximum < 1


def test_equal_halves_leave_room_for_everything() -> None:
    half = symmetric(np.random.default_rng(2), 10)
    assert noise_ceiling(half, half) == pytest.approx((1, 1, 1))


def test_halves_that_do_not_agree_give_no_ceiling() -> None:
    half = symmetric(np.random.default_rng(3), 10)
    found = noise_ceiling(half, -half)
    assert found.split_half == pytest.approx(-1)
    assert math.isnan(found.reliability)
    assert math.isnan(found.maximum)
    assert math.isnan(noise_ceiling(half, np.ones_like(half)).maximum)
