"""How much work a task of a job array takes."""

import pytest

from clip_hba_behavior.sweep.plan import SlurmSettings
from clip_hba_behavior.sweep.sizing import share_out


def settings(**keys: object) -> SlurmSettings:
    return SlurmSettings.model_validate({"time": "01:00:00"} | keys)


def test_a_task_is_filled_up_to_most_of_its_time_limit() -> None:
    seconds = [600.0] * 20  # 0.8 of an hour less signal and start: 46 minutes, four chains
    shares = share_out(seconds, settings(), "chain")
    assert [len(each) for each in shares.tasks] == [4, 4, 4, 4, 4]
    assert [number for each in shares.tasks for number in each] == list(range(20))
    assert shares.reason == (
        "a task takes up to 4 chains, about 40 min of its 01:00:00 by the baseline's seconds per epoch; "
        "slurm.chains_per_task sets another number"
    )


def test_long_and_short_pieces_make_tasks_of_about_the_same_time() -> None:
    seconds = [float(each) for each in range(1, 301)]
    shares = share_out(seconds, settings(time="02:00:00"), "chain")
    sums = [sum(seconds[number] for number in each) for each in shares.tasks]
    assert len(sums) == 8
    assert max(sums) < 0.8 * (7200 - 120) + 300
    assert max(sums) - min(sums) < 2 * 300
    assert sorted(number for each in shares.tasks for number in each) == list(range(300))


def test_work_that_fits_one_task_is_one_unless_several_may_run_at_once() -> None:
    assert share_out([10.0] * 12, settings(), "chain").tasks == [list(range(12))]
    assert share_out([10.0] * 12, settings(throttle=4), "chain").tasks == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
        [9, 10, 11],
    ]
    assert share_out([10.0] * 2, settings(throttle=4), "chain").tasks == [[0], [1]]


def test_a_piece_that_outlasts_the_limit_has_a_task_of_its_own() -> None:
    assert share_out([9000.0] * 3, settings(), "chain").tasks == [[0], [1], [2]]
    assert share_out([1.0] * 3, settings(time="00:02:00"), "chain").tasks == [[0], [1], [2]]  # no time to start


def test_the_key_decides_and_without_times_a_task_takes_one() -> None:
    shares = share_out([1.0] * 5, settings(chains_per_task=2), "chain")
    assert shares.tasks == [[0, 1], [2, 3], [4]]
    assert shares.reason == "a task takes 2 chains: slurm.chains_per_task"
    shares = share_out([1.0, None], settings(), "chain")
    assert shares.tasks == [[0], [1]]
    assert shares.reason == "a task takes 1 chain: a baseline's log tells no times"


def test_epochs_that_round_to_no_time_are_divided_all_the_same() -> None:
    assert share_out([0.0] * 4, settings(throttle=2), "chain").tasks == [[0, 1], [2, 3]]


@pytest.mark.parametrize("number", [1, 7, 1000])
def test_every_piece_is_in_one_task(number: int) -> None:
    shares = share_out([100.0 * (each % 7) for each in range(number)], settings(throttle=3), "chain")
    assert [each for task in shares.tasks for each in task] == list(range(number))


def test_without_a_time_limit_as_few_tasks_as_may_run_at_once() -> None:
    assert share_out([3.0, 4.0, 5.0], settings(time="UNLIMITED"), "chain").tasks == [[0, 1, 2]]
    assert share_out([3.0, 4.0, 5.0], settings(time="UNLIMITED", throttle=2), "chain").tasks == [[0, 1], [2]]
