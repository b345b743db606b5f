"""A run whose first state is another run's: what it takes over from its parent."""

import logging
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.reproducibility.checkpoint import (
    Checkpoint,
    checkpoint_path,
    list_checkpoints,
    read_checkpoint,
)
from clip_hba_behavior.reproducibility.errors import BadInputError
from clip_hba_behavior.reproducibility.rng import load_and_restore_rng_state
from clip_hba_behavior.reproducibility.state import restore_parameters
from clip_hba_behavior.run_directory import RunDirectory
from clip_hba_behavior.training import Trainer

SPLIT_KEYS = {"random_seed", "train_portion"}


def read_parent(config: Config) -> Checkpoint | None:
    """Read the state that a fork starts from: the baseline's after epoch `training_run - 1`.

    Returns:
        None for a run that is no fork.

    Raises:
        BadInputError: there is no such state, or it is of another seed.
    """
    if config.training_run == 1:
        return None
    directory = Path(str(config.baseline_dora_directory)).expanduser().absolute()
    epoch = config.training_run - 1
    found = list_checkpoints(directory)
    if epoch not in found:
        which = f"epochs {min(found)} to {max(found)}" if found else "none"
        raise BadInputError(
            f"training_run {config.training_run} needs {checkpoint_path(directory, epoch)}\n"
            f"  found:    {which} in that directory\n  expected: epoch {epoch}\n"
            "  set baseline_dora_directory to the baseline's dora_params"
        )
    parent = read_checkpoint(found[epoch])
    if parent.state is not None and parent.state.epoch != epoch:
        raise BadInputError(
            f"{parent.path} holds another epoch's state\n  found:    epoch {parent.state.epoch}\n"
            f"  expected: epoch {epoch}\n  put the files back under their own names"
        )
    recorded = parent.provenance.get("config", {})
    for key in SPLIT_KEYS & config.model_fields_set & recorded.keys():
        if getattr(config, key) != recorded[key]:
            raise BadInputError(
                f"{parent.path} is of another {key}, so of another split\n"
                f"  in checkpoint: {recorded[key]}\n  in the config: {getattr(config, key)}\n"
                f"  set {key}: {recorded[key]}, or leave it out"
            )
    return parent


def inherit(config: Config, parent: Checkpoint) -> Config:
    """Take over what shaped the parent's trajectory, where the config does not name its own; and its end.

    So an unperturbed fork is its baseline: same numerics, same schedule, same batch size.
    """
    given = config.model_dump(include=config.model_fields_set)
    inherited = dict(parent.provenance.get("config", {}))
    if "device" in parent.provenance:
        inherited["device"] = parent.provenance["device"]
    last = max(list_checkpoints(parent.path.parent))
    if last >= config.training_run:  # else the baseline has not come further than the fork's start
        given["epochs"] = min(config.epochs, last)
    return make_config(inherited | given)


def note_fork(parent: Checkpoint, fork: Path, logger: logging.Logger) -> None:
    """Write in the parent's run that a fork began here, so that it keeps this checkpoint."""
    run = parent.path.parent.parent
    if parent.path.parent.name != "dora_params" or not (run / "config.yaml").is_file():
        return  # loose checkpoints: nobody removes any
    epoch = parent.whole_state().epoch if parent.state is not None else -1
    try:
        RunDirectory(run).note_fork(epoch, fork)
    except OSError as error:
        logger.warning("The baseline cannot be written to, so it does not know of this fork: %s", error)


def adopt(trainer: Trainer, parent: Checkpoint, logger: logging.Logger) -> dict[str, Any]:
    """Bring a trainer into the parent's state, or as near to it as an old checkpoint allows.

    Returns:
        What the fork's provenance says of its parent.
    """
    description = {
        "checkpoint": str(parent.path),
        "epoch": trainer.config.training_run - 1,
        "state_digest": parent.state_digest,
        "whole": parent.state is not None,
    }
    logger.info("Starting with epoch %d from %s", trainer.config.training_run, parent.path)
    if parent.state is not None:
        trainer.restore(parent.state)
        load_and_restore_rng_state({"rng_state": parent.state.rng_state}, logger)
        return description
    restore_parameters(trainer.parameters, parent.parameters)
    trainer.epoch = trainer.config.training_run - 1
    trainer.begin()
    logger.warning(
        "%s holds no optimizer and early-stopping state: both start anew, and results move by about 1-5 %%",
        parent.path.name,
    )
    content = {"rng_state": parent.rng_state} if parent.rng_state is not None else {}
    load_and_restore_rng_state(content, logger)
    return description
