"""The training state: everything that changes while a model trains, and nothing else.

`state[t+1] = step(state[t], data, config)`. Resume, fork, verification and recovery are this one
object loaded, stepped and compared; none of them keeps state of its own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from clip_hba_behavior.reproducibility.digest import digest
from clip_hba_behavior.reproducibility.errors import BadInputError
from clip_hba_behavior.reproducibility.rng import RngState


@dataclass(frozen=True)
class TrainingState:
    """A snapshot on the CPU that shares no memory with the live objects.

    Attributes:
        parameters: the trainable parameters by name.
        optimizer_state: `optimizer.state_dict()`.
        rng_state: every random stream now.
        early_stopping_state: `best_test_loss` and `epochs_no_improve`.
        epoch: number of completed epochs; 0 is the state before training.
        step_in_epoch: steps done of the epoch under way; 0 at an epoch's boundary.
        loss_sum: sum of loss x batch length over the steps of the epoch under way, in float64.
        num_samples: how many samples `loss_sum` covers.
        epoch_start_rng_state: the streams as they were when the epoch under way began, from which
            its batch order is drawn again; None at an epoch's boundary.
        metrics: what the last completed epoch reported (its CSV row).
    """

    parameters: dict[str, torch.Tensor]
    optimizer_state: dict[str, Any]
    rng_state: RngState
    early_stopping_state: dict[str, float | int]
    epoch: int = 0
    step_in_epoch: int = 0
    loss_sum: float = 0.0
    num_samples: int = 0
    epoch_start_rng_state: RngState | None = None
    metrics: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields by name, not copied."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def digest(self) -> str:
        """Return the state digest: SHA-256 over the canonical encoding of every field."""
        return digest(self.as_dict())


def snapshot(value: Any) -> Any:
    """Copy nested containers with every tensor detached, on the CPU and in memory of its own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
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
