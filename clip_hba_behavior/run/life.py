"""One run's life: start, fork, resume, and train on, epoch by epoch."""

import logging
import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import DATA_KEYS, FREE_KEYS, STANDIN, Config, make_config
from clip_hba_behavior.data.check import DataReport, check_data
from clip_hba_behavior.data.standin import standin_backbone_directory, write_standin_dataset
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.record.signals import StopRequest, stopping_on_signals
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.numerics import apply_numerics, check_sdpa_backend, resolve_device
from clip_hba_behavior.reproducibility.state.rng import load_and_restore_rng_state
from clip_hba_behavior.run.checkpoint import Checkpoint, save_dora_parameters
from clip_hba_behavior.run.directory import RunDirectory, format_row
from clip_hba_behavior.run.environment import check_fork, compare_environments, describe_environment, provenance
from clip_hba_behavior.run.fork import (
    adopt,
    fork_of,
    inherit,
    note_fork,
    publish_first_state,
    read_parent,
    refuse_meaningless,
)
from clip_hba_behavior.run.log import LOGGER_NAME, Report, epoch_line, logging_to, reporting
from clip_hba_behavior.training import seed_protocol
from clip_hba_behavior.training.inputs import load_inputs
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer, closing_entry, ledger_entry

Check = Callable[[TrainingState], None]


def resolve_config(config: Config) -> Config:
    """Fill in what the machine or other keys decide, and make every path absolute."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache_dir = Path(config.cache_dir or cache_home / "clip_hba_behavior")
    values: dict[str, Any] = {
        "device": str(resolve_device(config.device)),
        "num_threads": config.num_threads or len(os.sched_getaffinity(0)),
        "lr_schedule_epochs": config.lr_schedule_epochs or max(1, config.epochs),
        "cache_dir": str(cache_dir.expanduser().absolute()),
        "run_dir": str(Path(config.run_dir or f"runs/seed{config.random_seed}").expanduser().absolute()),
    }
    for key in (*DATA_KEYS, "baseline_dora_directory"):
        if getattr(config, key) is not None:
            values[key] = str(Path(getattr(config, key)).expanduser().absolute())
    for key in ("backbone", "tokenizer"):
        name = getattr(config, key)
        if name is not None and Path(name).expanduser().exists():
            values[key] = str(Path(name).expanduser().absolute())
    return make_config(config.model_dump() | values)


def with_standin(config: Config) -> Config:
    """Put the stand-in's files where no data or no backbone is named."""
    values: dict[str, Any] = {}
    if config.csv_file is None:
        directory = Path(str(config.cache_dir)) / "standin"
        write_standin_dataset(directory)
        names = ("annotations.csv", "images", "inference48.csv", "RDM48_triplet.mat", "prompts.txt")
        values |= {key: str(directory / name) for key, name in zip(DATA_KEYS, names, strict=True)}
    if config.backbone == STANDIN:
        values["backbone"] = str(standin_backbone_directory())
    return make_config(config.model_dump() | values)


def run_behavioral_training(config: Mapping[str, Any]) -> Path:
    """Train from a dict of configuration keys: the guide's entry point.

    Args:
        config: the keys of docs/configuration.md; the old integer `cuda` key is understood.

    Returns:
        The run's directory.

    Raises:
        BadInputError: something given cannot be used; nothing is left of the run then.
    """
    return start(make_config(config))


def start(config: Config, check: Check = lambda state: None) -> Path:
    """Start a new run, or with `baseline_dora_directory` a fork of another, and train it to its end.

    Args:
        config: not resolved yet.
        check: given each epoch's state before it is written down; what it raises stops the run.

    Returns:
        The run's directory.

    Raises:
        BadInputError: something given cannot be used; nothing is left of the run then.
    """
    parent = read_parent(config)
    return _begin(config if parent is None else inherit(config, parent), parent, check)


def start_fork(
    baseline: str | os.PathLike[str],
    at_epoch: int,
    settings: Mapping[str, Any],
    run_dir: str | os.PathLike[str],
    check: Check = lambda state: None,
) -> Path:
    """Start a fork of a run and train it to its end: by default its baseline's last epoch.

    Args:
        baseline: the run's directory; the fork takes data, backbone and every key from it.
        at_epoch: the fork's first own epoch; it starts from the state after the one before.
        settings: the fork's own keys. A perturbation without `perturb_epoch` begins with the fork.
        run_dir: the fork's new directory.
        check: given each epoch's state, as for `start`, which also says what is returned and raised.
    """
    config, parent = fork_of(Path(baseline), at_epoch, {**settings, "run_dir": str(run_dir)})
    return _begin(config, parent, check)


def _begin(config: Config, parent: Checkpoint | None, check: Check) -> Path:
    refuse_meaningless(config)
    config = resolve_config(config)
    directory = RunDirectory(Path(str(config.run_dir)))
    with (
        stopping_on_signals() as stop,
        directory.created(),
        logging_to(directory.log_file) as logger,
        reporting(logger) as report,
    ):
        trainer, environment = build_trainer(config, _until_stopped(report, stop), logger)
        directory.check_space(_bytes_to_come(trainer))
        if parent is None:
            seed_protocol.draw_initial_parameters(trainer.model, trainer.inputs.backbone.get().config)
            trainer.begin()
        else:
            environment["drift"] = check_fork(parent, environment)
            _warn_of(environment["drift"], logger)
            environment["parent"] = adopt(trainer, parent, logger)
            note_fork(parent, directory.path, logger)
        directory.write_config(config)
        directory.write_environment(environment)
        if parent is not None and parent.state is not None and config.fork_reseed is None:
            publish_first_state(parent, directory.checkpoints)
        else:
            state = trainer.snapshot()
            origin = provenance(config, environment)
            save_dora_parameters(
                trainer.model, directory.checkpoints, state.epoch, logger, training_state=state, provenance=origin
            )
        train_model(trainer, directory, environment, logger, report, check=check, stop=stop)
    return directory.path


def resume(
    run_dir: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    from_epoch: int | None = None,
    new_dir: str | os.PathLike[str] | None = None,
    allow: Collection[str] = (),
) -> Path:
    """Continue a run from its newest whole state, or from an epoch's into a new directory.

    A newest checkpoint that is damaged is set aside, and the one before it taken.

    Args:
        run_dir: the run.
        settings: keys to change; only those that do not shape the trajectory, unless allowed.
        from_epoch: continue from the state after this epoch; needs `new_dir`.
        new_dir: where the continued run goes; it gets the history up to `from_epoch` too.
        allow: what may be another than it was, on record: see `compare_environments`.

    Returns:
        The directory that was written.

    Raises:
        BadInputError: something given cannot be used; nothing is done then.
    """
    source = RunDirectory(Path(run_dir).expanduser().absolute())
    if from_epoch is not None and new_dir is None:
        raise BadInputError("--from-epoch needs a new --run-dir: epochs that exist are never replaced")
    if not source.config_file.is_file():
        raise BadInputError(f"there is no run in {run_dir}: it has no config.yaml")
    config = _changed(source.read_config(), settings or {}, allow)
    if new_dir is None:
        with (
            stopping_on_signals() as stop,
            source.held(),
            logging_to(source.log_file) as logger,
            reporting(logger) as report,
        ):
            source.remove_temporary_files()
            _continue(source, source, source.newest_state(logger), config, allow, report, logger, stop)
        return source.path

    checkpoint = source.read_state(source.newest_epoch() if from_epoch is None else from_epoch)
    target = RunDirectory(Path(new_dir).expanduser().absolute())
    config = make_config(config.model_dump() | {"run_dir": str(target.path)})
    with (
        stopping_on_signals() as stop,
        target.created(),
        logging_to(target.log_file) as logger,
        reporting(logger) as report,
    ):
        _continue(source, target, checkpoint, config, allow, report, logger, stop)
    return target.path


def check_data_of(config: Config) -> DataReport:
    """Check the data that a configuration names; without any, the stand-in's."""
    with reporting(logging.getLogger(LOGGER_NAME)) as report:
        data = with_standin(resolve_config(make_config(config.model_dump() | {"device": "cpu"})))
        return check_data(
            *(Path(str(getattr(data, key))) for key in DATA_KEYS),
            progress=lambda done, total: report("opening images", done, total),
        )


def _continue(
    source: RunDirectory,
    target: RunDirectory,
    checkpoint: Checkpoint,
    config: Config,
    allow: Collection[str],
    report: Report,
    logger: logging.Logger,
    stop: StopRequest,
) -> None:
    state = checkpoint.whole_state()
    if config.epochs < state.epoch:
        raise BadInputError(
            f"epochs is below what the run has done\n  found:    epochs {config.epochs}\n"
            f"  expected: at least {state.epoch}, the epoch of {checkpoint.path.name}"
        )
    recorded = source.read_environment()
    trainer, environment = build_trainer(config, _until_stopped(report, stop), logger)
    drift = compare_environments(source.path, recorded, environment, allow)
    _warn_of(drift, logger)
    target.check_space(_bytes_to_come(trainer))
    trainer.restore(state)  # it may refuse; nothing has been written yet
    environment |= {"parent": recorded["parent"], "drift": [*recorded["drift"], *drift]}
    if target is not source:
        origin = {"run": str(source.path), "epoch": state.epoch, "state_digest": checkpoint.state_digest}
        environment["continued_from"] = origin
        target.write_config(config)
        target.write_environment(environment)
        target.copy_history(source, state.epoch)
    else:
        target.write_config(config)
        if drift:
            target.write_environment(environment | {"continued_from": recorded["continued_from"]})
    within = f", step {state.step_in_epoch} of the next" if state.step_in_epoch else ""
    logger.info("Resuming from the state after epoch %d%s (%s)", state.epoch, within, checkpoint.path)
    load_and_restore_rng_state({"rng_state": state.rng_state}, logger)
    train_model(trainer, target, environment, logger, report, stop=stop, supersede=bool(drift))


def _warn_of(drift: list[str], logger: logging.Logger) -> None:
    for each in drift:
        logger.warning("Not the same environment, so bits may differ: %s", each)


def _until_stopped(report: Report, stop: StopRequest) -> Report:
    """Make of a report one that leaves when a signal has come: while data are read there is no state to save."""

    def tell(what: str, done: int, total: int) -> None:
        stop.check()
        report(what, done, total)

    return tell


def _bytes_to_come(trainer: Trainer) -> int:
    """Estimate what the rest of a run will write: its checkpoints, ledger and results."""
    config = trainer.config
    tensors = sum(each.numel() * each.element_size() for each in trainer.parameters.values())
    checkpoint = 4 * tensors + 2**17  # parameters, two moments, and some to spare; random states and names
    epochs = max(0, config.epochs - trainer.epoch)
    word, _, number = config.keep_checkpoints.partition(" ")
    kept = {"all": epochs, "best": 4, "last": int(number or 0) + 4, "every": epochs // int(number or 1) + 4}[word]
    ledger = epochs * (trainer.num_steps() * 200 + 2**13)
    return min(kept, epochs) * checkpoint + 4 * checkpoint + ledger


def _changed(config: Config, settings: Mapping[str, Any], allow: Collection[str]) -> Config:
    """Apply settings to a run that exists."""
    if "run_dir" in settings:
        raise BadInputError("a run stays where it is\n  for a new directory give --run-dir, not --set run_dir")
    before = config.model_dump()
    if "cuda" in settings:
        del before["device"]  # the old key stands for it
    changed = resolve_config(make_config(before | dict(settings)))
    fixed = [
        key
        for key in Config.model_fields
        if key not in FREE_KEYS | changed.without_effect() | set(allow)
        and getattr(changed, key) != before.get(key)
    ]
    if fixed:
        lines = [
            f"{key}\n    in the run: {getattr(config, key)!r}\n    given:      {getattr(changed, key)!r}"
            for key in fixed
        ]
        raise BadInputError(
            "a run cannot go on under another configuration\n  "
            + "\n  ".join(lines)
            + "\n  start a new run, or a fork with `clip-hba fork`;\n"
            f"  or go on all the same, on record, with --allow {','.join(fixed)}"
        )
    return changed


def build_trainer(config: Config, report: Report, logger: logging.Logger) -> tuple[Trainer, dict[str, Any]]:
    """Make the trainer with the run's split; its parameters are drawn, or restored, afterwards.

    Args:
        config: resolved.
        report: told of the progress in reading images and computing features.
        logger: told where the stand-in takes the place of data.

    Returns:
        The trainer, and the description of the environment.

    Raises:
        BadInputError: data, backbone or device cannot be used.
    """
    device = resolve_device(config.device)
    check_sdpa_backend(config.sdpa_backend, device)
    apply_numerics(int(config.num_threads or 1), config.deterministic, config.tf32)
    with_data = with_standin(config)
    if left_out := ", ".join(f"{key} {value}" for key, value in config.left_out().items()):
        logger.info("No effect with perturb_type %s, so left out: %s", config.perturb_type, left_out)
    if config.csv_file is None:
        logger.info("No csv_file given: training on the stand-in, images drawn from 66-d vectors")
    if config.backbone == STANDIN:
        logger.info("No backbone given: the small CLIP that comes with the package")
    inputs = load_inputs(with_data, device, report)
    model = CLIPHBA(
        inputs.backbone.get(),
        config.vision_layers,
        config.transformer_layers,
        config.rank,
        config.dora_dropout,
        inputs.end_positions,
        config.sdpa_backend,
    )
    split = seed_protocol.begin(config.random_seed, inputs.num_images(), config.train_portion)
    return Trainer(config, model, inputs, split), describe_environment(config, inputs)


def train_model(
    trainer: Trainer,
    directory: RunDirectory,
    environment: Mapping[str, Any],
    logger: logging.Logger,
    report: Report = lambda what, done, total: None,
    save_rng_state: bool = True,
    check: Check = lambda state: None,
    stop: StopRequest | None = None,
    supersede: bool = False,
) -> None:
    """Train epoch by epoch to the run's end, and write each epoch down.

    An epoch's end is written in this order: ledger, CSV row, checkpoint. The checkpoint is the mark
    that the epoch is done; whatever a crash leaves behind it is written again.

    Args:
        trainer: begun or restored.
        directory: where the run is recorded; held by this process.
        environment: what the checkpoints' provenance is made of.
        logger: for a line an epoch.
        report: told of the progress within an epoch.
        save_rng_state: without it the checkpoints are partial and cannot be continued.
        check: given each epoch's state before it is written down; what it raises stops the run.
        stop: asked after each step whether to save and leave.
        supersede: lines recorded beyond this state are kept apart, and need not be repeated.

    Raises:
        InterruptedRunError: a signal came; the state after the last step is saved.
        NonFiniteLossError: the loss is no longer a number.
        NotReproducibleError: what a file already records was not reached again.
    """
    config = trainer.config
    # By default a fork is not stopped by the counters that it inherits: it is compared with its baseline.
    stops_early = environment["parent"] is None or config.fork_early_stopping != "off"
    origin = provenance(config, environment)
    after = (trainer.epoch, trainer.step_in_epoch)
    stop = stop or StopRequest()
    ledger, results = directory.open_ledger(after, supersede), directory.open_results(after, supersede)
    try:
        best = directory.find_best(logger)
        directory.write_best(*best)
        directory.remove_steps_before(trainer.epoch)
        directory.remove_checkpoints(config.keep_checkpoints, best[0])  # a kill may have come before it
        while trainer.epoch < config.epochs and not (stops_early and trainer.should_stop()):
            if not trainer.needs_backbone():
                trainer.inputs.backbone.drop()  # features are cached; the model keeps the blocks it trains
            began = time.monotonic()
            what = f"epoch {trainer.epoch + 1} of {config.epochs}"
            for step in trainer.steps():
                directory.check_held()
                ledger.record(step.epoch, step.step, ledger_entry(trainer, step))
                due = config.checkpoint_every_steps is not None and step.step % config.checkpoint_every_steps == 0
                if stop.name is not None or (due and step.step < trainer.num_steps()):
                    ledger.commit()
                    directory.save_step(trainer.snapshot(), origin)
                if stop.name is not None:
                    raise InterruptedRunError(
                        f"stopped by {stop.name} after epoch {step.epoch}, step {step.step}; the state is saved"
                    )
                report(what, step.step, trainer.num_steps())
            metrics = trainer.finish_epoch()
            state = trainer.snapshot()
            check(state)
            ledger.record(trainer.epoch, END_OF_EPOCH, closing_entry(trainer, state))
            ledger.commit()
            directory.check_held()
            results.append((trainer.epoch, 0), format_row(metrics))
            results.commit()
            logger.info(epoch_line(metrics, config.epochs, time.monotonic() - began))
            save_dora_parameters(
                trainer.model, directory.checkpoints, trainer.epoch, logger, save_rng_state, state, origin
            )
            if metrics["test_loss"] < best[1]:
                best = (trainer.epoch, metrics["test_loss"])
                directory.write_best(*best)
            directory.remove_steps_before(trainer.epoch)
            directory.remove_checkpoints(config.keep_checkpoints, best[0])
            if stop.name is not None and trainer.epoch < config.epochs:
                raise InterruptedRunError(
                    f"stopped by {stop.name} after epoch {trainer.epoch}; the state is saved"
                )
    finally:
        ledger.close()
        results.close()
    if stops_early and trainer.should_stop():
        logger.info(
            "Stopped early after epoch %d: no better test loss in %d epochs",
            trainer.epoch,
            trainer.early_stopping.epochs_no_improve,
        )
    else:
        logger.info("Finished at epoch %d", trainer.epoch)
