"""A whole sweep: the runs from each of its baselines."""

from dataclasses import dataclass
from pathlib import Path

from clip_hba_behavior.reproducibility.state.process import usable_cores
from clip_hba_behavior.run.directory import SWEEP_FILE, RunDirectory
from clip_hba_behavior.sweep.plan import Plan, Run, SweepFile, make_plan, read_sweep_file

Chain = tuple[int, tuple[Run, ...]]  # which of the plans, and runs that one process executes in turn


@dataclass(frozen=True)
class Sweep:
    """A sweep.

    Attributes:
        file: what was asked for.
        directory: where its runs, failures and the table are.
        plans: of each baseline the runs; all have the sweep's file and directory.
    """

    file: SweepFile
    directory: Path
    plans: tuple[Plan, ...]

    def runs(self) -> list[tuple[Plan, Run]]:
        """Return all runs, baseline by baseline and chain by chain."""
        return [(plan, run) for plan in self.plans for run in plan.runs()]

    def chains(self) -> list[Chain]:
        """Return all chains, baseline by baseline."""
        return [(number, chain) for number, plan in enumerate(self.plans) for chain in plan.chains]

    def copied_file(self) -> Path:
        """Return where the sweep's file is copied to when its runs begin."""
        return self.directory / SWEEP_FILE

    def num_processes(self) -> int:
        """Return how many runs fit at once here: the cores by a baseline's thread count, which forks inherit."""
        threads = max(RunDirectory(plan.baseline).read_config().num_threads or 1 for plan in self.plans)
        return self.file.processes or max(1, usable_cores() // threads)


def make_sweep(file: SweepFile) -> Sweep:
    """List the runs of a sweep.

    Raises:
        BadInputError: no fork can start as asked from one of the baselines, which it names; see `make_plan`.
    """
    plans = tuple(make_plan(file, number) for number in range(len(file.baselines())))
    return Sweep(file, plans[0].directory, plans)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's file and list its runs.

    Raises:
        BadInputError: a key of it is wrong, or no fork can start as asked.
    """
    return make_sweep(read_sweep_file(path))
