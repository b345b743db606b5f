"""How far the runs of a sweep are while it executes."""

import time

from clip_hba_behavior.reproducibility.record.lease import holder_of
from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep.sweep import Sweep

SECONDS_BETWEEN_LOOKS = 2.0


class SweepProgress:
    """Counts runs and epochs as the runs' files tell; a run that ended is not looked at again."""

    def __init__(self, sweep: Sweep, report: Report) -> None:
        """Name the sweep, and whom to tell."""
        self._runs, self._report = sweep.runs(), report
        self._total = sum(plan.epochs_to_train() for plan in sweep.plans)
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
        num_done = num_under_way = epochs = 0
        for plan, each in self._runs:
            run, first, last = RunDirectory(plan.path(each.name)), plan.first_own_epoch(each), plan.last_epoch
            is_over = each.name in self._ended
            newest = last if is_over else max(list_checkpoints(run.checkpoints), default=first - 1)
            epochs += max(0, newest - first + 1)
            if newest >= last:
                num_done += 1
            elif holder_of(run.path) is not None:
                num_under_way += 1
        num_left = len(self._runs) - num_done - num_under_way
        what = f"epochs (runs: {num_done} done, {num_under_way} under way, {num_left} left)"
        self._report(what, min(epochs, self._total), self._total)
        took = time.monotonic() - began
        self._next_look = time.monotonic() + max(SECONDS_BETWEEN_LOOKS, 10 * took)
