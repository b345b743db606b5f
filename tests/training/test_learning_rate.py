import math
from decimal import localcontext

import mpmath
import pytest

from clip_hba_behavior.training.learning_rate import cosine_of, learning_rate


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


# --- portable arithmetic ------------------------------------------------------------------------------


def portable_rates(schedule: str, num_epochs: int = 12) -> list[float]:
    return [learning_rate(epoch, schedule, 1.0, 0.1, 4, 10, "portable") for epoch in range(1, num_epochs + 1)]


def test_the_portable_cosine_is_the_nearest_number() -> None:
    with mpmath.workdps(60):
        for denominator in (*range(1, 61), 299, 500, 999, 100_003):
            for numerator in {*range(min(denominator, 60)), *range(denominator // 2 - 2, denominator // 2 + 3)}:
                if 0 <= numerator <= denominator:
                    expected = float(mpmath.cospi(mpmath.mpf(numerator) / denominator))
                    found = cosine_of(numerator, denominator)
                    assert found == expected, (numerator, denominator)
                    assert found == -cosine_of(denominator - numerator, denominator)
                    assert found == pytest.approx(math.cos(math.pi * (numerator / denominator)), abs=5e-16)


def test_the_portable_cosine_is_exact_where_it_is_rational() -> None:
    assert [cosine_of(numerator, 12) for numerator in (0, 4, 6, 8, 12)] == [1.0, 0.5, 0.0, -0.5, -1.0]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "warmup_cosine"])
def test_portable_rates_are_the_native_ones_but_for_the_last_digits(schedule: str) -> None:
    assert portable_rates(schedule) == pytest.approx(rates(schedule), rel=1e-15, abs=0)
    assert portable_rates(schedule)[10:] == rates(schedule)[10:]


def test_native_rates_keep_the_c_librarys_cosine() -> None:
    expected = [0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * min(1.0, epoch / 10))) for epoch in range(12)]
    assert rates("cosine") == expected


def test_portable_rates_have_these_bits_forever() -> None:
    found = [
        learning_rate(epoch, "warmup_cosine", 3e-4, 1e-6, 3, 50, "portable") for epoch in (1, 2, 3, 4, 20, 50, 51)
    ]
    assert [rate.hex() for rate in found] == [
        "0x1.a36e2eb1c432cp-14",
        "0x1.a36e2eb1c432cp-13",
        "0x1.3a92a30553261p-12",
        "0x1.3a3cb68953ae8p-12",
        "0x1.c64a22db8c33cp-13",
        "0x1.625bf60ad6700p-20",
        "0x1.0c6f7a0b5ed8dp-20",
    ]
    assert [cosine_of(numerator, 7).hex() for numerator in (1, 2, 3)] == [
        "0x1.cd4bca9cb5c71p-1",
        "0x1.3f3a0e28bedd1p-1",
        "0x1.c7b90e3024582p-3",
    ]


def test_another_decimal_context_changes_no_rate() -> None:
    usual = cosine_of(3, 7)
    with localcontext() as context:
        context.prec, context.Emin, context.rounding = 3, -5, "ROUND_UP"
        assert cosine_of(3, 7) == usual
