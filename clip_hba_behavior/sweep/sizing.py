"""How much work a task of a job array takes: what fits its time limit, by the baseline's seconds per epoch."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import duration, epoch_seconds
from clip_hba_behavior.sweep.plan import Plan, SlurmSettings, seconds_of

_SECONDS_TO_START = 60  # imports, data and backbone, once for a task
_SHARE_PLANNED = 0.8  # of the rest: an epoch in a job may take longer than the baseline's did


@dataclass(frozen=True)
class Shares:
    """Work divided into tasks.

    Attributes:
        tasks: of each task the numbers of the pieces, in their order.
        reason: what was chosen and why, in a sentence.
    """

    tasks: list[list[int]]
    reason: str


def seconds_per_epoch(plan: Plan) -> float | None:
    """Return the median of the baseline's epochs; None where its log tells no times."""
    found = [seconds for _, seconds in epoch_seconds(RunDirectory(plan.baseline).log_file)]
    return statistics.median(found) if found else None


def share_out(seconds: Sequence[float | None], settings: SlurmSettings, piece: str) -> Shares:
    """Divide pieces of work into tasks of about the same time.

    A task is planned to end within its time limit; one that does not is requeued and goes on. Where `throttle`
    lets several run at once, there are at least as many.

    Args:
        seconds: of each piece, one or more; None where that is not known.
        settings: time limit, throttle, and `chains_per_task`, which decides where it is given.
        piece: what a piece is called, such as `chain`.
    """
    number, fixed = len(seconds), settings.chains_per_task
    known = [each for each in seconds if each is not None]
    if fixed is not None or len(known) < number:
        why = "slurm.chains_per_task" if fixed is not None else "a baseline's log tells no times"
        tasks = [list(range(first, min(first + (fixed or 1), number))) for first in range(0, number, fixed or 1)]
        return Shares(tasks, f"a task takes {counted(fixed or 1, piece)}: {why}")
    total = sum(known)
    room = _SHARE_PLANNED * (seconds_of(settings.time) - settings.signal_seconds - _SECONDS_TO_START)
    num_tasks = min(number, max(1, settings.throttle or 1, -int(-total // room) if room > 0 else number))
    tasks = [[] for _ in range(num_tasks)]
    before = 0.0
    for piece_number, its in enumerate(known):
        # by where its middle is in the whole; all take no time in a baseline whose epochs round to 0.0 s
        place = (before + its / 2) / total if total else piece_number / number
        tasks[min(num_tasks - 1, int(place * num_tasks))].append(piece_number)
        before += its
    tasks = [each for each in tasks if each]
    longest = max(sum(known[each] for each in task) for task in tasks)
    most = max(len(each) for each in tasks)
    return Shares(
        tasks,
        f"a task takes up to {counted(most, piece)}, about {duration(longest)} of its {settings.time} by the "
        "baseline's seconds per epoch; slurm.chains_per_task sets another number",
    )


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `1 task` and `2 tasks`."""
    return f"{number} {noun}{'s' if number != 1 else ''}"
