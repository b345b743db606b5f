"""Functions of single numbers, with gradients.

They take and return tensors of any shape, float32 or float64. Each is computed in float64 by `elementary.py` and
rounded once to its input's dtype. What backward needs is the derivative, rounded to that dtype too, so that
backward is one multiplication, of the gradient with it. Definitions are float64 operations from left to right.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from clip_hba_behavior.exact.autograd import apply
from clip_hba_behavior.exact.elementary import (
    LOG2_E,
    complementary_error,
    error_function,
    power_of_two_,
    square_root,
)
from clip_hba_behavior.exact.grid import for_each_block, widen

# Values for a block of float64 numbers, which may be overwritten, and what makes their derivatives afterwards.
Derivative = Callable[[], torch.Tensor]
Function = Callable[[torch.Tensor], tuple[torch.Tensor, Derivative]]

_LN_2 = 0.6931471805599453
_TWO_OVER_ROOT_PI = 1.1283791670955126
_ONE_OVER_ROOT_2 = 0.7071067811865476
_ONE_OVER_ROOT_2_PI = 0.3989422804014327
_SLOPE = 1.702


def sqrt(values: torch.Tensor) -> torch.Tensor:
    """Return square roots; NaN for negative values.

    Definition: `elementary.square_root`, four of Heron's steps. Accuracy: of float32 values the correctly rounded
    root; of float64 values one unit in the last place. The derivative is `0.5 / sqrt(x)`.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return _rounded(values, _sqrt)


def exp2(values: torch.Tensor) -> torch.Tensor:
    """Return 2 to the values, which are clamped to -1000 and 1000.

    Definition: `elementary.power_of_two_`; the derivative is that times `ln(2)`. Accuracy: 2**-38 relative before
    the rounding.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return _rounded(values, _exp2)


def exp(values: torch.Tensor) -> torch.Tensor:
    """Return e to the values, as `2**(x * log2(e))`, its own derivative; otherwise as `exact.exp2`.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return _rounded(values, _exp)


def erf(values: torch.Tensor) -> torch.Tensor:
    """Return the error function.

    Definition: `elementary.error_function`; the derivative is `2**((x * x) * -log2(e)) * (2 / sqrt(pi))`.
    Accuracy: 2**-37 relative before the rounding.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return _rounded(values, _erf)


def gelu(values: torch.Tensor) -> torch.Tensor:
    """Return `x * Phi(x)`, Phi the normal distribution: GELU in its exact form.

    Definition: `tail = erfc(|x| * sqrt(1 / 2)) * 0.5` by `elementary.complementary_error`; Phi is the tail for x <
    0 and `1 - tail` otherwise; the value is `x * Phi`, the derivative `2**((x * x) * (-0.5 * log2(e))) * (1 /
    sqrt(2 pi)) * x + Phi`. Accuracy: 2**-36 relative before the rounding, also far below zero (to x = -36).

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return _rounded(values, _gelu)


def quick_gelu(values: torch.Tensor) -> torch.Tensor:
    """Return `x * sigmoid(1.702 x)`, the activation of OpenAI's CLIP.

    Definition: `s = 1 / (1 + 2**(x * (-1.702 * log2(e))))` by `elementary.power_of_two_`; the value is `v = x *
    s`, the derivative `(1 - s) * 1.702 * v + s`. Accuracy: 2**-38 relative before the rounding.

    Raises:
        ValueError: the dtype is neither float32 nor float64.
    """
    return _rounded(values, _quick_gelu)


def _sqrt(x: torch.Tensor) -> tuple[torch.Tensor, Derivative]:
    root = square_root(x)
    return root, lambda: root.reciprocal().mul_(0.5)


def _exp2(x: torch.Tensor) -> tuple[torch.Tensor, Derivative]:
    power = power_of_two_(x)
    return power, lambda: power.mul_(_LN_2)


def _exp(x: torch.Tensor) -> tuple[torch.Tensor, Derivative]:
    power = power_of_two_(x.mul_(LOG2_E))
    return power, lambda: power


def _erf(x: torch.Tensor) -> tuple[torch.Tensor, Derivative]:
    return error_function(x), lambda: power_of_two_((x * x).mul_(-LOG2_E)).mul_(_TWO_OVER_ROOT_PI)


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, Derivative]:
    tail = complementary_error(x.abs().mul_(_ONE_OVER_ROOT_2)).mul_(0.5)
    phi = torch.where(x < 0, tail, 1.0 - tail)

    def derivative() -> torch.Tensor:
        return power_of_two_((x * x).mul_(-0.5 * LOG2_E)).mul_(_ONE_OVER_ROOT_2_PI).mul_(x).add_(phi)

    return x * phi, derivative


def _quick_gelu(x: torch.Tensor) -> tuple[torch.Tensor, Derivative]:
    power = power_of_two_(x * (-_SLOPE * LOG2_E))
    sigmoid = power.add_(1.0).reciprocal_()
    value = x.mul_(sigmoid)
    return value, lambda: (1.0 - sigmoid).mul_(_SLOPE).mul_(value).add_(sigmoid)


def _rounded(values: torch.Tensor, function: Function) -> torch.Tensor:
    return apply(_Pointwise, values, function)


class _Pointwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, function: Function) -> torch.Tensor:
        flat = values.reshape(-1)
        result = torch.empty_like(flat)
        slopes = torch.empty_like(flat) if ctx.needs_input_grad[0] else None

        def compute(block: slice) -> None:
            value, derivative = function(widen(flat[block]))
            result[block].copy_(value)
            if slopes is not None:
                slopes[block].copy_(derivative())

        for_each_block(flat[:, None], compute)
        if slopes is not None:
            ctx.save_for_backward(slopes.view(values.shape))
        return result.view(values.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return grad * slopes, None
