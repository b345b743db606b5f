"""One run of a sweep: made if it is missing, resumed if it was cut off, left alone if it is done."""

import logging
import traceback
from contextlib import suppress

from clip_hba_behavior.reproducibility.state.errors import (
    BadInputError,
    InterruptedRunError,
    NotReproducibleError,
    StoppedError,
)
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.life import resume, start_fork
from clip_hba_behavior.sweep.finished import keep, recall
from clip_hba_behavior.sweep.plan import Plan, Run
from clip_hba_behavior.sweep.status import PATIENCE, Status, failure_file, recorded_config_of, status_of
from clip_hba_behavior.sweep.table import recorded
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.verification.missing_states import put_back

_LINES_KEPT = 12
# Data and backbone are those of all runs of a sweep; a process reads them once.
_KEPT: Kept[Inputs] = Kept()


def execute(plan: Plan, run: Run) -> Status:
    """Bring a run to its end, whatever of it is there; an error is written down, not raised.

    Raises:
        InterruptedRunError: a signal came; the run's state is saved.
    """
    failure = failure_file(plan, run)
    try:
        before = _status(plan, run)
        if before.state == "done":
            return before
        if before.epoch is not None:
            recorded_config_of(plan, run, RunDirectory(plan.path(run.name)))
            _keep_for_the_longer(plan, run)
            # the baseline may have been extended since the run began, or the patience raised
            patience = {key: value for key, value in plan.file.settings.items() if key == PATIENCE}
            resume(plan.path(run.name), {"epochs": plan.last_epoch, **patience}, kept=_KEPT)
        else:
            first = checkpoint_path(RunDirectory(plan.source(run)).checkpoints, plan.first_own_epoch(run) - 1)
            put_back(first, plan.config_of(run), _KEPT)
            start_fork(
                plan.source(run),
                plan.first_own_epoch(run),
                {**plan.own_keys(run), "epochs": plan.last_epoch},
                plan.path(run.name),
                check=lambda state: _keep_for_the_longer(plan, run),
                kept=_KEPT,
            )
        failure.unlink(missing_ok=True)
        return _status(plan, run)
    except InterruptedRunError:
        raise
    except Exception as error:  # one run that fails must not stop the others; it is shown by `sweep status`
        is_foreseen = isinstance(error, BadInputError | NotReproducibleError | StoppedError)
        lines = (str(error) if is_foreseen else traceback.format_exc()).splitlines()
        failure.parent.mkdir(parents=True, exist_ok=True)
        replace(failure, ("\n".join(lines[-_LINES_KEPT:]) + "\n").encode())
        logging.getLogger("clip_hba_behavior").error("%s failed: %s", run.name, lines[-1] if lines else error)
        return Status("failed", None, "\n".join(lines[-_LINES_KEPT:]))


def _status(plan: Plan, run: Run) -> Status:
    """Look at a run; what a finished one recorded is kept for the next look."""
    found = status_of(plan, run)
    epoch = int(found.epoch or 0)
    if found.state == "done" and epoch >= plan.first_own_epoch(run) and recall(plan, run) is None:
        own = (plan.first_own_epoch(run), epoch)
        # Results that are not complete are named by the table; on a full disk the run is read again the next time.
        with suppress(BadInputError, OSError):
            keep(plan, run, epoch, found.detail, lambda: recorded(plan.path(run.name), *own))
    return found


def _keep_for_the_longer(plan: Plan, run: Run) -> None:
    """Note in a run that a longer one will begin with one of its states, so that it keeps that checkpoint.

    The longer one notes it too, but only when it begins: `keep_checkpoints` would have removed it by then.
    """
    longer = plan.longer(run)
    if longer is None:
        return
    directory, epoch = RunDirectory(plan.path(run.name)), plan.first_own_epoch(longer) - 1
    if epoch not in directory.forked_epochs():
        directory.note_fork(epoch, plan.path(longer.name))
