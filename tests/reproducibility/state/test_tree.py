import math
from collections import Counter, OrderedDict
from enum import Enum, IntEnum
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_hba_behavior.reproducibility import digest
from clip_hba_behavior.reproducibility.state import safe_load
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.tree import DTYPES, copy_tree, to_bytes, tree_digest, tree_leaves

# Trees that a careless encoding takes for each other.
DIFFERENT: list[Any] = [
    None, {}, [], (), "", b"", 0, 0.0, -0.0, False, math.nan, "0", {"a": 1}, {"a": 1.0}, {"a": True}, {"a": [1]},
    {"a": (1,)}, {"a": {0: 1}}, {"a": {"0": 1}}, {"a/b": 1}, {"a": {"b": 1}}, {"a[0]": 1}, {"a": [1, "x"]},
    {"a": (1, "x")}, {"a[0]": 1, "a[1]": "x"}, {"a": [], "b": {}}, {"a": {}, "b": []}, {"": 1}, {"": {"": 1}},
    [None], [[]], [[], []], [{}], {"a": None}, {"a~sb": 1}, {"a~b": 1}, {"a": b"x"}, {"a": "x"}, [0, 1],
    (0, 1), [0, True],
    torch.zeros(2), torch.zeros(2, dtype=torch.int32), torch.zeros(1, 2), torch.zeros(0), torch.tensor(0.0),
    torch.tensor(-0.0), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16),
]  # fmt: skip


def test_no_two_trees_share_a_digest() -> None:
    digests = [tree_digest(each) for each in DIFFERENT]
    for first, second in combinations(range(len(DIFFERENT)), 2):
        assert digests[first] != digests[second], (DIFFERENT[first], DIFFERENT[second])


def test_the_digest_of_a_tree_is_this_one_forever() -> None:
    tree = {"weights": torch.arange(3, dtype=torch.float32), 5: [1.5, None, "x"], "n": (1, 2)}
    assert tree_digest(tree) == "188b60cf15b28872fe9385abd53672853fd197436c46caf353bb8e6d421292fa"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_copied_digested_and_read_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([0, 1, 1]).to(dtype)
    other = torch.tensor([0, 1, 0]).to(dtype)
    assert tree_digest({"x": copy_tree(tensor)}) == tree_digest({"x": tensor}) != tree_digest({"x": other})
    (tmp_path / "file").write_bytes(to_bytes({"x": tensor}))
    assert tree_digest(safe_load.load(tmp_path / "file")) == tree_digest({"x": tensor})


def test_order_of_keys_does_not_count_and_containers_become_plain() -> None:
    class Kind(IntEnum):
        A = 1

    given = OrderedDict(b=Counter({3: 2}), a=[np.float64(0.5), Kind.A])
    copied = copy_tree(given)
    assert copied == {"b": {3: 2}, "a": [0.5, 1]}
    assert [type(each) for each in (copied, copied["b"], *copied["a"])] == [dict, dict, float, int]
    assert tree_digest(copied) == tree_digest({"a": [0.5, 1], "b": {3: 2}})


def test_a_copy_shares_no_memory() -> None:
    tensor = torch.zeros(3)
    copied = copy_tree({"x": [tensor]})
    tensor += 1
    assert copied["x"][0].tolist() == [0, 0, 0]


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


class Colour(str, Enum):  # noqa: UP042  # a StrEnum is its value as text already
    RED = "red"


class Image(torch.Tensor):
    """Such as torchvision's."""


@pytest.mark.parametrize(
    "value",
    [b"", bytes(range(256)), "ä🙂\n", 2**1999, -(2**1999), nested(38), [0.5] * 200_000, Colour.RED,
     {Colour.RED: 1}, torch.zeros(2, 3).as_subclass(Image), torch.ones(2, dtype=torch.complex64).conj(),
     torch.zeros(3).expand(2, 3),
     torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last), torch.randn(3, 4).T, torch.randn(9)[::2],
     list(range(50_000)), [{"a": "one text that stands often " * 9, "b": b"x" * 2000}] * 2000,
     torch.nn.Parameter(torch.zeros(2))],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_copied_can_be_read_back(value: Any, tmp_path: Path) -> None:
    copied = copy_tree({"x": value})
    content = to_bytes(copied)
    safe_load.refuse_unreadable(content, tmp_path / "file", "file")
    (tmp_path / "file").write_bytes(content)
    loaded = safe_load.load(tmp_path / "file")
    assert tree_digest(loaded) == tree_digest(copied)
    if isinstance(value, torch.Tensor):
        assert loaded["x"].stride() == copied["x"].stride()
        assert torch.equal(loaded["x"], value.detach().as_subclass(torch.Tensor))


def test_a_member_of_an_enumeration_becomes_its_value() -> None:
    assert copy_tree([Colour.RED]) == ["red"]


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_load, "_MAX_OPCODES", 1000)
    content = to_bytes({"x": [0.5] * 5000})
    with pytest.raises(BadInputError, match=r"x\.pth was not written, .* more than 1000 parts"):
        safe_load.refuse_unreadable(content, tmp_path / "x.pth", "state")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [object()]}, r"state/a/0 is a builtins\.object"),
        ({1.5: 2}, r"key that is neither text nor integer: 1\.5"),
        ({True: 2}, "key that is neither text nor integer: True"),
        ({"a": torch.zeros(2).to_sparse()}, r"cannot be saved: Tensor, torch\.sparse_coo"),
        ({"a": np.zeros(2)}, r"state/a is a numpy\.ndarray"),
        ({"a": {1, 2}}, r"state/a is a builtins\.set"),
        # what torch.save writes, and a reader that trusts nobody refuses
        ({"a": bytes(2497)}, r"state/a cannot be saved\n  found:    2497 bytes"),
        ({"a": "\ud800"}, "state/a is a text that no file can hold"),
        ({"\ud800": 1}, "a key of state is a text that no file can hold"),
        ({"a": 2**2000}, "state/a cannot be saved: an integer of 2001 bits"),
        (torch.zeros((1,) * 26), "cannot be saved: .* 26 dimensions"),
        (nested(42), "nested more than 40 deep"),
        ({"a": torch.zeros(2, device="meta")}, r"state/a is a tensor that cannot be saved: .* on meta"),
        (torch.nn.LazyLinear(3).state_dict(keep_vars=True), "state/weight has no shape yet"),
    ],
)
def test_what_has_no_encoding_is_refused_by_its_place(value: object, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        copy_tree(value)


def test_leaves_are_named_by_their_path() -> None:
    tree = {
        "model": {"0.weight": 1.0},
        "optimizer": {"state": {0: {"step": 2.0}}, "groups": [{"lr": 0.1}, ("x", 1)]},
    }
    assert [path for path, _ in tree_leaves(tree)] == [
        "/model/0.weight",
        "/optimizer/state{0}/step",
        "/optimizer/groups[0]/lr",
        "/optimizer/groups[1](0)",
        "/optimizer/groups[1](1)",
    ]


def test_the_digest_of_data_tells_values_and_files_apart(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a").write_bytes(b"1")
    (tmp_path / "data/b").write_bytes(b"2")
    values: list[tuple[Any, ...]] = [
        (np.zeros(2),), (np.zeros(2, np.float32),), (torch.zeros(2),), (np.zeros((1, 2)),),
        (np.zeros(1), np.zeros(1)), ([np.zeros(1), np.zeros(1)],), (1,), ("1",), (tmp_path / "data",),
        (tmp_path / "data/a",),
        (tmp_path / "data/b",), (np.uint16([1]),), (np.int16([1]),), ({"x": np.int16([1])},), (),
    ]  # fmt: skip
    assert len({digest(*each) for each in values}) == len(values)
    before = digest(tmp_path / "data")
    (tmp_path / "data/b").rename(tmp_path / "data/c")
    assert digest(tmp_path / "data") != before
    with pytest.raises(BadInputError, match="there is no file and no directory"):
        digest(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match="an array of object"):
        digest(np.array([object()]))
    with pytest.raises(BadInputError, match=r"value 0 has a key that is neither text nor integer: \(1, 2\)"):
        digest({(1, 2): 1})
    assert digest(bytes(10_000)) != digest(bytes(10_001))  # of any length: nothing of it is written
