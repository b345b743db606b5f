"""What is asked of a fork of a run, checked as far as it can be without reading a state."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints, name_epochs
from clip_hba_behavior.run.directory import RunDirectory

# The keys for which `clip-hba fork` has an option of its own; the others are given by --set.
FORK_OPTIONS = {
    "perturb_type": "--perturb",
    "perturb_length": "--perturb-length",
    "perturb_seed": "--perturb-seed",
    "perturb_distribution": "--perturb-distribution",
    "epochs": "--epochs",
    "fork_early_stopping": "--early-stopping",
    "fork_reseed": "--reseed",
    "run_dir": "--run-dir",
}


def fork_config(baseline: Path, at_epoch: int, given: Mapping[str, Any]) -> Config:
    """Return the fork's own keys with its last epoch, and where data and backbone are as the baseline says.

    Args:
        baseline: a run's directory.
        at_epoch: the fork's first own epoch.
        given: the fork's own keys. A perturbation without `perturb_epoch` begins with the fork; a fork without
            `epochs` ends with its baseline.

    Raises:
        BadInputError: there is no run, or no state to begin with; the fork would train nothing, or would end
            before its perturbation does; or a key is wrong.
    """
    asked = dict(given)
    run = RunDirectory.at(baseline)
    try:
        run.refuse_if_no_run()
    except BadInputError as error:
        loose = "\n  for loose checkpoints use `clip-hba train` with training_run and baseline_dora_directory"
        raise BadInputError(f"{error}{loose if list_checkpoints(run.path) else ''}") from None
    taken = sorted({"training_run", "baseline_dora_directory"} & given.keys())
    if taken:
        raise BadInputError(f"{', '.join(taken)}: a fork gets these from BASELINE and --at-epoch; leave them out")
    if asked.get("perturb_type", "none") != "none":
        asked.setdefault("perturb_epoch", at_epoch)
    place = {"training_run": at_epoch, "baseline_dora_directory": str(run.checkpoints)}
    own = make_config({**asked, **place})
    theirs = run.read_config()
    _refuse_no_state(run, at_epoch, given, own.perturb_length if own.perturb_type != "none" else 1)
    config = make_config(
        theirs.model_dump(include=theirs.free_keys()) | own.model_dump(include=own.model_fields_set)
    )
    if "epochs" not in given:
        config = make_config(config.model_dump(include=config.model_fields_set) | {"epochs": end_of_fork(config)})
    _refuse_early_end(run, config, given)
    return config


def end_of_fork(config: Config) -> int:
    """Return the last epoch of a fork that names none: its baseline's, if that trained beyond the fork's start."""
    last = max(list_checkpoints(Path(str(config.baseline_dora_directory)).expanduser()))
    return min(config.epochs, last) if last >= config.training_run else config.epochs


def _refuse_no_state(run: RunDirectory, at_epoch: int, given: Mapping[str, Any], length: int) -> None:
    states = list_checkpoints(run.checkpoints)
    if at_epoch - 1 in states or at_epoch - 1 in run.removed_epochs():
        return
    advice = ""
    if states:
        nearest = min(states, key=lambda epoch: abs(epoch - (at_epoch - 1)))
        first = min(nearest + 1, max(1, *states))  # beyond the last one there is nothing to train without --epochs
        if first - 1 in states:
            asked = dict(given)
            begin = first
            if isinstance(asked.get("perturb_epoch"), int):
                begin = asked["perturb_epoch"] = max(first, asked["perturb_epoch"] - at_epoch + first)
            if begin + length - 1 > (asked.get("epochs") or max(states)):
                asked["epochs"] = begin + length - 1
            advice = f"\n  fork where there is one: {_command(run, first, asked)}"
    if states and at_epoch - 1 > max(states):
        further = command_line("resume", run.path, "--set", f"epochs={at_epoch + length - 1}")
        advice += f"\n  or train the baseline further first: {further}"
    advice += run.recompute_advice(at_epoch - 1)
    raise BadInputError(
        f"--at-epoch {at_epoch} needs {checkpoint_path(run.checkpoints, at_epoch - 1)}\n"
        f"  found:    {name_epochs(states)} in that directory\n  expected: epoch {at_epoch - 1}{advice}"
    )


def _refuse_early_end(run: RunDirectory, config: Config, given: Mapping[str, Any]) -> None:
    whose = "--epochs" if "epochs" in given else "where the baseline ends"
    first, end = config.training_run, config.epochs
    if end < first:
        raise BadInputError(
            f"the fork would train nothing: it begins with epoch {first}, and ends before\n"
            f"  found:    last epoch {end}, {whose}\n  expected: at least {first}\n"
            f"  train further: {_command(run, first, {**given, 'epochs': first})}"
        )
    if config.perturb_type == "none":
        return
    begin = int(config.perturb_epoch or 1)
    last = begin + config.perturb_length - 1
    if last > end:
        shorter = ""
        if begin <= end:
            length = end - begin + 1
            shorter = f"\n  or perturb less:  {_command(run, first, {**given, 'perturb_length': length})}"
        raise BadInputError(
            "the perturbation goes beyond the fork's last epoch\n"
            f"  found:    epochs {begin} to {last} to perturb\n"
            f"  expected: none beyond epoch {end}, {whose}\n"
            f"  train further:    {_command(run, first, {**given, 'epochs': last})}{shorter}"
        )


def _command(run: RunDirectory, at_epoch: int, given: Mapping[str, Any]) -> str:
    """Return the command that forks a run with these keys."""
    words: list[object] = ["fork", run.path, "--at-epoch", at_epoch]
    for key, value in ({"perturb_type": "none"} | dict(given)).items():
        if key in FORK_OPTIONS and value is not None:
            words += [FORK_OPTIONS[key], value]
        else:  # JSON is YAML
            words += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value, default=str)}"]
    return command_line(*words)
