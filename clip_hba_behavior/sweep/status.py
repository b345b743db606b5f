"""How far a run of a sweep is; only a state that is read needs torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clip_hba_behavior.config import PERTURB_KEYS, Config, read_config_file, respelled
from clip_hba_behavior.reproducibility.record.lease import is_released
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep.finished import recall
from clip_hba_behavior.sweep.plan import Plan, Run

State = Literal["done", "begun", "missing", "failed"]
PATIENCE = "early_stopping_patience"


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        state: `done`, `begun`, `missing` or `failed`.
        epoch: its newest epoch.
        detail: of a failed run the last lines of its error; of a done one, whether it stopped early.
    """

    state: State
    epoch: int | None = None
    detail: str = ""


class _UnreadableConfigError(BadInputError):
    """A run's `config.yaml` is damaged."""


def status_of(plan: Plan, run: Run) -> Status:
    """Look at a run on disk; a finished one must hold the state that its own ledger and parent record.

    One that was found so before, and whose files are the same by their marks, is not read again.

    Raises:
        BadInputError: its directory holds another fork than the plan's.
    """
    if (finished := recall(plan, run)) is not None:
        return Status("done", finished.epoch, finished.detail)
    directory = RunDirectory(plan.path(run.name))
    files = list_checkpoints(directory.checkpoints)
    failure = failure_file(plan, run)
    if not files:
        shorter = plan.shorter(run)
        before = status_of(plan, shorter) if shorter is not None else Status("missing")
        if before.state == "done" and before.epoch is not None and before.epoch < plan.first_own_epoch(run) - 1:
            # alone it would have stopped there too: it has no epoch of its own
            return Status("done", before.epoch, before.detail)
        return (
            Status("failed", None, failure.read_text(encoding="utf-8")) if failure.exists() else Status("missing")
        )
    newest = max(files)
    try:
        config = recorded_config_of(plan, run, directory)
    except _UnreadableConfigError as error:
        return Status("failed", newest, str(error))
    stopped = newest < plan.last_epoch and _stopped_early(plan, directory, config, newest)
    if stopped or newest >= plan.last_epoch:
        problem = _problem_of_finished(plan, run, directory, newest)
        if problem is not None:
            return Status("failed", newest, problem)
        if not is_released(directory.path):  # killed behind its last checkpoint: what comes after is not done
            return Status("begun", newest)
        return Status("done", newest, f"stopped early after epoch {newest}" if stopped else "")
    if failure.exists():
        return Status("failed", newest, failure.read_text(encoding="utf-8"))
    return Status("begun", newest)


def failure_file(plan: Plan, run: Run) -> Path:
    """Return where the last lines of a run's error are, if it failed."""
    return plan.directory / "failed" / f"{run.name}.txt"


def recorded_config_of(plan: Plan, run: Run, directory: RunDirectory) -> Config:
    """Return the configuration that a run recorded.

    Raises:
        BadInputError: it is another fork's than the plan's, or damaged.
    """
    try:
        keys = respelled(read_config_file(directory.config_file))
        recorded = directory.read_config()
    except BadInputError as error:
        raise _UnreadableConfigError(str(error)) from None
    # null stands for what the machine or another key decides
    given = {key for key, value in plan.own_keys(run).items() if value is not None}
    own = plan.config_of(run)
    expected = {
        key: value for key, value in own.trajectory().items() if key in {*given, *PERTURB_KEYS, "fork_reseed"}
    }
    found = recorded.model_dump()
    for key, value in (expected | {"training_run": own.training_run}).items():
        if key not in keys:
            raise _UnreadableConfigError(f"{directory.config_file} is not complete: it has no {key}")
        if found[key] != value:
            raise BadInputError(
                f"{directory.path} holds another fork than the sweep's\n  {key}\n"
                f"    in the run:   {found[key]!r}\n    in the sweep: {value!r}\n"
                "  give the sweep another directory"
            )
    return recorded


def _stopped_early(plan: Plan, directory: RunDirectory, config: Config, newest: int) -> bool:
    """Whether a run's counters ended it: it trains no further, however often it is resumed."""
    begins_here = config.fork_early_stopping == "fresh" and newest < config.training_run
    if config.fork_early_stopping == "off" or begins_here:
        return False
    from clip_hba_behavior.run.states import read_epoch

    try:
        state = read_epoch(directory, newest).whole_state()
    except BadInputError:
        return False  # a damaged file: to be resumed, which names it
    patience = plan.file.settings.get(PATIENCE, config.early_stopping_patience)
    return bool(state.early_stopping_state["epochs_no_improve"] >= patience)


def _problem_of_finished(plan: Plan, run: Run, directory: RunDirectory, newest: int) -> str | None:
    """Say what is wrong with a finished run: its digests are checked, its name is not trusted."""
    from clip_hba_behavior.run.checkpoint import read_checkpoint
    from clip_hba_behavior.verification.files import RunFiles

    files = RunFiles(directory.path)
    recorded = files.file(newest)
    if recorded.problem is not None or recorded.checkpoint is None:
        return f"{files.files[newest]}: {recorded.problem}"
    end = files.ledger.end(newest)
    trained = newest >= plan.first_own_epoch(run)  # the first state's line is in its parent's ledger
    if trained and (end is None or end.get("state_digest") != recorded.checkpoint.state_digest):
        return f"{directory.path}/steps.jsonl does not record the state of epoch {newest} that the file holds"
    if not files.environment:
        return "\n".join(files.problems) or f"{directory.environment_file} is not there"
    parent = files.environment.get("parent") or {}
    source, epoch = plan.source(run), plan.first_own_epoch(run) - 1
    first = list_checkpoints(RunDirectory(source).checkpoints).get(epoch)
    try:
        digest = read_checkpoint(first).state_digest if first is not None else None
    except BadInputError as error:
        return f"the state that it started from cannot be read: {error}"
    if digest is None or digest != parent.get("state_digest"):
        return f"it did not start from the state that {source} holds now"
    return None
