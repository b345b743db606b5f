"""The training state: everything that changes while a model trains, and nothing else.

`state[t+1] = step(state[t], data, config)`. Resume, fork, verification and recovery are this one
object loaded, stepped and compared; none of them keeps state of its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from clip_hba_behavior.reproducibility.state.digest import Leaf, digest, leaves
from clip_hba_behavior.reproducibility.state.rng import RngState


@dataclass(frozen=True)
class TrainingState:
    """A snapshot on the CPU that shares no memory with the live objects.

    Attributes:
        parameters: the trainable parameters by name.
        optimizer_state: `optimizer.state_dict()`: `state` by the parameters' numbers, in portable arithmetic
            `exp_avg`, `exp_avg_sq`, `beta1_power` and `beta2_power`; one of `param_groups`, there with `params`,
            `lr` (the last epoch's, at first the configuration's), `betas`, `eps` and `weight_decay`.
        rng_state: every random stream now.
        early_stopping_state: `best_test_loss` and `epochs_no_improve`.
        epoch: number of completed epochs; 0 is the state before training.
        step_in_epoch: steps done of the epoch under way; 0 at an epoch's boundary.
        loss_sum: sum of loss x batch length over the steps of the epoch under way, in float64.
        num_samples: how many samples `loss_sum` covers.
        epoch_start_rng_state: the streams as they were when the epoch under way began, from which
            its batch order is drawn again; None at an epoch's boundary.
        metrics: what the last completed epoch reported (its CSV row): `epoch`, `train_loss`, `test_loss`,
            `behavioral_rsa_rho`, `behavioral_rsa_p_value`, `used_random_targets`, `used_shuffled_targets` and
            `perturb_type`; before training `epoch`, `test_loss` and the two of the RSA.
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

    def leaves(self) -> Iterator[tuple[str, Leaf]]:
        """Return every tensor and scalar by name."""
        return leaves(self.as_dict())

    def digest(self) -> str:
        """Return the state digest: SHA-256 over the canonical encoding of every field."""
        return digest(self.as_dict())


@dataclass(frozen=True)
class PartialState:
    """What a file holds that lacks part of the state, such as one of the earlier pipeline.

    Attributes:
        parameters: the trainable parameters by name.
        rng_state: the random streams; None if the file has none.
    """

    parameters: dict[str, torch.Tensor]
    rng_state: RngState | None

    def as_dict(self) -> dict[str, Any]:
        """Return what there is by name, not copied."""
        content = {"parameters": self.parameters, "rng_state": self.rng_state}
        return {key: value for key, value in content.items() if value}

    def leaves(self) -> Iterator[tuple[str, Leaf]]:
        """Return every tensor and scalar by name."""
        return leaves(self.as_dict())

    def digest(self) -> str:
        """Return the digest of what there is; never that of a complete state."""
        return digest(self.as_dict())
