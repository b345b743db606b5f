"""A run whose first state is another run's: what it takes over from its parent, and what it does not."""

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import PERTURB_KEYS, Config, as_recorded, make_config
from clip_hba_behavior.reproducibility.record.ledger import read_ledger
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.rng import load_and_restore_rng_state, seed_generators
from clip_hba_behavior.run.checkpoint import Checkpoint, read_checkpoint, read_named
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.fork_request import end_of_fork, fork_config
from clip_hba_behavior.run.request import FORK_KEYS, first_state_file
from clip_hba_behavior.training.trainer import Trainer

SPLIT_KEYS = {"random_seed", "train_portion"}


def fork_of(baseline: Path, at_epoch: int, given: Mapping[str, Any]) -> tuple[Config, Checkpoint]:
    """Make a fork's configuration of its baseline's, and read the state that it starts from.

    Args:
        baseline: a run's directory.
        at_epoch: the fork's first own epoch.
        given: the fork's own keys, as for `fork_config`.

    Raises:
        BadInputError: as `fork_config`; or the state is not complete, or not the one recorded.
    """
    config = fork_config(baseline, at_epoch, given)
    parent = read_parent(config)
    assert parent is not None  # it has a baseline_dora_directory
    parent.whole_state()
    return inherit(config, parent, own_end=True), parent


def read_parent(config: Config) -> Checkpoint | None:
    """Read the state that a fork starts from: the baseline's after epoch `training_run - 1`.

    Returns:
        None for a run that is no fork.

    Raises:
        BadInputError: there is no such state, it is not the one that the baseline recorded, or it is of
            another seed.
    """
    file = first_state_file(config)
    if file is None:
        return None
    if not file.exists():
        run = RunDirectory(file.parent.parent)
        raise BadInputError(
            f"there is no {file}: keep_checkpoints removed it{run.recompute_advice(config.training_run - 1)}"
        )
    parent = read_named(file)
    _refuse_changed(parent, config.training_run - 1)
    recorded = parent.provenance.get("config", {})
    for key in SPLIT_KEYS & config.model_fields_set & recorded.keys():
        if getattr(config, key) != recorded[key]:
            raise BadInputError(
                f"{parent.path} is of another {key}, so of another split\n"
                f"  in checkpoint: {recorded[key]}\n  in the config: {getattr(config, key)}\n"
                f"  set {key}: {recorded[key]}, or leave it out"
            )
    return parent


def _refuse_changed(parent: Checkpoint, epoch: int) -> None:
    """Refuse a state that is complete in itself, but not the one that its run wrote down."""
    run = run_of(parent)
    if run is None or parent.state is None:
        return
    try:
        end = read_ledger(run.ledger_file).end(epoch)
    except OSError as error:
        raise BadInputError(f"the baseline's steps.jsonl cannot be read: {error}") from None
    recorded, where = (end or {}).get("state_digest"), "steps.jsonl"
    if end is None and run.environment_file.is_file():
        origin = run.read_environment().get("parent") or {}  # the first state of a fork has no line
        if origin.get("epoch") == epoch:
            recorded, where = origin.get("first_state_digest") or origin.get("state_digest"), "environment.json"
    if recorded not in (None, parent.state_digest):
        raise BadInputError(
            f"{parent.path} is not the state that its run recorded\n  in the file:   {parent.state_digest}\n"
            f"  in {where}: {recorded}\n"
            "  find out what changed with `clip-hba verify checkpoints`, or start the fork from another epoch"
        )


def run_of(checkpoint: Checkpoint) -> RunDirectory | None:
    """Return the run that a checkpoint belongs to; None for a loose one."""
    run = RunDirectory(checkpoint.path.parent.parent)
    return run if run.checkpoints == checkpoint.path.parent and run.config_file.is_file() else None


def keys_of(parent: Checkpoint) -> dict[str, Any]:
    """Return the keys with which the parent's run went on from a checkpoint; empty if nothing tells them.

    They stand in the next file: of the next epoch, or of a later one where `keep_checkpoints` removed some. The
    file itself names those that led to it, which are another run's where it is the first of a fork, and others
    where the run was taken up with `--allow`.
    """
    run, state = run_of(parent), parent.state
    if run is not None and state is not None:
        for epoch, file in list_checkpoints(run.checkpoints).items():
            if epoch > state.epoch:
                try:
                    following = read_checkpoint(file)
                except BadInputError:  # it is damaged
                    continue
                if following.provenance.get("config"):
                    return dict(following.provenance["config"])
        return run.read_config().trajectory()
    return dict(parent.provenance.get("config", {}))


def inherit(config: Config, parent: Checkpoint, own_end: bool = False) -> Config:
    """Take over what shaped the parent's trajectory, where the config does not name its own; and its end.

    So an unperturbed fork is its baseline: same numerics, same schedule, same batch size. The parent's own
    perturbation is not taken over, nor what it does as a fork itself.

    Args:
        config: the fork's, with its own keys set and no others.
        parent: what it starts from.
        own_end: `epochs` stands, even beyond the baseline's last epoch.

    Raises:
        BadInputError: the fork's keys have no effect in the epochs that it trains.
    """
    given = config.model_dump(include=config.model_fields_set)
    theirs = as_recorded(keys_of(parent))  # the earlier pipeline's checkpoints name no keys at all
    inherited = {key: value for key, value in theirs.items() if key not in (*PERTURB_KEYS, *FORK_KEYS)}
    arithmetic = theirs.get("arithmetic", "native")
    if parent.state is not None and given.get("arithmetic", arithmetic) != arithmetic:
        raise BadInputError(
            "a fork computes in its baseline's arithmetic: the optimizer's state is another in each\n"
            f"  in {parent.path}: {arithmetic}\n  given: {given['arithmetic']}\n  leave arithmetic out"
        )
    if "device" in parent.provenance and arithmetic == "native":
        inherited["device"] = parent.provenance["device"]
    if not own_end:
        given["epochs"] = end_of_fork(config)
    return make_config(inherited | given)


def note_fork(parent: Checkpoint, fork: Path, logger: logging.Logger) -> None:
    """Write in the parent's run that a fork began here, so that it keeps this checkpoint."""
    run = run_of(parent)
    if run is None:
        return  # loose checkpoints: nobody removes any
    epoch = parent.whole_state().epoch if parent.state is not None else -1
    try:
        run.note_fork(epoch, fork)
    except OSError as error:
        logger.warning("The baseline cannot be written to, so it does not know of this fork: %s", error)


def adopt(trainer: Trainer, parent: Checkpoint, logger: logging.Logger) -> dict[str, Any]:
    """Bring a trainer into the parent's state, or as near to it as an old checkpoint allows.

    Returns:
        What the fork's provenance says of its parent: where it is, its state, and which keys are others.
    """
    config, run, theirs = trainer.config, run_of(parent), keys_of(parent)
    theirs = make_config({}).trajectory() | theirs if theirs else {}
    description = {
        "run": str(parent.path.parent if run is None else run.path),
        "checkpoint": str(parent.path),
        "epoch": config.training_run - 1,
        "state_digest": parent.state_digest,
        "whole": parent.state is not None,
        "changed": {
            key: {"parent": theirs[key], "fork": value}
            for key, value in config.trajectory().items()
            if key in theirs and theirs[key] != value
        },
    }
    logger.info("Starting with epoch %d from %s", trainer.config.training_run, parent.path)
    if parent.state is not None:
        trainer.restore(parent.state)
        load_and_restore_rng_state({"rng_state": parent.state.rng_state}, logger)
        return description | _reseed(trainer)
    trainer.begin(parent.parameters, config.training_run - 1)
    logger.warning(
        "%s holds no optimizer and early-stopping state: both begin again, and results move by about 1-5 %%",
        parent.path.name,
    )
    content = {"rng_state": parent.rng_state} if parent.rng_state is not None else {}
    load_and_restore_rng_state(content, logger)
    return description | _reseed(trainer)


def _reseed(trainer: Trainer) -> dict[str, Any]:
    """Give every generator another stream, a function of `fork_reseed` and the first epoch; if it is set."""
    seed = trainer.config.fork_reseed
    if seed is None:
        return {}
    text = f"clip_hba_behavior reseed: seed {seed}, epoch {trainer.config.training_run}"
    seed_generators(int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little"))
    return {"reseed": seed, "first_state_digest": trainer.snapshot().digest()}


def publish_first_state(parent: Checkpoint, directory: Path) -> None:
    """Make the parent's file the fork's first, byte for byte.

    Raises:
        NotReproducibleError: the parent's file changed since it was read; nothing is left then.
    """
    directory.mkdir(exist_ok=True)
    path = directory / parent.path.name
    content = parent.path.read_bytes()
    publish(path, content)
    try:
        reached: str | None = read_checkpoint(path).state_digest
    except BadInputError:
        reached = None
    if reached != parent.state_digest or path.read_bytes() != content:
        path.unlink()
        raise NotReproducibleError(
            f"the fork's first state is not its parent's\n  read from the parent: {parent.state_digest}\n"
            f"  in the fork's file:   {reached or 'no checkpoint'}\n"
            f"  {parent.path} changed in between; start the fork again"
        )
