import math

import pytest

from clip_hba_behavior.reproducibility.record.epoch import Difference
from clip_hba_behavior.reproducibility.record.judge import Claim, Tolerance, Verdict, judge, worst
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH

TOLERANCE = Tolerance({"loss": 0.01, "test_loss": 0.01}, {"rho": 0.1}, exact=("batch", "rng_state/"))
BITS = Claim("L0")
NEAR = Claim("L2", tolerance=TOLERANCE)
PARTIAL = Claim("L2", tolerance=TOLERANCE, is_complete=False)


def result(name: str, first: float, second: float) -> Difference:
    return Difference(END_OF_EPOCH, "results", name, first, second)


def test_only_equal_bits_of_a_complete_record_are_reproducible() -> None:
    assert judge([], BITS) is judge([], NEAR) is Verdict.REPRODUCIBLE
    assert judge([], PARTIAL) is Verdict.CONSISTENT


def test_where_bits_are_claimed_any_difference_fails() -> None:
    assert judge([result("test_loss", 1.0, math.nextafter(1.0, 2.0))], BITS) is Verdict.DIFFERENT


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (result("test_loss", 1.0, 1.009), Verdict.CONSISTENT),
        (result("test_loss", 1.0, 1.02), Verdict.DIFFERENT),
        (result("test_loss", 0.0, 1e-300), Verdict.DIFFERENT),
        (result("rho", 0.5, 0.59), Verdict.CONSISTENT),
        (result("rho", 0.5, 0.61), Verdict.DIFFERENT),
        (result("rho", 0.5, math.nan), Verdict.DIFFERENT),
        (Difference(END_OF_EPOCH, "state", "metrics/test_loss", 1.0, 1.02), Verdict.DIFFERENT),
        (Difference(3, "ledger", "loss", 1.0, 1.005), Verdict.CONSISTENT),
        (Difference(3, "ledger", "loss", 1.0, 2.0), Verdict.DIFFERENT),
        (Difference(END_OF_EPOCH, "ledger", "metrics/test_loss", "1.0", 1.0), Verdict.DIFFERENT),
        (Difference(END_OF_EPOCH, "ledger", "metrics/test_loss", None, 1.0), Verdict.DIFFERENT),
        (Difference(END_OF_EPOCH, "state", "metrics/perturb_type", "none", "noise"), Verdict.DIFFERENT),
        # its effect shows in the results
        (Difference(END_OF_EPOCH, "state", "parameters/m", largest=1e9), Verdict.CONSISTENT),
        (Difference(3, "ledger", "batch", "a", "b"), Verdict.DIFFERENT),
        (Difference(END_OF_EPOCH, "state", "rng_state/torch"), Verdict.DIFFERENT),
        (Difference(END_OF_EPOCH, "records", "the file was damaged"), Verdict.DIFFERENT),
    ],
    ids=lambda value: f"{value.source} {value.name}" if isinstance(value, Difference) else str(value),
)
def test_a_tolerance_permits_what_it_names_and_no_more(difference: Difference, verdict: Verdict) -> None:
    assert judge([difference], NEAR) is verdict
    assert judge([difference, result("test_loss", 1.0, 1.5)], NEAR) is Verdict.DIFFERENT


def test_a_tolerance_for_results_alone_leaves_states_to_the_bit() -> None:
    claim = Claim("L2", tolerance=Tolerance({"test_loss": 0.01}, sources=("results",)), is_complete=False)
    assert judge([result("test_loss", 1.0, 1.001)], claim) is Verdict.CONSISTENT
    assert judge([Difference(END_OF_EPOCH, "state", "parameters/m", largest=1e-9)], claim) is Verdict.DIFFERENT


def test_the_worst_verdict_counts_for_all() -> None:
    assert worst([Verdict.REPRODUCIBLE, Verdict.CONSISTENT]) is Verdict.CONSISTENT
    assert worst([Verdict.UNTESTED, Verdict.CONSISTENT]) is Verdict.UNTESTED
    assert worst([Verdict.UNTESTED, Verdict.DIFFERENT]) is Verdict.DIFFERENT
    assert worst([]) is Verdict.UNTESTED
