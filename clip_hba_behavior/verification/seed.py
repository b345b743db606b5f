"""What a seed implies: split, initial parameters, every epoch's order and random states.

Nothing is trained: forward and backward draw nothing, so the draws of the seed protocol are all there is.
"""

import torch

from clip_hba_behavior.config import Config
from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.state.digest import digest, tensor_bytes
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import (
    RngState,
    capture_rng_state,
    restore_rng_state,
    undisturbed_generators,
)
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.training import seed_protocol
from clip_hba_behavior.training.batch_order import draw_evaluation_seeds, draw_loader_seed, epoch_order
from clip_hba_behavior.training.perturbations import window_of

_MAX_DRAWS_APART = 2000
_CPU_STREAMS = ("torch_rng_state", "numpy_rng_state", "python_rng_state")


class DerivedRun:
    """A run as its seed alone decides it.

    Attributes:
        split: rows of the annotation table that train, and that test.
        initial_parameters: by name.
        rng_states: the random states after each epoch; 0 is before training.
        orders: each epoch's order, `[num_train] int64`, indices into the train subset.
    """

    def __init__(self, config: Config, num_images: int, model: CLIPHBA, clip: ClipConfig, last_epoch: int) -> None:
        """Derive a run of `last_epoch` epochs; the model's DoRA parameters become the initial ones.

        Raises:
            BadInputError: with `dora_dropout`, in native arithmetic, the draws between two epochs depend on the
                device; they cannot be derived without training.
        """
        if config.dora_dropout and not config.is_portable():
            raise BadInputError(
                "random states cannot be derived where training draws too\n"
                f"  found:    dora_dropout {config.dora_dropout}\n  expected: dora_dropout 0\n"
                "  leave it out: in the earlier pipeline it never acted"
            )
        with undisturbed_generators():
            self.split = seed_protocol.begin(config.random_seed, num_images, config.train_portion)
            seed_protocol.draw_initial_parameters(model, clip, config.arithmetic_kind())
            self.initial_parameters: dict[str, torch.Tensor] = snapshot(model.dora_parameters())
            draw_loader_seed()  # the first evaluation's
            self.rng_states: dict[int, RngState] = {0: snapshot(capture_rng_state())}
            self.orders: dict[int, torch.Tensor] = {}
            for epoch in range(1, last_epoch + 1):
                self.orders[epoch] = epoch_order(
                    config.batch_order, config.random_seed, epoch, len(self.split.train)
                )
                draw_evaluation_seeds(config.batch_order, epoch)
                self.rng_states[epoch] = snapshot(capture_rng_state())


def epoch_batches(config: Config, num_images: int, rng_state: RngState, epoch: int) -> tuple[torch.Tensor, ...]:
    """Derive an epoch's batches from the random states at its start; nothing is read or trained.

    Args:
        config: gives seed, split, batch size and rule of the order.
        num_images: rows of the annotation table.
        rng_state: at the epoch's start.
        epoch: counted from 1.

    Returns:
        The annotation rows of each batch, `[batch] int64`.
    """
    with undisturbed_generators():
        split = seed_protocol.begin(config.random_seed, num_images, config.train_portion)
        restore_rng_state(rng_state)
        order = epoch_order(config.batch_order, config.random_seed, epoch, len(split.train))
        order = window_of(config).order(epoch, order)
        return tuple(split.train[order].split(config.batch_size))


def same_streams(first: RngState, second: RngState) -> bool:
    """Whether the generators on the CPU stand at the same place; a GPU's is not on every machine."""
    return all(digest(first.get(name)) == digest(second.get(name)) for name in _CPU_STREAMS)


def draws_apart(recorded: RngState, derived: RngState) -> int | None:
    """Count the 64-bit draws of torch's generator that lie between two states.

    Returns:
        Positive where the recorded state is the later one; None if it is not within 2,000 draws, and so of
        another seed, split or model.
    """
    with undisturbed_generators():
        for first, second, sign in ((derived, recorded, 1), (recorded, derived, -1)):
            restore_rng_state(first)
            for number in range(_MAX_DRAWS_APART + 1):
                if tensor_bytes(torch.get_rng_state()) == tensor_bytes(second["torch_rng_state"]):
                    return sign * number
                draw_loader_seed()
    return None
