"""AdamW by single float64 operations."""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch

from clip_hba_behavior.exact.elementary import square_root
from clip_hba_behavior.exact.grid import F32, F64


class AdamW(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose steps have the same bits everywhere.

    Definition: parameters and both moments are float32, each float64 operation is by itself, from left to right,
    and each of the three is rounded once a step. With the gradient g: `m += (g - m) * (1 - beta1)`; `v = v * beta2
    + (g * g) * (1 - beta2)`; both rounded, and taken as rounded in `p = p * (1 - lr * weight_decay) - m / (sqrt(v)
    * (1 / sqrt(1 - beta2**t)) + eps) * (lr / (1 - beta1**t))`; of v it is `exact.sqrt`'s root, of the number
    IEEE's. The powers of the betas are running products (`beta1_power`, from 1.0, times beta1 in each step), kept
    in the state: the C library's `pow` differs between machines. Accuracy: that of the three roundings;
    `torch.optim.AdamW` in float32 rounds each operation.

    Args:
        params: float32 parameters, or groups of them.
        lr: learning rate; a schedule's should be rounded to few digits, cosines differ between machines.
        betas: decay of the two moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled from the gradient.

    Raises:
        ValueError: a parameter is not float32, or a number is out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"exact.AdamW cannot step with these\n  found:    lr {lr}, betas {betas}, eps {eps}, "
                f"weight_decay {weight_decay}\n  expected: betas from 0 to below 1, the others not negative"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of float32 parameters with settings of its own.

        Raises:
            ValueError: a parameter is not float32.
        """
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            if parameter.dtype != F32:
                raise ValueError(
                    f"exact.AdamW cannot train a parameter of shape {list(parameter.shape)}\n"
                    f"  found:    {parameter.dtype}\n  expected: {F32}"
                )

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Change the parameters that have a gradient by one step; return the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_parameter(parameter, group)
        return loss

    def _step_parameter(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # Python's floats: an optimizer that is loaded turns float64 tensors into float32 ones.
            state.update(
                beta1_power=1.0,
                beta2_power=1.0,
                exp_avg=torch.zeros_like(parameter),
                exp_avg_sq=torch.zeros_like(parameter),
            )
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        state["beta1_power"] *= beta1
        state["beta2_power"] *= beta2
        assert parameter.grad is not None
        grad = parameter.grad.to(F64)
        mean = state["exp_avg"].to(F64)
        square = state["exp_avg_sq"].to(F64)
        state["exp_avg"].copy_(mean + (grad - mean) * (1.0 - beta1))
        state["exp_avg_sq"].copy_(square * beta2 + (grad * grad) * (1.0 - beta2))
        root = square_root(state["exp_avg_sq"].to(F64)) * (1.0 / math.sqrt(1.0 - state["beta2_power"]))
        change = state["exp_avg"].to(F64) / (root + group["eps"])
        kept = parameter.to(F64) * (1.0 - lr * group["weight_decay"])
        parameter.copy_(kept - change * (lr / (1.0 - state["beta1_power"])))
