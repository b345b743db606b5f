"""What differs between two states, leaf by leaf, in raw bytes."""

from dataclasses import dataclass

import torch

from clip_hba_behavior.reproducibility.state.digest import encode, leaves, tensor_bytes


@dataclass(frozen=True)
class Difference:
    """One leaf that is not the same in both.

    Attributes:
        name: the leaf's name, parts joined with `/`.
        what: for a person: the two values, or for a tensor how many elements differ.
        largest: the largest absolute difference of a floating-point tensor; None where there is none.
    """

    name: str
    what: str
    largest: float | None = None


@dataclass(frozen=True)
class Comparison:
    """The outcome: how much was compared, and every difference."""

    num_leaves: int
    num_tensors: int
    differences: tuple[Difference, ...]
    num_differing_tensors: int

    def equal(self) -> bool:
        """Whether not one bit differs."""
        return not self.differences


def compare(first: object, second: object) -> Comparison:
    """Compare two nested structures in the raw bytes of every leaf."""
    left, right = dict(leaves(first)), dict(leaves(second))
    differences = []
    num_differing_tensors = 0
    names = sorted(left.keys() | right.keys())
    for name in names:
        if name not in left or name not in right:
            differences.append(Difference(name, f"only in the {'first' if name in left else 'second'}"))
        elif encode(left[name]) != encode(right[name]):
            differences.append(_describe(name, left[name], right[name]))
        else:
            continue
        num_differing_tensors += isinstance(left.get(name, right.get(name)), torch.Tensor)
    tensors = [name for name in names if isinstance(left.get(name, right.get(name)), torch.Tensor)]
    return Comparison(len(names), len(tensors), tuple(differences), num_differing_tensors)


def _describe(name: str, left: object, right: object) -> Difference:
    if not isinstance(left, torch.Tensor) or not isinstance(right, torch.Tensor):
        return Difference(name, f"{_short(left)} != {_short(right)}")
    if left.shape != right.shape or left.dtype != right.dtype:
        return Difference(name, f"{left.dtype} {tuple(left.shape)} != {right.dtype} {tuple(right.shape)}")
    size = left.element_size()
    a, b = tensor_bytes(left), tensor_bytes(right)
    num = sum(a[i : i + size] != b[i : i + size] for i in range(0, len(a), size))
    largest = None
    if left.is_floating_point() and left.numel():
        largest = float((left.double() - right.double()).abs().max())
    return Difference(name, f"{num} of {left.numel()} elements differ", largest)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
