"""One run's life: start, fork, resume, and train on to its end, each event written down by the recorder."""

import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import STANDIN, Config, make_config
from clip_hba_behavior.data.check import overlap_message
from clip_hba_behavior.data.row_order import LEAST_SHARE, row_order, wrong_order_message
from clip_hba_behavior.reproducibility.record.ledger import LEDGER
from clip_hba_behavior.reproducibility.record.protocol import EpochDone
from clip_hba_behavior.reproducibility.record.quarantine import describe
from clip_hba_behavior.reproducibility.record.record_file import RecordFile, keep_apart, recorded_epochs_beyond
from clip_hba_behavior.reproducibility.record.recorder import Recorder, Results
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.record.signals import stopping_on_signals
from clip_hba_behavior.reproducibility.record.states import Refused, quarantine
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.reproducibility.state.rng import load_and_restore_rng_state
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.run.assembly import build_trainer, is_synthetic
from clip_hba_behavior.run.checkpoint import Checkpoint, save_dora_parameters
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.environment import (
    check_fork,
    compare_environments,
    package_changes_from,
    provenance,
    two_settings,
)
from clip_hba_behavior.run.follow import hand_out, join
from clip_hba_behavior.run.fork import (
    adopt,
    fork_of,
    inherit,
    note_fork,
    publish_first_state,
    read_parent,
)
from clip_hba_behavior.run.head import head_lines
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.launch import refuse_several
from clip_hba_behavior.run.log import EPOCHS, session, warn_of_changes, warn_of_package
from clip_hba_behavior.run.repair import repair_records
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.run.request import refuse_meaningless, resumption
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.run.results import RESULTS, format_row
from clip_hba_behavior.run.states import RunStore, newest_state, read_epoch
from clip_hba_behavior.run.tracking import Tracker, refuse_no_tracking
from clip_hba_behavior.training.advance import advance, is_at_end
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.training.processes import ALONE, LostProcessError, Processes, UnequalProcessesError
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import NonFiniteLossError, Trainer

Check = Callable[[TrainingState], None]


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
    kept: Kept[Inputs] | None = None,
) -> Path:
    """Start a fork of a run and train it to its end: by default its baseline's last epoch.

    Args:
        baseline: the run's directory; the fork takes data, backbone and every key from it.
        at_epoch: the fork's first own epoch; it starts from the state after the one before.
        settings: the fork's own keys. A perturbation without `perturb_epoch` begins with the fork.
        run_dir: the fork's new directory.
        check: given each epoch's state, as for `start`, which also says what is returned and raised.
        kept: the inputs of an earlier run of this process.
    """
    config, parent = fork_of(Path(baseline), at_epoch, {**settings, "run_dir": str(run_dir)})
    return _begin(config, parent, check, kept)


@numerics_left_as_they_were()
def _begin(config: Config, parent: Checkpoint | None, check: Check, kept: Kept[Inputs] | None = None) -> Path:
    refuse_meaningless(config)
    refuse_several(config)
    config = resolve_config(config)
    directory = RunDirectory(Path(str(config.run_dir)))
    refuse_no_tracking(config, directory)
    with (
        stopping_on_signals(),
        directory.created(),
        session(directory.log_file) as here,
        _resumed_if_interrupted(directory),
    ):
        processes = join(here.stop)
        _announce(config, here.logger)
        trainer, environment = build_trainer(config, here, kept)
        _warn_of_overlap(config, trainer.inputs, here.logger)
        _warn_of_row_order(config, trainer.inputs, here.logger)
        directory.check_space(_bytes_to_come(trainer))
        if parent is None:
            trainer.begin()
        else:
            environment["drift"] = check_fork(parent, environment)
            environment["package_changes"] = package_changes_from(parent.provenance, environment)
            warn_of_changes(environment["drift"], here.logger)
            warn_of_package(environment["package_changes"], here.logger)
            environment["parent"] = adopt(trainer, parent, here.logger)
            note_fork(parent, directory.path, here.logger)
        for line in head_lines(trainer, directory.path):
            here.logger.info("%s", line)
        directory.write_config(config)
        directory.write_environment(environment)
        if parent is not None and parent.state is not None and config.fork_reseed is None:
            publish_first_state(parent, directory.checkpoints)
        else:
            state, origin = trainer.snapshot(), provenance(config, environment)
            save_dora_parameters(
                trainer.model,
                directory.checkpoints,
                state.epoch,
                here.logger,
                True,
                state,
                origin,
                trainer.undrawn_streams(),
            )
        train_model(trainer, directory, environment, here, check=check, processes=processes)
    return directory.path


@numerics_left_as_they_were()
def resume(
    run_dir: str | os.PathLike[str],
    settings: Mapping[str, Any] | None = None,
    from_epoch: int | None = None,
    new_dir: str | os.PathLike[str] | None = None,
    allow: Collection[str] = (),
    accept_mismatch: int | None = None,
    kept: Kept[Inputs] | None = None,
) -> Path:
    """Continue a run from its newest complete state, or from an epoch's into a new directory.

    A newest checkpoint that is damaged is quarantined, and the one before it taken.

    Args:
        run_dir: the run.
        settings: keys to change; only those that do not shape the trajectory, unless allowed.
        from_epoch: continue from the state after this epoch; needs `new_dir`.
        new_dir: where the continued run goes; it gets the history up to `from_epoch` too.
        allow: what may be another than it was, on record: see `compare_environments`.
        accept_mismatch: keep the lines recorded of this epoch and later ones apart, on record: the run does not
            repeat them.
        kept: the inputs of an earlier run of this process.

    Returns:
        The directory that was written.

    Raises:
        BadInputError: something given cannot be used; nothing is done then.
    """
    asked = resumption(run_dir, settings or {}, from_epoch, new_dir, allow)
    source, config = asked.source, asked.config
    if asked.elsewhere is None:
        with stopping_on_signals(), source.held(), session(source.log_file) as here:
            checkpoint, refused = newest_state(source, here.logger)
            _continue(source, source, checkpoint, config, allow, accept_mismatch, here, refused, kept)
        return source.path

    target, epoch = asked.elsewhere
    checkpoint = read_epoch(source, epoch)
    with (
        stopping_on_signals(),
        target.created(),
        session(target.log_file) as here,
        _resumed_if_interrupted(target),
    ):
        _continue(source, target, checkpoint, config, allow, accept_mismatch, here, kept=kept)
    return target.path


def _continue(
    source: RunDirectory,
    target: RunDirectory,
    checkpoint: Checkpoint,
    config: Config,
    allow: Collection[str],
    accept_mismatch: int | None,
    here: Session,
    refused: Refused = (),
    kept: Kept[Inputs] | None = None,
) -> None:
    state = checkpoint.whole_state()
    if config.epochs < state.epoch:
        raise BadInputError(
            f"epochs is below what the run has done\n  found:    epochs {config.epochs}\n"
            f"  expected: at least {state.epoch}, the epoch of {checkpoint.path.name}"
        )
    after = (state.epoch, state.step_in_epoch)
    if accept_mismatch is not None:
        _refuse_nothing_to_accept(source, after, accept_mismatch)
    recorded = source.read_environment()
    processes = join(here.stop)
    _announce(config, here.logger)
    trainer, environment = build_trainer(config, here, kept)
    drift = compare_environments(source.path, recorded, environment, allow)
    other_package = package_changes_from(recorded, environment)
    warn_of_changes(drift, here.logger)
    warn_of_package(other_package, here.logger)
    target.check_space(_bytes_to_come(trainer))
    trainer.restore(state)  # it may refuse; nothing has been written yet
    environment |= {"parent": recorded["parent"], "drift": [*recorded["drift"], *drift]}
    environment["package_changes"] = [*recorded.get("package_changes", []), *other_package]
    if target is not source:
        origin = {"run": str(source.path), "epoch": state.epoch, "state_digest": checkpoint.state_digest}
        environment["continued_from"] = origin
        target.write_config(config)
        target.write_environment(environment)
        target.copy_history(source, state.epoch)
    quarantine(target.path, refused, here.logger)
    for sentence in repair_records(target, checkpoint, lambda: Replayer(config, here, (trainer, environment))):
        here.logger.warning("Repaired %s", sentence)
    trainer.apply_numerics()  # a replay may have set others
    accepted = f"mismatch accepted: what was recorded of epoch {accept_mismatch} on need not be repeated"
    if accept_mismatch is not None and accepted not in environment["drift"]:
        environment["drift"].append(accepted)
    if drift and state.step_in_epoch > 0:
        environment["drift"].append(
            two_settings(state.epoch + 1) + f": they changed after step {state.step_in_epoch}"
        )
    is_another = environment["drift"] != recorded["drift"] or other_package or "package" not in recorded
    if target is source:
        environment["continued_from"] = recorded["continued_from"]
        target.write_config(config)
    if target is not source or is_another:
        target.write_environment(environment)
    # The decision is on record before the lines go: a kill in between leaves them to be compared.
    if drift:
        _keep_apart(target, after, f"the run went on otherwise on request: {'; '.join(drift)}", here)
    elif accept_mismatch is not None:
        _keep_apart(target, max(after, (accept_mismatch - 1, 0)), accepted, here)
    within = f", step {state.step_in_epoch} of the next" if state.step_in_epoch else ""
    here.logger.info("Resuming from the state after epoch %d%s (%s)", state.epoch, within, checkpoint.path)
    trainer.restore(state)
    for line in head_lines(trainer, target.path):
        here.logger.info("%s", line)
    load_and_restore_rng_state({"rng_state": state.rng_state}, here.logger)
    with _resumed_if_interrupted(target):  # what was changed on request is on record by now
        train_model(trainer, target, environment, here, processes=processes)
    if (trainer.epoch, trainer.step_in_epoch) == after:
        here.logger.info(
            "Nothing was left to train\n  to train further: %s", _further(trainer, target, environment)
        )


def _further(trainer: Trainer, run: RunDirectory, environment: Mapping[str, Any]) -> str:
    """Return the command that trains a run further which has come to its end."""
    config, settings = trainer.config, []
    if trainer.epoch >= config.epochs:
        settings.append(f"epochs={2 * max(1, config.epochs)}")
    if _stops_early(config, environment) and trainer.should_stop():
        settings.append(f"early_stopping_patience={2 * trainer.early_stopping.epochs_no_improve}")
    return command_line("resume", run.path, *(word for each in settings for word in ("--set", each)))


def _stops_early(config: Config, environment: Mapping[str, Any]) -> bool:
    """Whether a run's counters may end it; by default not a fork's, which is compared with its baseline."""
    return environment["parent"] is None or config.fork_early_stopping != "off"


@contextmanager
def _resumed_if_interrupted(run: RunDirectory) -> Iterator[None]:
    """Tell whoever interrupts a run which command goes on with it, once it has a state."""
    try:
        yield
    except InterruptedRunError as error:
        if list_checkpoints(run.checkpoints):
            error.next_step = go_on_with(command_line("resume", run.path))
        raise


def _announce(config: Config, logger: logging.Logger) -> None:
    """Name what the configuration leaves to this package, and what it gives without effect."""
    if left_out := ", ".join(f"{key} {value}" for key, value in config.left_out().items()):
        logger.info("No effect with perturb_type %s, so left out: %s", config.perturb_type, left_out)
    if is_synthetic(config):
        logger.info("No csv_file given: training on the synthetic data set, images drawn from 66-d vectors")
    if config.backbone == STANDIN:
        logger.info("No backbone given: the small CLIP that comes with the package")


def _warn_of_overlap(config: Config, inputs: Inputs, logger: logging.Logger) -> None:
    """Say so where held-out images are trained on."""
    num_images = inputs.num_images()
    both = set(inputs.image_paths[:num_images]) & set(inputs.image_paths[num_images:])
    if both:
        names = sorted(path.name for path in both)
        logger.warning(
            "%s\n  the run goes on, but its behavioral RSA is of images that it may have been trained on",
            overlap_message(names, str(config.csv_file), str(config.inference_csv_file)),
        )


def _warn_of_row_order(config: Config, inputs: Inputs, logger: logging.Logger) -> None:
    """Say so where the held-out targets agree with the human RDM no better than in a random order of the rows."""
    order = row_order(inputs.inference_targets, inputs.human_rdm)
    if order is not None and order.looks_wrong:
        table, rdm_file = str(config.inference_csv_file), str(config.RDM48_triplet_dir)
        expected = f"above {100 * LEAST_SHARE:.0f} % of the random orders"
        logger.warning(
            "%s\n  the run goes on, but its behavioral RSA would mean nothing",
            wrong_order_message(order, table, rdm_file, expected),
        )


def _refuse_nothing_to_accept(run: RunDirectory, after: tuple[int, int], epoch: int) -> None:
    pending = recorded_epochs_beyond(run.ledger_file, LEDGER, after)
    pending |= recorded_epochs_beyond(run.results_file, RESULTS, after)
    if epoch not in pending:
        found = f"epochs {', '.join(map(str, sorted(pending)))}" if pending else "none"
        raise BadInputError(
            f"--accept-mismatch {epoch}: nothing is recorded of epoch {epoch} beyond the state to resume from\n"
            f"  found:    {found}\n  give the epoch that `clip-hba resume {run.path}` names, or leave it out"
        )


def _keep_apart(run: RunDirectory, after: tuple[int, int], why: str, here: Session) -> None:
    """Move what is recorded beyond a state into the quarantine."""
    for path, schema in ((run.ledger_file, LEDGER), (run.results_file, RESULTS)):
        record = keep_apart(path, schema, after, why)
        if record is not None:
            here.logger.warning("Kept apart: %s", describe(record))


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


def train_model(
    trainer: Trainer,
    directory: RunDirectory,
    environment: Mapping[str, Any],
    session: Session,
    save_rng_state: bool = True,
    check: Check = lambda state: None,
    processes: Processes = ALONE,
) -> None:
    """Train to the run's end, and write every event down.

    Args:
        trainer: begun or restored.
        directory: where the run is recorded; held by this process.
        environment: what the checkpoints' provenance is made of.
        session: its log, its progress, and its stop request, which is answered after a step.
        save_rng_state: without it the checkpoints are partial and cannot be continued.
        check: given each epoch's state before it is written down; what it raises stops the run.
        processes: those that share each batch; this is the first of them.

    Raises:
        InterruptedRunError: a signal came; the state is saved.
        LostProcessError: another process has ended; what was complete stays.
        NonFiniteLossError: the loss is no longer a number.
        NotReproducibleError: what a file already records was not reached again; or, as `UnequalProcessesError`,
            the processes have come to different states.
    """
    if processes.size > 1:
        session.logger.info("Sharing each batch among %d processes", processes.size)
        session = replace(session, stop=processes.agreed)
    config, logger, stop = trainer.config, session.logger, session.stop
    stop_early = _stops_early(config, environment)
    after = (trainer.epoch, trainer.step_in_epoch)
    ledger = RecordFile(directory.ledger_file, after, LEDGER)
    results = RecordFile(directory.results_file, after, RESULTS)
    tracker = Tracker(directory, config, ledger.kept, results.kept, trainer.num_steps(), logger)
    try:
        store = RunStore(directory, trainer, provenance(config, environment), results, logger, save_rng_state)
        rows = Results(results, format_row)
        recorder = Recorder(ledger, rows, store, trainer, session, config.checkpoint_every_steps, check)
        session.report(EPOCHS, trainer.epoch, config.epochs)
        hand_out(processes, trainer, stop_early, environment)
        for event in advance(trainer, config.epochs, stop_early=stop_early, needs_state=recorder.needs_state):
            recorder.record(event)
            tracker.record(event)
            if isinstance(event, EpochDone):
                session.report(EPOCHS, event.epoch, config.epochs)
            is_last = is_at_end(trainer, config.epochs, stop_early)
            if isinstance(event, EpochDone) and stop.name is not None and not is_last:
                raise InterruptedRunError(f"stopped by {stop.name} after epoch {event.epoch}; the state is saved")
    except (InterruptedRunError, NonFiniteLossError, UnequalProcessesError):
        processes.are_listening = True  # all have come to this
        raise
    except LostProcessError as error:
        again = go_on_with(command_line("resume", directory.path))
        raise LostProcessError(f"{error}\n  {again}, in any number of processes") from None
    finally:
        tracker.close()
        ledger.close()
        results.close()
    processes.are_listening = True
    if stop_early and trainer.should_stop():
        logger.info(
            "Stopped early after epoch %d: no better test loss in %d epochs",
            trainer.epoch,
            trainer.early_stopping.epochs_no_improve,
        )
    else:
        logger.info("Finished at epoch %d", trainer.epoch)
