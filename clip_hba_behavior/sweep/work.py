"""One run of a sweep: made if it is missing, taken up if it was cut off, left alone if it is done."""

import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.checkpoint import list_checkpoints, read_checkpoint
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.life import resume, start_fork
from clip_hba_behavior.sweep.plan import Plan, Run
from clip_hba_behavior.verification.history import read_history

State = Literal["done", "begun", "missing", "failed"]
_LINES_KEPT = 12


@dataclass(frozen=True)
class Status:
    """How far a run is.

    Attributes:
        state: `done`, `begun`, `missing` or `failed`.
        epoch: its newest epoch.
        detail: of a failed run the last lines of its error.
    """

    state: State
    epoch: int | None = None
    detail: str = ""


def status_of(plan: Plan, run: Run) -> Status:
    """Look at a run on disk; a finished one must hold the state that its own ledger and parent record.

    Raises:
        BadInputError: its directory holds another fork than the plan's.
    """
    directory = RunDirectory(plan.path(run.name))
    files = list_checkpoints(directory.checkpoints)
    failure = _failure_file(plan, run)
    if not files:
        return Status("failed", None, failure.read_text()) if failure.exists() else Status("missing")
    _refuse_another(plan, run, directory)
    newest = max(files)
    if newest >= plan.last_epoch:
        problem = _problem_of_finished(plan, run, directory, newest)
        return Status("done", newest) if problem is None else Status("failed", newest, problem)
    if failure.exists():
        return Status("failed", newest, failure.read_text())
    return Status("begun", newest)


def carry_out(plan: Plan, run: Run) -> Status:
    """Bring a run to its end, whatever of it is there; an error is written down, not raised.

    Raises:
        InterruptedRunError: a signal came; the run's state is saved.
    """
    failure = _failure_file(plan, run)
    try:
        before = status_of(plan, run)
        if before.state == "done":
            return before
        if before.epoch is not None:
            resume(plan.path(run.name))
        else:
            parent = plan.baseline if run.extends is None else plan.path(run.extends)
            settings = {**plan.file.settings, **run.settings(), "epochs": plan.last_epoch}
            start_fork(parent, plan.first_own_epoch(run), settings, plan.path(run.name))
        failure.unlink(missing_ok=True)
        return status_of(plan, run)
    except InterruptedRunError:
        raise
    except Exception as error:  # one run that fails must not stop the others; it is shown by `sweep status`
        lines = (str(error) if isinstance(error, BadInputError) else traceback.format_exc()).splitlines()
        failure.parent.mkdir(parents=True, exist_ok=True)
        replace(failure, ("\n".join(lines[-_LINES_KEPT:]) + "\n").encode())
        logging.getLogger("clip_hba_behavior").error("%s failed: %s", run.name, lines[-1] if lines else error)
        return Status("failed", None, "\n".join(lines[-_LINES_KEPT:]))


def _failure_file(plan: Plan, run: Run) -> Path:
    return plan.directory / "failed" / f"{run.name}.txt"


def _refuse_another(plan: Plan, run: Run, directory: RunDirectory) -> None:
    """Refuse a directory of this name that holds another fork."""
    config = directory.read_config().model_dump()
    expected: Mapping[str, Any] = {
        **plan.file.settings,
        **run.settings(),
        "training_run": plan.first_own_epoch(run),
    }
    for key, value in expected.items():
        if key in config and config[key] != value:
            raise BadInputError(
                f"{directory.path} holds another fork than the sweep's\n  {key}\n"
                f"    in the run:   {config[key]!r}\n    in the sweep: {value!r}\n"
                "  give the sweep another directory"
            )


def _problem_of_finished(plan: Plan, run: Run, directory: RunDirectory, newest: int) -> str | None:
    """Say what is wrong with a finished run: its digests are checked, its name is not trusted."""
    history = read_history(directory.path)
    recorded = history.read(newest)
    if recorded.problem is not None or recorded.checkpoint is None:
        return str(recorded.problem)
    end = history.end_of(newest)
    if end is None or end.get("state_digest") != recorded.checkpoint.state_digest:
        return f"the ledger does not record the state of epoch {newest} that the file holds"
    parent = (history.environment or {}).get("parent") or {}
    source = plan.baseline if run.extends is None else plan.path(run.extends)
    first = list_checkpoints(RunDirectory(source).checkpoints).get(plan.first_own_epoch(run) - 1)
    if first is None or read_checkpoint(first).state_digest != parent.get("state_digest"):
        return f"it did not start from the state that {source} holds now"
    return None
