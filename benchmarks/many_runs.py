"""What it takes to plan, look at, tabulate and verify a sweep of 10,000 runs, 2,000 of them done.

    python benchmarks/many_runs.py [--runs 10000] [--done 2000] [--epochs 12]

A baseline and one fork for each of its epochs are trained on the synthetic data set. The runs that are done are
copies of these forks under the names and seeds of others: here it matters how many files there are, not what is in
them. Prints the seconds of each command in a process of its own, and its peak resident size.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from clip_hba_behavior.run.log import silent
from clip_hba_behavior.sweep.finished import recall
from clip_hba_behavior.sweep.plan import Plan, Run, make_plan, read_sweep_file
from clip_hba_behavior.sweep.work import execute

KIND = "random_target"


def clip_hba(*arguments: object, codes: tuple[int, ...] = (0,)) -> float:
    """Run one command in a process of its own; return its seconds.

    Raises:
        SystemExit: it ended with another exit code.
    """
    command = [sys.executable, "-m", "clip_hba_behavior", *(str(each) for each in arguments)]
    began = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode not in codes:
        raise SystemExit(
            f"{command}: exit code {result.returncode}\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        )
    return time.perf_counter() - began


def write_sweep(path: Path, baseline: Path, directory: Path, num_seeds: int) -> Plan:
    """Write a sweep's file and plan it."""
    keys = {
        "baseline": str(baseline),
        "directory": str(directory),
        "kinds": [KIND],
        "seeds": list(range(num_seeds)),
        "controls": False,
    }
    path.write_text(yaml.safe_dump(keys))
    return make_plan(read_sweep_file(path))


def copy_under_another_seed(plan: Plan, made: Run, run: Run) -> None:
    """Copy the fork of one seed as if it were another's."""
    target = plan.path(run.name)
    shutil.copytree(plan.path(made.name), target)
    config = target / "config.yaml"
    config.write_text(config.read_text().replace(f"perturb_seed: {made.seed}\n", f"perturb_seed: {run.seed}\n"))


def main() -> None:
    """Make the runs, measure, and print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--done", type=int, default=2_000)
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    silent()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config, sweep, baseline = folder / "config.yaml", folder / "sweep.yaml", folder / "baseline"
        keys = {"epochs": arguments.epochs, "num_threads": 1, "batch_size": 64, "cache_dir": str(folder / "cache")}
        config.write_text(yaml.safe_dump(keys))
        clip_hba("train", config, "--run-dir", baseline)
        plan = write_sweep(sweep, baseline, folder / "sweep", -(-arguments.runs // arguments.epochs))
        made = {run.epoch: run for run in plan.runs() if run.seed == 0}
        for run in made.values():
            execute(plan, run)
        others = [run for run in plan.runs() if run.seed > 0]
        for run in sorted(others, key=lambda each: each.seed)[: arguments.done - len(made)]:
            copy_under_another_seed(plan, made[run.epoch], run)
            execute(plan, run)
            if recall(plan, run) is None:
                raise SystemExit(f"{run.name} does not count as done")
        print(f"{len(plan.runs())} runs planned, {arguments.done} done")
        # The sample is of copies, and their checkpoints say whose: verification replays them, and tells.
        for command, codes in (("plan", (0,)), ("status", (1,)), ("table", (1,)), ("verify", (1,))):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = clip_hba("sweep", command, sweep, codes=codes)
            usage = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
            peak = f"peak so far {usage.ru_maxrss / 2**20:.2f} GiB"
            print(f"  {command:7} {seconds:6.1f} s, {spent:6.1f} s of a processor; {peak}", flush=True)


if __name__ == "__main__":
    main()
