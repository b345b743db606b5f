from clip_hba_behavior.training.learning_rate import learning_rate


def rates(schedule: str, num_epochs: int = 12) -> list[float]:
    return [learning_rate(epoch, schedule, 1.0, 0.1, 4, 10) for epoch in range(1, num_epochs + 1)]


def test_constant_is_the_peak_in_every_epoch() -> None:
    assert set(rates("constant")) == {1.0}


def test_cosine_falls_from_the_peak_to_the_minimum_and_stays_there() -> None:
    found = rates("cosine")
    assert found[0] == 1.0
    assert 0.1 < found[9] < 0.13
    assert found[10:] == [0.1, 0.1]
    assert found == sorted(found, reverse=True)
    assert 0.5 < found[4] < 0.75


def test_warm_up_rises_in_equal_steps_and_then_falls() -> None:
    found = rates("warmup_cosine")
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[3:] == sorted(found[3:], reverse=True)
    assert found[10] == 0.1
