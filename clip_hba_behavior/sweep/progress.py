"""How far the runs of a sweep are while it executes."""

import time

from clip_hba_behavior.reproducibility.record.lease import holder_of
from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep.plan import Plan

SECONDS_BETWEEN_LOOKS = 2.0


class SweepProgress:
    """Counts runs and epochs as the runs' files tell; a run that ended is not looked at again."""

    def __init__(self, plan: Plan, report: Report) -> None:
        """Name the sweep, and whom to tell."""
        self._plan, self._report = plan, report
        self._first_epochs = {run.name: plan.first_own_epoch(run) for run in plan.runs()}
        self._total = sum(plan.last_epoch - first + 1 for first in self._first_epochs.values())
        self._ended: set[str] = set()
        self._next_look = time.monotonic()

    def end(self, name: str) -> None:
        """Count a run as ended, however it did."""
        self._ended.add(name)
        self._next_look = time.monotonic()

    def look(self) -> None:
        """Tell of the progress, unless it was told just now."""
        if time.monotonic() < self._next_look:
            return
        began = time.monotonic()
        last = self._plan.last_epoch
        num_done = num_under_way = epochs = 0
        for name, first in self._first_epochs.items():
            run = RunDirectory(self._plan.path(name))
            newest = last if name in self._ended else max(list_checkpoints(run.checkpoints), default=first - 1)
            epochs += max(0, newest - first + 1)
            if newest >= last:
                num_done += 1
            elif holder_of(run.path) is not None:
                num_under_way += 1
        num_left = len(self._first_epochs) - num_done - num_under_way
        what = f"epochs (runs: {num_done} done, {num_under_way} under way, {num_left} left)"
        self._report(what, min(epochs, self._total), self._total)
        took = time.monotonic() - began
        self._next_look = time.monotonic() + max(SECONDS_BETWEEN_LOOKS, 10 * took)
