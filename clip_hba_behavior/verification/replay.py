"""One epoch trained again from a recorded state."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.config import DATA_KEYS, FREE_KEYS, Config, make_config
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import SDPA_BACKENDS, check_sdpa_backend, resolve_device
from clip_hba_behavior.reproducibility.state.rng import RngState, capture_rng_state, restore_rng_state
from clip_hba_behavior.run.life import build_trainer, resolve_config
from clip_hba_behavior.run.log import Report
from clip_hba_behavior.training import seed_protocol
from clip_hba_behavior.training.batch_order import epoch_order
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer, closing_entry, ledger_entry

_CPU_STREAMS = ("torch_rng_state", "numpy_rng_state", "python_rng_state")


@dataclass(frozen=True)
class Replay:
    """What an epoch gave when it was trained again.

    Attributes:
        entries: what the ledger would say of each step, and of `END_OF_EPOCH`.
        state: the state after the epoch; None where only its first steps were trained.
    """

    entries: dict[int | str, dict[str, Any]]
    state: TrainingState | None


def replay_epoch(
    trainer: Trainer,
    state: TrainingState,
    num_steps: int | None,
    report: Report,
    digests_each_step: bool = False,
) -> Replay:
    """Train the epoch that follows a state, as the run did.

    Args:
        trainer: of the run's configuration and data.
        state: at an epoch's boundary.
        num_steps: stop after this many steps; None for the whole epoch.
        report: told of the progress.
        digests_each_step: put the digests of all tensors into every step's entry.

    Raises:
        BadInputError: the state does not fit the model.
        NonFiniteLossError: the loss is infinite or not a number.
    """
    trainer.restore(state)
    entries: dict[int | str, dict[str, Any]] = {}
    total = min(num_steps or trainer.num_steps(), trainer.num_steps())
    for step in trainer.steps():
        entries[step.step] = ledger_entry(trainer, step)
        if digests_each_step:
            entries[step.step]["state"] = trainer.leaf_digests()
        report(f"replaying epoch {step.epoch}", step.step, total)
        if step.step == num_steps:
            return Replay(entries, None)
    trainer.finish_epoch()
    reached = trainer.snapshot()
    entries[END_OF_EPOCH] = closing_entry(trainer, reached)
    return Replay(entries, reached)


def replaying_config(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> Config:
    """Make the configuration under which a run is replayed.

    Args:
        recorded: the keys that the run recorded, with its paths if it did.
        given: keys of the user's: where data and backbone lie now.

    Raises:
        BadInputError: a key that shapes the trajectory is given with another value than the run had.
    """
    other = make_config(given)
    known = make_config(recorded)
    wrong = [
        f"{key}\n    in the run: {getattr(known, key)!r}\n    given:      {getattr(other, key)!r}"
        for key in sorted(other.model_fields_set & known.trajectory().keys() & recorded.keys())
        if key not in known.without_effect()
        if getattr(other, key) != getattr(known, key) and getattr(other, key) is not None
    ]
    if wrong:
        raise BadInputError(
            "the configuration given is not the run's\n  "
            + "\n  ".join(wrong)
            + "\n  leave these keys out: what the run recorded is used"
        )
    free = {key: getattr(other, key) for key in other.model_fields_set & FREE_KEYS}
    return _on_this_machine(make_config(dict(recorded) | free))


def _on_this_machine(config: Config) -> Config:
    """Resolve a configuration; where its device is not here, what is here takes its place."""
    values: dict[str, Any] = {}
    try:
        device = resolve_device(config.device)
    except BadInputError:
        device = resolve_device("auto")
        values["device"] = str(device)
    if config.sdpa_backend in SDPA_BACKENDS:
        try:
            check_sdpa_backend(config.sdpa_backend, device)
        except BadInputError:
            values["sdpa_backend"] = "math"
    return resolve_config(make_config(config.model_dump() | values))


def make_trainer(config: Config, report: Report, logger: logging.Logger) -> tuple[Trainer, dict[str, Any]]:
    """Make the trainer that replays, and the description of this environment."""
    missing = [key for key in DATA_KEYS if getattr(config, key) and not Path(getattr(config, key)).exists()]
    if missing:
        raise BadInputError(
            "the run's data are not where they were\n  "
            + "\n  ".join(f"{key}: {getattr(config, key)}" for key in missing)
            + "\n  say where they are now: --config FILE with these keys"
        )
    return build_trainer(config, report, logger)


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Let something draw, and put the global generators back."""
    before = capture_rng_state()
    try:
        yield
    finally:
        restore_rng_state(before)


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
        return tuple(split.train[order].split(config.batch_size))


def same_streams(first: RngState, second: RngState) -> bool:
    """Whether the generators on the CPU stand at the same place; a GPU's is not on every machine."""
    return all(digest(first.get(name)) == digest(second.get(name)) for name in _CPU_STREAMS)
