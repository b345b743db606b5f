import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.verification.commands import parse_epochs


@pytest.mark.parametrize(
    ("text", "epochs"),
    [
        ("all", None),
        (" all ", None),
        ("3", [3]),
        ("10,3", [3, 10]),
        ("3,3,2-4", [2, 3, 4]),
        (" 3 , 20-22 ", [3, 20, 21, 22]),
        ("5-5", [5]),
    ],
)
def test_epochs_are_read_in_order_each_once(text: str, epochs: list[int] | None) -> None:
    assert parse_epochs(text) == epochs


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "3,", "five", "1.5", "9-5", "1-", "1-2-3", "²", "1000000", "all,3"]
)
def test_anything_else_is_refused_and_shown(text: str) -> None:
    with pytest.raises(BadInputError, match="expected such as 3,10,20 or 5-9, or all") as caught:
        parse_epochs(text)
    assert f"--epochs {text}: found " in str(caught.value)
