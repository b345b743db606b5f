"""Copies of live objects that share no memory with them, and the way back."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from clip_hba_behavior.reproducibility.state.errors import BadInputError


def snapshot(value: Any) -> Any:
    """Copy nested containers with every tensor detached, on the CPU and in memory of its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if set(map(type, value)) == {int}:  # a generator's state has 625, none of which can change
            return type(value)(value)
        return type(value)(snapshot(item) for item in value)
    return copy.deepcopy(value)


def restore_parameters(live: Mapping[str, torch.Tensor], saved: Mapping[str, torch.Tensor]) -> None:
    """Copy saved parameters into the live ones, once all names, shapes and dtypes fit.

    Raises:
        BadInputError: names which parameter is missing, unknown or of another shape or dtype.
            Nothing is written then.
    """
    problems = [f"{name}: not in the checkpoint" for name in live if name not in saved]
    problems += [f"{name}: in the checkpoint, not in the model" for name in saved if name not in live]
    for name in live:
        if name in saved:
            found = (tuple(saved[name].shape), saved[name].dtype)
            expected = (tuple(live[name].shape), live[name].dtype)
            if found != expected:
                problems.append(f"{name}\n    in checkpoint: {found}\n    in model:      {expected}")
    if problems:
        raise BadInputError(
            "the checkpoint does not fit the model\n  "
            + "\n  ".join(problems[:6])
            + (f"\n  and {len(problems) - 6} more" if len(problems) > 6 else "")
            + "\n  load it with the rank, layers and backbone that it was made with"
        )
    with torch.no_grad():
        for name, parameter in live.items():
            parameter.copy_(saved[name])


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Load a saved optimizer state without sharing its memory.

    `load_state_dict` keeps references to the tensors it is given, and the next step would write
    into the saved state.

    Raises:
        BadInputError: the saved state is not one of this optimizer over these parameters.
    """
    try:
        optimizer.load_state_dict(copy.deepcopy(dict(saved)))
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f"the checkpoint's optimizer state does not fit the model: {error}") from error
