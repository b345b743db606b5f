import pytest

from clip_hba_behavior.reproducibility.record.epoch import Difference
from clip_hba_behavior.verification.causes import cause_of_training


@pytest.mark.parametrize(
    ("precision", "size", "is_rounding"),
    [("float32", 1e-6, True), ("float32", 1e-4, False), ("tf32", 5e-5, True), ("bfloat16", 1e-4, True),
     ("bfloat16", 1e-2, False), (None, 1e-4, False)],
)  # fmt: skip
def test_what_is_as_small_as_rounding_depends_on_the_precision(
    precision: str | None, size: float, is_rounding: bool
) -> None:
    settings = {} if precision is None else {"precision": precision}
    differences = [Difference(1, "ledger", "loss", 1.0, 1.0 + size)]
    cause = cause_of_training(differences, 3, True, False, lambda: (True, []), settings)
    assert ("as small as rounding" in cause) == is_rounding
