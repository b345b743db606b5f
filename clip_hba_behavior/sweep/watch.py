"""A sweep watched live, whoever executes it: this machine, another one, or jobs of SLURM."""

import time

from clip_hba_behavior.reproducibility.record.lease import holder_of
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.sweep.cluster import Task
from clip_hba_behavior.sweep.progress import SweepProgress
from clip_hba_behavior.sweep.slurm import busy_tasks
from clip_hba_behavior.sweep.status import failure_file
from clip_hba_behavior.sweep.sweep import Sweep

_SECONDS_BETWEEN_QUESTIONS = 10.0  # to SLURM, which answers all of its users
_SECONDS_BETWEEN_SIGNALS = 0.2


def watch(sweep: Sweep, session: Session) -> None:
    """Show runs, epochs and time left, and SLURM's jobs, until nothing works on the sweep.

    On a terminal these are bars; elsewhere lines, of the first look and then at most every ten seconds. A run that
    fails is named at once.

    Args:
        sweep: what to watch.
        session: told of the progress, and asked whether to stop.

    Raises:
        BadInputError: there are jobs of SLURM's, but SLURM is not here, or refuses at the first question.
        InterruptedRunError: a signal came.
    """
    log, named = session.logger, set[str]()
    is_first = True

    def report(what: str, done: int, total: int) -> None:
        if is_first:
            log.info("%s: %d of %d", what, done, total)
        session.report(what, done, total)

    progress = SweepProgress(sweep, report)
    most = 0
    next_question = time.monotonic()
    busy: list[Task] = []
    while True:
        session.stop.check()
        if time.monotonic() >= next_question:
            try:
                busy = busy_tasks(sweep)
            except BadInputError as error:
                if is_first:
                    raise
                log.warning("%s; the jobs are as they were, and asked for again", error)
            most = max(most, len(busy))
            next_question = time.monotonic() + _SECONDS_BETWEEN_QUESTIONS
            if most:
                running = sum(task.state == "RUNNING" for task in busy)
                report(f"jobs ({running} running, {len(busy) - running} waiting)", most - len(busy), most)
        progress.look()
        for plan, run in progress.failed:
            if run.name not in named:
                named.add(run.name)
                log.info("%s failed: see %s", run.name, failure_file(plan, run))
        is_first = False
        if not busy and holder_of(sweep.directory) is None:
            return
        time.sleep(_SECONDS_BETWEEN_SIGNALS)
