"""When a run recovered, and the Kaplan-Meier median over runs of which some did not."""

import math
import random
import statistics

import pytest

from clip_hba_behavior.sweep.recovery import kaplan_meier_median, recovery_of

# of the trial of Freireich et al. (1963), as every textbook of survival analysis has it: weeks of remission
TREATED = [6, 6, 6, 6, 7, 9, 10, 10, 11, 13, 16, 17, 19, 20, 22, 23, 25, 32, 32, 34, 35]
STILL_IN_REMISSION = [number in (3, 5, 7, 8, 11, 12, 13, 16, 17, 18, 19, 20) for number in range(21)]
PLACEBO = [1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23]


def recovery(inside: str, first: int = 3, length: int = 1, band_epochs: int = 1) -> tuple[int | None, int | None]:
    """Of a run from its first perturbed epoch on; `x` is an epoch outside the band, `-` one within."""
    losses = {first + number: 1.5 if each == "x" else 1.01 for number, each in enumerate(inside)}
    found = recovery_of(losses, dict.fromkeys(losses, 1.0), first, length, 0.02, band_epochs)
    assert found.censored is (found.after_window is None)
    return found.after_window, found.after_start


@pytest.mark.parametrize(
    ("inside", "length", "band_epochs", "expected"),
    [
        ("xxx---", 1, 1, (3, 3)),
        ("xxx---", 1, 3, (3, 3)),
        ("xxx---", 2, 1, (2, 3)),  # from the window's end, and from its beginning
        ("x-x---", 1, 1, (1, 1)),  # it enters and leaves again
        ("x-x---", 1, 2, (3, 3)),
        ("x-x--x", 1, 3, (None, None)),
        ("xxxx--", 1, 3, (None, None)),  # within at the end, but not seen to stay
        ("xxxx--", 1, 2, (4, 4)),
        ("x", 1, 1, (None, None)),
        ("x--xxx", 3, 1, (None, None)),  # within the window nothing recovers
        ("------", 1, 3, (1, 1)),
    ],
)
def test_a_run_has_recovered_when_it_enters_the_band_and_stays(
    inside: str, length: int, band_epochs: int, expected: tuple[int | None, int | None]
) -> None:
    assert recovery(inside, length=length, band_epochs=band_epochs) == expected


def test_a_censored_run_is_followed_to_the_last_epoch_in_which_recovery_could_be_seen() -> None:
    losses = dict.fromkeys(range(3, 11), 2.0)
    for band_epochs, followed in ((1, 6), (3, 4), (7, 0), (9, 0)):
        found = recovery_of(losses, dict.fromkeys(losses, 1.0), 3, 2, 0.02, band_epochs)
        assert (found.after_window, found.followed, found.censored) == (None, followed, True)
    recovered = recovery_of(losses | dict.fromkeys(range(8, 11), 1.0), dict.fromkeys(losses, 1.0), 3, 2, 0.02, 3)
    assert recovered.after_window == recovered.followed == 4  # the last that counts


def test_a_run_that_never_left_the_band_says_so() -> None:
    inside = recovery_of({3: 1.01, 4: 1.0}, {3: 1.0, 4: 1.0}, 3, 1, 0.02, 1)
    outside = recovery_of({3: 1.03, 4: 1.0}, {3: 1.0, 4: 1.0}, 3, 1, 0.02, 1)
    assert (inside.left_band, outside.left_band) == (False, True)
    assert inside.after_window == outside.after_window == 1


def test_the_median_is_kaplan_and_meiers() -> None:
    assert kaplan_meier_median(TREATED, STILL_IN_REMISSION) == 23
    assert kaplan_meier_median(PLACEBO, [False] * 21) == 8 == statistics.median(PLACEBO)
    assert kaplan_meier_median([1, 2, 3, 4], [False] * 4) == 2  # the first by which half have recovered
    assert kaplan_meier_median([4], [False]) == 4


def test_there_is_no_median_where_fewer_than_half_recover() -> None:
    assert kaplan_meier_median([1, 5, 5], [False, True, True]) is None
    assert kaplan_meier_median([3, 3], [True, True]) is None
    assert kaplan_meier_median([1, 5, 5, 5], [False, False, True, True]) == 5


def test_a_median_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="found 0 times and 0 of censored"):
        kaplan_meier_median([], [])
    with pytest.raises(ValueError, match="found 2 times and 1 of censored"):
        kaplan_meier_median([1, 2], [True])


def test_censoring_does_not_pull_the_median_down_as_leaving_runs_out_does() -> None:
    """Exponential times of median 10, followed for 3 to 30 epochs."""
    chance = random.Random(1)
    true = [chance.expovariate(math.log(2) / 10) for _ in range(4000)]
    ends = [chance.uniform(3, 30) for _ in true]
    times = [min(pair) for pair in zip(true, ends, strict=True)]
    censored = [end < time for time, end in zip(true, ends, strict=True)]
    found = kaplan_meier_median(times, censored)
    assert found is not None
    assert abs(found - 10) < 0.5
    assert statistics.median(time for time, gone in zip(times, censored, strict=True) if not gone) < 8
