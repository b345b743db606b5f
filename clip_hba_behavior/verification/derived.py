"""A run derived from its seed alone: split, initial parameters, every epoch's order and random states.

Nothing is trained: forward and backward draw nothing, so the draws of the seed protocol are all there is.
"""

from dataclasses import dataclass

import torch
from transformers import CLIPConfig

from clip_hba_behavior.config import Config
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.state.digest import tensor_bytes
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
from clip_hba_behavior.training.seed_protocol import Split

_MAX_DRAWS_APART = 2000


@dataclass(frozen=True)
class DerivedRun:
    """What a seed decides before anything is trained.

    Attributes:
        split: rows of the annotation table that train, and that test.
        initial_parameters: by name.
        rng_states: the random states after each epoch; 0 is before training.
        orders: each epoch's order, `[num_train] int64`, positions inside the train subset.
    """

    split: Split
    initial_parameters: dict[str, torch.Tensor]
    rng_states: dict[int, RngState]
    orders: dict[int, torch.Tensor]


def derive_run(config: Config, num_images: int, model: CLIPHBA, clip: CLIPConfig, last_epoch: int) -> DerivedRun:
    """Derive a run of `last_epoch` epochs; the model's DoRA parameters become the initial ones.

    Raises:
        BadInputError: with `dora_dropout` the draws between two epochs depend on the device; they cannot be
            derived without training.
    """
    if config.dora_dropout:
        raise BadInputError(
            "random states cannot be derived where training draws too\n"
            f"  found:    dora_dropout {config.dora_dropout}\n  expected: dora_dropout 0\n"
            "  leave it out: in the earlier pipeline it never acted"
        )
    with undisturbed_generators():
        split = seed_protocol.begin(config.random_seed, num_images, config.train_portion)
        seed_protocol.draw_initial_parameters(model, clip)
        initial = snapshot(model.dora_parameters())
        draw_loader_seed()  # the first evaluation's
        rng_states, orders = {0: snapshot(capture_rng_state())}, {}
        for epoch in range(1, last_epoch + 1):
            orders[epoch] = epoch_order(config.batch_order, config.random_seed, epoch, len(split.train))
            draw_evaluation_seeds(config.batch_order, epoch)
            rng_states[epoch] = snapshot(capture_rng_state())
    return DerivedRun(split, initial, rng_states, orders)


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
