"""The call of an autograd function, which torch leaves untyped."""

from typing import Any

import torch


def apply(function: Any, *arguments: object) -> torch.Tensor:
    """Return what a `torch.autograd.Function` makes of its arguments."""
    result: torch.Tensor = function.apply(*arguments)
    return result
