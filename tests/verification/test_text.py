"""What a verification prints: a difference is never shown as none."""

import pytest

from clip_hba_behavior.reproducibility.record.judge import Verdict
from clip_hba_behavior.verification.outcome import EpochOutcome, Metric, Verification, percent
from clip_hba_behavior.verification.text import epoch_block, summary


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0.00%"),
        (0.0123, "1.23%"),
        (1.5, "150.00%"),
        (4e-5, "0.004%"),
        (3e-8, "0.000003%"),
        (2e-16, "0.00000000000002%"),
        (float("inf"), "inf%"),
        (float("nan"), "nan%"),
    ],
)
def test_a_share_has_as_many_digits_as_it_needs(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_small_difference_is_seen_in_block_and_table() -> None:
    metrics = (
        Metric("train_loss", "training_res.csv", 1.0, 1.0 + 3e-8),
        Metric("test_loss", "training_res.csv", 1.0, 1.0),
    )
    outcome = EpochOutcome(3, Verdict.DIFFERENT, metrics=metrics, num_differing_tensors=0)
    assert "Train Loss:  0.000003% difference\n   Test Loss:   0.00% difference" in epoch_block(outcome)
    table = summary(Verification({}, (outcome,)))
    assert "differing" in table
    assert "0.000003%" in table
    assert max(len(line) for line in table.splitlines() if "epoch" in line or "not reproducible" in line) <= 80
    assert "(0.000003%)" in metrics[0].line()
