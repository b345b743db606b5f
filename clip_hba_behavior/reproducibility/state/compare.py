"""What differs between two states, leaf by leaf, in raw bytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from clip_hba_behavior.reproducibility.state.digest import encode, leaves, tensor_bytes


@dataclass(frozen=True)
class LeafDifference:
    """One leaf that is not the same in both.

    Attributes:
        name: the leaf's name, parts joined with `/`.
        what: for a person: the two values, or for a tensor how many elements differ.
        largest: the largest absolute difference of a floating-point tensor; None where there is none.
        first: the value in the first, of a scalar that both have.
        second: the value in the second.
        is_tensor: whether it is a tensor in either.
    """

    name: str
    what: str
    largest: float | None = None
    first: Any = None
    second: Any = None
    is_tensor: bool = False


@dataclass(frozen=True)
class Comparison:
    """The outcome: how much was compared, and every difference."""

    num_leaves: int
    num_tensors: int
    differences: tuple[LeafDifference, ...]
    num_differing_tensors: int

    def equal(self) -> bool:
        """Whether not one bit differs."""
        return not self.differences


def compare(first: object, second: object) -> Comparison:
    """Compare two nested structures in the raw bytes of every leaf."""
    return compare_leaves(dict(leaves(first)), dict(leaves(second)))


def compare_leaves(left: Mapping[str, Any], right: Mapping[str, Any]) -> Comparison:
    """Compare the leaves of two structures, by name, in their raw bytes."""
    names = sorted(left.keys() | right.keys())
    tensors = {name for name in names if isinstance(left.get(name, right.get(name)), torch.Tensor)}
    differences = []
    for name in names:
        if name not in left or name not in right:
            side = "first" if name in left else "second"
            differences.append(LeafDifference(name, f"only in the {side}", is_tensor=name in tensors))
        elif encode(left[name]) != encode(right[name]):
            differences.append(_describe(name, left[name], right[name]))
    num_differing = sum(each.is_tensor for each in differences)
    return Comparison(len(names), len(tensors), tuple(differences), num_differing)


def _describe(name: str, left: object, right: object) -> LeafDifference:
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        is_tensor = isinstance(left, torch.Tensor)
        return LeafDifference(name, f"{_short(left)} != {_short(right)}", None, left, right, is_tensor)
    if left.shape != right.shape or left.dtype != right.dtype:
        text = f"{left.dtype} {tuple(left.shape)} != {right.dtype} {tuple(right.shape)}"
        return LeafDifference(name, text, is_tensor=True)
    size = left.element_size()
    a, b = tensor_bytes(left), tensor_bytes(right)
    num = sum(a[i : i + size] != b[i : i + size] for i in range(0, len(a), size))
    largest = None
    if left.is_floating_point() and left.numel():
        largest = float((left.double() - right.double()).abs().max())
    return LeafDifference(name, f"{num} of {left.numel()} elements differ", largest, is_tensor=True)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
