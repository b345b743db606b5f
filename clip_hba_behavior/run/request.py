"""What is asked of a run, checked as far as it can be without torch: a wrong path or key is told at once.

Starting, forking and resuming ask these functions themselves. Who has not imported what trains asks them before.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config, respelled
from clip_hba_behavior.model.backbone_names import refuse_no_tokenizer, resolve_backbone
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints, name_epochs
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.launch import refuse_several
from clip_hba_behavior.run.resolution import resolve_config, run_directory_of
from clip_hba_behavior.run.tracking import refuse_no_tracking

FORK_KEYS = ("fork_early_stopping", "fork_reseed")


def refuse_bad_start(config: Config) -> None:
    """Return if a run can be started, or a fork of another, as far as it can be told without reading a state.

    Raises:
        BadInputError: the run directory is used, there is no such state to fork from, keys have no effect, or
            backbone or tokenizer cannot be there.
    """
    if first_state_file(config) is None:  # a fork has keys of its parent's too
        refuse_meaningless(config)
        refuse_several(config)
    refuse_no_model(config)
    run = RunDirectory(run_directory_of(config))
    run.refuse_if_used()
    refuse_no_tracking(config, run)


def refuse_no_model(config: Config) -> None:
    """Return if there may be a backbone and a tokenizer of the names given; the hub is not asked.

    Raises:
        BadInputError: there is no such path, or a published name is misspelt.
    """
    resolve_backbone(config.backbone)
    if config.tokenizer:
        refuse_no_tokenizer(config.tokenizer)


def first_state_file(config: Config) -> Path | None:
    """Name the state that a fork starts from: the baseline's after epoch `training_run - 1`.

    Returns:
        None for a run that is no fork; else its file, which is not there if `keep_checkpoints` removed it.

    Raises:
        BadInputError: there is no such state, or the run is no fork and has a fork's keys.
    """
    if config.baseline_dora_directory is None:
        meant = [key for key in FORK_KEYS if getattr(config, key) != Config.model_fields[key].default]
        if meant:
            raise BadInputError(
                f"{', '.join(meant)}: only for a fork\n  set training_run and baseline_dora_directory too"
            )
        return None
    directory = Path(config.baseline_dora_directory).expanduser().absolute()
    epoch = config.training_run - 1
    found, run = list_checkpoints(directory), RunDirectory(directory.parent)
    removed = run.removed_epochs() if directory == run.checkpoints else set()
    if epoch not in found and epoch not in removed:
        # an earlier configuration may name a directory with training_run 1, and mean no fork
        hint = ", or leave it out for a run that is no fork" if epoch == 0 else ""
        raise BadInputError(
            f"training_run {config.training_run} needs {checkpoint_path(directory, epoch)}\n"
            f"  found:    {name_epochs(found)} in that directory\n  expected: epoch {epoch}\n"
            f"  set baseline_dora_directory to the baseline's dora_params{hint}"
        )
    return checkpoint_path(directory, epoch)


def refuse_meaningless(config: Config) -> None:
    """Refuse keys that have no effect in the epochs that a run trains.

    Raises:
        BadInputError: names the keys and why.
    """
    if config.baseline_dora_directory is not None and config.epochs < config.training_run:
        raise BadInputError(
            f"epochs is {config.epochs}, but the fork's first epoch, training_run, is {config.training_run}"
        )
    if config.fork_reseed is not None and config.batch_order != "earlier":
        raise BadInputError(
            f"fork_reseed is {config.fork_reseed}, but batch_order is {config.batch_order}\n"
            "  its batches are a function of random_seed and epoch, and do not depend on the random streams that "
            "fork_reseed replaces\n  it needs batch_order earlier"
        )
    if config.perturb_type == "none":
        return
    first = int(config.perturb_epoch or 1)
    last = first + config.perturb_length - 1
    if last < config.training_run or first > config.epochs:
        raise BadInputError(
            f"perturb_epoch {first} and perturb_length {config.perturb_length} perturb nothing\n"
            f"  found:    epochs {first} to {last} to perturb\n"
            f"  expected: some of epochs {config.training_run} to {config.epochs}, which this run trains "
            "(training_run to epochs)"
        )


@dataclass(frozen=True)
class Resumption:
    """What is asked of a run that exists.

    Attributes:
        source: the run.
        config: the run's, with the settings changed.
        elsewhere: the new directory that the continued run goes to, and the epoch after which it begins; None if
            it stays where it is.
    """

    source: RunDirectory
    config: Config
    elsewhere: tuple[RunDirectory, int] | None


def resumption(
    run_dir: str | os.PathLike[str],
    settings: Mapping[str, Any],
    from_epoch: int | None,
    new_dir: str | os.PathLike[str] | None,
    allow: Collection[str],
) -> Resumption:
    """Find the run to resume, and apply settings to its configuration; the arguments are those of `life.resume`.

    Raises:
        BadInputError: there is no run or no such epoch, the new directory is used, or a setting cannot be changed.
    """
    source = RunDirectory.at(run_dir)
    if from_epoch is not None and new_dir is None:
        raise BadInputError("--from-epoch needs a new --run-dir: epochs that exist are never replaced")
    source.refuse_if_no_run()
    config = _changed(source.read_config(), settings, allow)
    refuse_several(config)
    refuse_no_model(config)
    if new_dir is None:
        refuse_no_tracking(config, source)
        return Resumption(source, config, None)
    epoch = source.newest_epoch() if from_epoch is None else from_epoch
    if epoch not in source.removed_epochs():
        source.checkpoint_of(epoch)  # there may be none
    target = RunDirectory(Path(new_dir).expanduser().absolute())
    target.refuse_if_used()
    refuse_no_tracking(config, target)
    config = make_config(config.model_dump() | {"run_dir": str(target.path)})
    return Resumption(source, config, (target, epoch))


def _changed(config: Config, settings: Mapping[str, Any], allow: Collection[str]) -> Config:
    """Apply settings to a run that exists."""
    if "run_dir" in settings:
        raise BadInputError("a run stays where it is\n  for a new directory give --run-dir, not --set run_dir")
    before = config.model_dump()
    if "cuda" in settings:
        del before["device"]  # the old key stands for it
    changed = resolve_config(make_config(before | respelled(settings)))
    if changed.arithmetic != config.arithmetic:
        raise BadInputError(
            "a run cannot go on in another arithmetic: its optimizer's state is another\n"
            f"  in the run: {config.arithmetic}\n  given:      {changed.arithmetic}\n  start a new run"
        )
    fixed = [
        key
        for key in Config.model_fields
        if key not in changed.free_keys() | changed.without_effect() | set(allow)
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
