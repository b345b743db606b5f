"""Verify a run against its own checkpoints and records."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.run.environment import changed_data, package_changes_from
from clip_hba_behavior.run.log import Report
from clip_hba_behavior.training.trainer import Trainer
from clip_hba_behavior.verification.derived import DerivedRun, derive_run
from clip_hba_behavior.verification.epoch import EpochVerifier
from clip_hba_behavior.verification.history import History, Recorded, read_history
from clip_hba_behavior.verification.outcome import EpochOutcome, Verification
from clip_hba_behavior.verification.replay import make_trainer, replaying_config
from clip_hba_behavior.verification.results_table import ResultsTable
from clip_hba_behavior.verification.verdict import Word

Origins = Mapping[int, Mapping[str, Any]]  # each epoch's provenance


@numerics_left_as_they_were()
def verify_checkpoints(
    path: Path,
    given: Mapping[str, Any],
    epochs: Sequence[int] | None,
    num_steps: int | None,
    logger: logging.Logger,
    report: Report,
    say: Callable[[EpochOutcome], None] = lambda outcome: None,
    results: ResultsTable | None = None,
) -> Verification:
    """Replay epochs of a run, each from the recorded state before it, and compare.

    Args:
        path: a run's directory, or a directory of checkpoints of any age.
        given: keys of a configuration: where data and backbone lie now; for checkpoints of the earlier
            pipeline everything that shaped the run.
        epochs: which; None for all.
        num_steps: replay only the first steps of each epoch, and compare them with the ledger.
        logger: for what is said while data are read.
        report: told of the progress.
        say: told each epoch's outcome as soon as it is known.
        results: a results CSV to compare with; by default the run's own.

    Raises:
        BadInputError: there is nothing to verify, or data or backbone cannot be used.
    """
    history = read_history(path)
    chosen = list(epochs) if epochs is not None else _all_epochs(history, results)
    if not set(chosen) & history.files.keys():
        raise BadInputError(
            f"{history.path} has no checkpoint of epoch {', '.join(map(str, chosen))}\n"
            f"  found:    epochs {', '.join(map(str, history.files))}\n  give --epochs some of those"
        )
    read = {epoch: history.read(epoch) for epoch in sorted({*chosen, *(epoch - 1 for epoch in chosen)})}
    origins = origins_of(read)
    config = recorded_config(history, origins, given)
    trainer, environment = make_trainer(config, report, logger)
    about: dict[str, Any] = {
        "what": _what(history, chosen, num_steps, results),
        "config": config.trajectory(),
        "recorded": dict(origins[max(origins)]) if origins else {},
        "environment": environment,
        "num_steps": num_steps,
    }
    changed = _changed(history, origins, environment)
    if changed:
        reason = "data or weights are not what the run was made with"
        untested = tuple(EpochOutcome(epoch, Word.UNTESTED, differences=(reason,)) for epoch in chosen)
        for outcome in untested:
            say(outcome)
        return Verification(epochs=untested, problems=tuple(changed), **about)

    derived, notes = _derive(read, trainer, chosen)
    verifier = EpochVerifier(
        history=history,
        trainer=trainer,
        environment=environment,
        results=results or history.results,
        derived=derived,
        fresh_optimizer=snapshot(trainer.optimizer.state_dict()),
        num_steps=num_steps,
        report=report,
    )
    if not trainer.needs_backbone():
        trainer.inputs.backbone.drop()
    began = time.monotonic()
    outcomes = []
    for epoch in chosen:
        outcomes.append(verifier.verify(epoch))
        say(outcomes[-1])
    return Verification(
        epochs=tuple(outcomes),
        problems=(*disagreements(history, origins), *_other_columns(history, read)),
        drift=tuple(_drift(history, origins)),
        notes=(*history.notes, *notes, *_package_changes(history, origins, environment)),
        seconds=time.monotonic() - began,
        **about,
    )


def origins_of(read: Mapping[int, Recorded]) -> dict[int, Mapping[str, Any]]:
    """Return the provenance of the files that say where they come from, by epoch."""
    return {
        epoch: each.checkpoint.provenance
        for epoch, each in read.items()
        if each.checkpoint is not None and "config" in each.checkpoint.provenance
    }


def _all_epochs(history: History, results: ResultsTable | None) -> list[int]:
    """Return every recorded epoch that has a state before it; old files have none of epoch 0."""
    first = min(history.files)
    old = history.config is None and first == 1
    found = [epoch for epoch in range(first, max(history.files) + 1) if epoch > first or old]
    if history.config is not None and history.config.keep_checkpoints != "all":
        # the run removed files on purpose: of those that stayed, the ones with a state before them
        found = [epoch for epoch in found if {epoch - 1, epoch} <= history.files.keys()]
    if results is not None:
        found = [epoch for epoch in found if epoch in results.rows]
    if not found:
        raise BadInputError(
            f"{history.path} has no epoch that can be replayed\n"
            f"  found:    checkpoints of epochs {', '.join(map(str, history.files))}"
            + (f"; rows of {', '.join(map(str, results.rows))} in the CSV" if results is not None else "")
            + "\n  expected: two checkpoints of epochs in a row"
        )
    return found


def recorded_config(history: History, origins: Origins, given: Mapping[str, Any]) -> Config:
    """Make the configuration to replay with: the recorded one; for files that record none, the given one."""
    if history.config is not None:
        return replaying_config(history.config.model_dump(), given)
    if origins:
        origin = origins[max(origins)]
        recorded = {**origin["config"], "device": origin["device"]}
        if origin.get("parent") is not None:  # a fork may do in its first epoch what others do not
            baseline = str(Path(origin["parent"]["checkpoint"]).parent)
            recorded |= {"training_run": origin["training_run"], "baseline_dora_directory": baseline}
        return replaying_config(recorded, given)
    if not given:
        raise BadInputError(
            f"the checkpoints in {history.path} do not say what they were made with\n"
            "  expected: --config FILE with data, backbone, random_seed and every key that shaped the run"
        )
    return replaying_config(given, {})


def _what(
    history: History, chosen: Sequence[int], num_steps: int | None, results: ResultsTable | None
) -> dict[str, Any]:
    what: dict[str, Any] = {"run": str(history.path), "epochs": list(chosen), "steps": num_steps}
    if results is not None:
        what["results"] = {"file": str(results.path), "form": results.form}
    return what


def _changed(history: History, origins: Origins, environment: Mapping[str, Any]) -> list[str]:
    """Name what of data and weights is not what the checkpoints record."""
    if not origins:
        return []
    files = history.environment or {}
    recorded = {
        "digests": origins[max(origins)]["digests"],
        "images": files.get("images"),
        "targets": files.get("targets"),
    }
    return changed_data(recorded, environment)


def _derive(
    read: Mapping[int, Recorded], trainer: Trainer, chosen: Sequence[int]
) -> tuple[DerivedRun | None, list[str]]:
    """Derive the run from its seed where a file lacks part of the state."""
    partial = [each for each in read.values() if each.checkpoint is not None and each.checkpoint.state is None]
    if not partial:
        return None, []
    try:
        inputs, last = trainer.inputs, max(chosen)
        clip = inputs.backbone.get().config
        return derive_run(trainer.config, inputs.num_images(), trainer.model, clip, last), []
    except BadInputError as error:
        return None, [str(error)]


def _other_columns(history: History, read: Mapping[int, Recorded]) -> list[str]:
    """Name columns of the run's CSV beside the metrics that are not what the checkpoint holds."""
    problems = []
    for epoch, cells in (history.results.others if history.results is not None else {}).items():
        checkpoint = read[epoch].checkpoint if epoch in read else None
        kept = checkpoint.state.metrics if checkpoint is not None and checkpoint.state is not None else {}
        problems += [
            f"{name} of epoch {epoch}: training_res.csv and the checkpoint disagree\n"
            f"    in the CSV:        {cell}\n    in the checkpoint: {kept[name]}"
            for name, cell in cells.items()
            if name in kept and str(kept[name]) != cell
        ]
    return problems


def _drift(history: History, origins: Origins) -> list[str]:
    """Name what changed on the run's way and was allowed: then no one environment gives the whole of it."""
    found = list((history.environment or {}).get("drift", []))
    for origin in origins.values():
        found += [each for each in origin.get("drift", []) if each not in found]
    return found


def _package_changes(history: History, origins: Origins, environment: Mapping[str, Any]) -> list[str]:
    """Name other versions and sources of this package, on the run's way and now: they change bits or do not."""
    found = list((history.environment or {}).get("package_changes", []))
    found += [each for origin in origins.values() for each in package_changes_from(origin, environment)]
    return list(dict.fromkeys(found))


def disagreements(history: History, origins: Origins) -> list[str]:
    """Name where the run's own records contradict each other; no replay is needed to see it."""
    problems = list(history.problems)
    own = {epoch: origin for epoch, origin in origins.items() if epoch > min(history.files)}
    if history.config is not None:
        defaults = make_config({}).trajectory()  # a key that was added later had its default's effect
        for key, value in history.config.trajectory().items():
            problems += _disagreeing(key, value, {e: (defaults | o["config"]).get(key) for e, o in own.items()})
        for key, value in (history.environment or {}).get("trajectory", {}).items():
            kept = getattr(history.config, key, None)
            if kept != value:
                problems.append(
                    f"{key}: config.yaml and environment.json disagree\n"
                    f"    in config.yaml:      {kept!r}\n    in environment.json: {value!r}"
                )
    if history.environment is not None:
        for key, value in history.environment.get("digests", {}).items():
            what = f"the digest of the {key}"
            problems += _disagreeing(what, value, {e: o["digests"].get(key) for e, o in own.items()})
        parent = history.environment.get("parent") or {}
        first = history.read(min(history.files)).checkpoint
        began_with = parent.get("first_state_digest") or parent.get("state_digest")
        if began_with and first is not None and first.state_digest != began_with:
            which = "the one that the fork began with" if parent.get("first_state_digest") else "the parent's"
            problems.append(
                f"the first state is not {which}\n"
                f"    in environment.json: {began_with}\n    in the file:         {first.state_digest}"
            )
    return problems


def _disagreeing(what: str, value: Any, recorded: Mapping[int, Any]) -> list[str]:
    epochs = [epoch for epoch, each in recorded.items() if each != value]
    if not epochs:
        return []
    return [
        f"{what}: the run's files and its checkpoints disagree\n    in the run's files: {value!r}\n"
        f"    in the checkpoint:  {recorded[epochs[0]]!r} (epoch {', '.join(map(str, epochs))})"
    ]
