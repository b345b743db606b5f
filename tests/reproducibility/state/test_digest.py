import math

import pytest
import torch

from clip_hba_behavior.reproducibility.state.digest import digest, leaves

DIFFERENT = {
    "zero and minus zero": (torch.tensor([0.0]), torch.tensor([-0.0])),
    "dtypes": (torch.zeros(2, dtype=torch.float32), torch.zeros(2, dtype=torch.int32)),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "int and float": (1, 1.0),
    "int and bool": (1, True),
    "text and bytes": ("a", b"a"),
    "one bit": (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),
    "names": ({"a": 1}, {"b": 1}),
    "an empty dict and none": ({"a": {}}, {}),
    "none and absent": ({"a": None}, {}),
    "where one value ends": ({"a": "bc"}, {"ab": "c"}),
    "float zero and minus zero": (0.0, -0.0),
}


@pytest.mark.parametrize("pair", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_values_have_different_digests(pair: tuple[object, object]) -> None:
    first, second = pair
    assert digest({"value": first}) != digest({"value": second})


def test_equal_values_have_equal_digests_whatever_their_memory_looks_like() -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    assert digest({"m": matrix.T.contiguous().T, "n": 1}) == digest({"n": 1, "m": matrix})
    assert digest(torch.tensor([math.nan])) == digest(torch.tensor([math.nan]))


def test_leaves_are_named_by_their_path() -> None:
    value = {"a": [1.5, {"b": None}], "c": (1, 2, 3), "d": {}}
    assert dict(leaves(value)) == {"a/0": 1.5, "a/1/b": None, "c": (1, 2, 3), "d": ()}


def test_a_value_without_an_encoding_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="outer/inner: set has no canonical encoding"):
        digest({"outer": {"inner": {1}}})


def test_the_digest_is_this_one_forever() -> None:
    """Recorded digests must stay comparable: a change of the encoding is a change of the format."""
    value = {"w": torch.arange(3, dtype=torch.float32), "n": 3, "x": 0.1, "s": "é", "t": (1, 2), "none": None}
    assert digest(value) == "a081e6254ae4e670ed0764e146411eaf1b9ee7728bcf68a2ca2e3618ef3de9a9"
