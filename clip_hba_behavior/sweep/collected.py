"""What there is of a sweep: how far each run is, the rows of those that are done, and who is missing and why."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint_files import name_epochs
from clip_hba_behavior.sweep.plan import Plan
from clip_hba_behavior.sweep.status import Status, status_of
from clip_hba_behavior.sweep.sweep import Sweep


@dataclass(frozen=True)
class Collected:
    """What there is of a sweep.

    Attributes:
        plan: the sweep.
        states: how far each run is, in the plan's order.
        rows: of the table: each epoch of each run that is done.
        problems: of each run that failed, or whose files are damaged, what is wrong.
    """

    plan: Plan
    states: dict[str, Status]
    rows: list[dict[str, Any]]
    problems: dict[str, str]

    def num_done(self) -> int:
        """Return how many runs are done, whether or not their files are valid."""
        return sum(found.state == "done" for found in self.states.values())

    def controls(self) -> set[str]:
        """Return the unperturbed forks that are in the table."""
        return {row["run"] for row in self.rows if row["kind"] == "none"}

    def failed_controls(self) -> list[str]:
        """Return those that are not the baseline in every bit."""
        return sorted({row["run"] for row in self.rows if row["kind"] == "none" and not row["equals_baseline"]})

    def is_complete(self) -> bool:
        """Return whether every run is in the table, and every control holds."""
        return self.num_done() == len(self.states) and not self.problems and not self.failed_controls()


def collect(plan: Plan, report: Report = lambda what, done, total: None) -> Collected:
    """Look at every run of a sweep, and read what those that are done recorded.

    Args:
        plan: the sweep.
        report: told of the progress.

    Raises:
        BadInputError: a run's directory holds another fork than the plan's.
        StoppedError: the baseline's own results are not all there.
    """
    from clip_hba_behavior.sweep.table import aggregate

    runs = plan.runs()
    states: dict[str, Status] = {}
    for done, run in enumerate(runs, start=1):
        states[run.name] = status_of(plan, run)
        report("looking at runs", done, len(runs))
    rows, problems = aggregate(
        plan, {name: int(found.epoch or 0) for name, found in states.items() if found.state == "done"}
    )
    problems |= {name: found.detail for name, found in states.items() if found.state == "failed"}
    return Collected(plan, states, rows, problems)


def not_in_the_table(plan: Plan) -> Iterator[str]:
    """Name the runs that someone may expect in the table: asked for but impossible, or there but not asked for."""
    where = f"of {plan.baseline} " if plan.prefix else ""
    left_out = Counter((run.epoch, run.length) for run in plan.left_out)
    if left_out:
        yield (
            f"{where}{_runs(left_out.total())} left out: the perturbation would go beyond the baseline's last "
            f"epoch, {plan.last_epoch}"
        )
        for (epoch, length), number in left_out.items():
            yield f"  {name_epochs(range(epoch, epoch + length))}: {number} of them"
        if plan.file.epochs != "all":  # else a longer baseline would have as many at its end
            end = max(epoch + length - 1 for epoch, length in left_out)
            longer = command_line("resume", plan.baseline, "--set", f"epochs={end}")
            yield f"  to have them, train the baseline further: {longer}"
    yield from _not_asked_for(plan.folder(), {run.name.removeprefix(plan.prefix) for run in plan.runs()})


def of_no_baseline(sweep: Sweep) -> Iterator[str]:
    """Name what the sweep's file asked for before it had several baselines, or with others."""
    if len(sweep.plans) > 1:
        yield from _not_asked_for(sweep.directory / "runs", {plan.prefix.split("/")[0] for plan in sweep.plans})


def _not_asked_for(folder: Path, asked_for: set[str]) -> Iterator[str]:
    there = {each.name for each in folder.iterdir() if each.is_dir()} if folder.is_dir() else set()
    if others := sorted(there - asked_for):
        names = ", ".join(others)
        yield f"{_runs(len(others))} in {folder}, but not in the sweep's file, so not in the table: {names}"
        yield "  to have them in the table, ask for them in the file; else give the sweep another directory"


def _runs(number: int) -> str:
    return f"{number} runs are" if number != 1 else "1 run is"
