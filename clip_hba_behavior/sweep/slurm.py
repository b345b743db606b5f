"""A sweep on a SLURM cluster: job arrays, each task a share of the chains, requeued until they are done.

The folder of an array, `slurm/N` in the sweep's directory, holds what its tasks do, the job script, their logs,
and the numbers under which it was submitted.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish, replace
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.run.directory import SWEEP_FILE
from clip_hba_behavior.sweep import cluster
from clip_hba_behavior.sweep.cluster import Task, coming_back
from clip_hba_behavior.sweep.plan import Plan, Run, make_sweep_file
from clip_hba_behavior.sweep.sizing import Shares, counted, seconds_per_epoch, share_out
from clip_hba_behavior.sweep.status import status_of
from clip_hba_behavior.sweep.sweep import Chain, Sweep

CHAINS, SAMPLES = "chains.json", "samples.json"  # what an array's tasks do
MAX_ARRAY = 1000  # MaxArraySize's default


def submit(sweep: Sweep) -> str:
    """Submit what is missing of a sweep as job arrays; return what was submitted.

    The tasks read the plan from beside their script, not the sweep's file, which may change while they wait.

    Raises:
        BadInputError: SLURM is not here, or refuses; or jobs of this sweep are still waiting or running.
    """
    busy = busy_tasks_of(folders_of(sweep, CHAINS))
    if busy:
        raise BadInputError(
            f"{len(busy)} jobs of this sweep are still waiting or running: {_some(busy)}\n"
            f"  wait for them, or cancel them: {command_line('sweep', 'cancel', sweep.copied_file())}"
        )
    found = {run.name: status_of(plan, run) for plan, run in sweep.runs()}
    chains = [each for each in sweep.chains() if any(found[run.name].state != "done" for run in each[1])]
    if not chains:
        return "every run is done: nothing to submit"
    reached = {  # all of a run that its counters stopped
        run.name: plan.last_epoch if found[run.name].state == "done" else found[run.name].epoch or 0
        for plan, run in sweep.runs()
    }
    shares = share_out_chains(sweep, chains, reached)
    lines = []
    for start in range(0, len(shares.tasks), MAX_ARRAY):
        tasks = [[chains[number] for number in each] for each in shares.tasks[start : start + MAX_ARRAY]]
        job, folder = submit_tasks(sweep, CHAINS, _to_json(sweep, tasks), len(tasks))
        part = [chain for task in tasks for chain in task]
        num_runs = sum(len(runs) for _, runs in part)
        counts = (counted(len(tasks), "task"), counted(len(part), "chain"), counted(num_runs, "run"))
        lines.append(f"job {job}: {', '.join(counts)}; logs in {folder}")
    return "\n".join([*lines, shares.reason])


def share_out_chains(sweep: Sweep, chains: Sequence[Chain], reached: Mapping[str, int]) -> Shares:
    """Divide chains into tasks.

    Args:
        sweep: whose chains.
        chains: one or more.
        reached: the epoch that a run has reached, by its name; none where it has not begun.
    """
    seconds = [seconds_per_epoch(plan) for plan in sweep.plans]
    times: list[float | None] = []
    for number, runs in chains:
        plan, per_epoch = sweep.plans[number], seconds[number]
        left = sum(plan.last_epoch - max(plan.first_own_epoch(run) - 1, reached.get(run.name, 0)) for run in runs)
        times.append(None if per_epoch is None else left * per_epoch)
    return share_out(times, sweep.file.slurm, "chain")


def work(folder: Path, index: int) -> int:
    """Execute one task's chains, as the job script asks; a run that fails ends its chain, not the others.

    Returns:
        The exit code: 1 if a run failed.

    Raises:
        BadInputError: there is no such task.
        InterruptedRunError: SLURM asked it to leave; the run under way is saved.
    """
    plans = _read_task(folder, index)
    from clip_hba_behavior.sweep.work import execute  # what trains; the commands that only ask SLURM do without

    code = 0
    with coming_back(_go_on_with(plans[0].directory)) as stop:
        for plan in plans:
            for run in plan.runs():
                stop.check()
                status = execute(plan, run)
                print(f"{run.name}: {status.state}", flush=True)
                if status.state != "done":
                    print(status.detail, file=sys.stderr, flush=True)
                    code = 1
                    break  # the longer ones continue from it
    return code


def _go_on_with(directory: Path) -> str:
    return go_on_with(command_line("sweep", "resume", directory / SWEEP_FILE, "--engine", "slurm"))


def _to_json(sweep: Sweep, tasks: Sequence[Sequence[Chain]]) -> dict[str, Any]:
    return {
        "sweep": sweep.file.model_dump(mode="json"),
        "directory": str(sweep.directory),
        "plans": [
            {
                "baseline": str(plan.baseline),
                "last_epoch": plan.last_epoch,
                "arithmetic": plan.arithmetic,
                "prefix": plan.prefix,
            }
            for plan in sweep.plans
        ],
        "tasks": [
            [{"plan": number, "runs": [asdict(run) for run in runs]} for number, runs in chains]
            for chains in tasks
        ],
    }


def _read_task(folder: Path, index: int) -> list[Plan]:
    """Read the plan of each of a task's chains: the sweep as it was submitted, with that chain alone."""
    try:
        content = _read(folder)
        file = make_sweep_file(content["sweep"])
        return [
            Plan(
                file,
                Path(plan["baseline"]),
                Path(content["directory"]),
                int(plan["last_epoch"]),
                (tuple(Run(**each) for each in chain["runs"]),),
                arithmetic=plan["arithmetic"],
                prefix=plan["prefix"],
            )
            for chain in content["tasks"][index]
            for plan in [content["plans"][chain["plan"]]]
        ]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInputError(f"{folder} has no task {index}: {error}") from None


def _read(folder: Path) -> dict[str, Any]:
    """Read what the tasks of a folder do, in today's form.

    Raises:
        BadInputError: it cannot be read.
    """
    try:
        content = dict(json.loads((folder / CHAINS).read_text(encoding="utf-8")))
        if "plans" not in content:  # submitted when a sweep had one baseline
            plan = {"baseline": content["baseline"], "last_epoch": content["last_epoch"], "prefix": ""}
            content["plans"] = [plan | {"arithmetic": content.get("arithmetic", "native")}]
            content["chains"] = [{"plan": 0, "runs": runs} for runs in content["chains"]]
        if "tasks" not in content:  # submitted when a task had one chain
            content["tasks"] = [[chain] for chain in content["chains"]]
        return content
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInputError(f"{folder / CHAINS} cannot be read: {error}") from None


def describe_jobs(sweep: Sweep, not_done: Set[str]) -> Iterator[str]:
    """Say of each task that waits or runs in which state it is, and how those ended that left runs undone.

    Of these SLURM's accounts tell, where it keeps some.

    Args:
        sweep: the sweep.
        not_done: names of its runs.
    """
    try:
        busy = busy_tasks(sweep)
    except BadInputError as error:
        yield f"which jobs wait or run cannot be told: {error}"
        return
    for task in busy:
        yield f"job {task.name()} {task.state}"
    logs = _logs_of_ended(sweep, set(not_done), {task.name() for task in busy})
    if not logs:
        return
    try:
        accounts = cluster.accounts_of(list(logs))
    except BadInputError as error:
        yield f"there is no accounting here ({error})\n  why jobs left runs undone, only their logs tell:"
        yield from (f"  {log}" for log in logs.values())
        return
    for name, log in logs.items():
        told = accounts[name].describe() if name in accounts else "SLURM's accounts do not have it"
        yield f"job {name} left runs undone: {told}\n  its log: {log}"


def _logs_of_ended(sweep: Sweep, not_done: set[str], busy: Set[str]) -> dict[str, Path]:
    """Return the log of each task that was the last to have some runs, and works no more."""
    found: dict[str, Path] = {}
    for folder in reversed(folders_of(sweep, CHAINS)):
        for index, chains in enumerate(_read(folder)["tasks"]):
            runs = {run["name"] for chain in chains for run in chain["runs"]} & not_done
            not_done -= runs
            name = f"{_job_of(folder)}_{index}"
            if runs and name not in busy:
                found[name] = folder / f"task_{index}.log"
    return found


def cancel(sweep: Sweep) -> str:
    """Cancel the sweep's jobs; each saves its run on the signal, within the cluster's KillWait."""
    busy = busy_tasks(sweep)
    if not busy:
        return "no job of this sweep waits or runs"
    cluster.run_command(["scancel", *dict.fromkeys(task.job for task in busy)])
    return f"cancelled {len(busy)} jobs; their runs are saved\n  {_go_on_with(sweep.directory)}"


# --- folders of arrays ------------------------------------------------------------------------------


def submit_tasks(sweep: Sweep, name: str, content: dict[str, Any], num_tasks: int) -> tuple[str, Path]:
    """Write down what some tasks do and submit them as an array; return its number and its folder."""
    parent = sweep.directory / "slurm"
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / str(
        1 + max((int(each.name) for each in parent.iterdir() if each.name.isdecimal()), default=0)
    )
    folder.mkdir()
    publish(folder / name, (json.dumps(content, indent=1) + "\n").encode())
    job = cluster.submit_array(folder, sweep.file.slurm, num_tasks)
    add_job(folder, job)
    return job, folder


def add_job(folder: Path, job: str) -> None:
    """Write down under which number a folder's array was submitted."""
    before = (folder / "job_id").read_bytes() if (folder / "job_id").exists() else b""
    replace(folder / "job_id", before + f"{job}\n".encode())


def folders_of(sweep: Sweep, *names: str) -> list[Path]:
    """Return the folders of the arrays that were submitted, the latest last.

    Args:
        sweep: whose they are.
        names: what their tasks do: `CHAINS`, `SAMPLES`.
    """
    found = [path.parent for name in names for path in (sweep.directory / "slurm").glob(f"*/{name}")]
    submitted = [each for each in found if each.name.isdecimal() and (each / "job_id").exists()]
    return sorted(submitted, key=lambda each: int(each.name))


def _job_of(folder: Path) -> str:
    """Return the number under which a folder's array was submitted last."""
    return (folder / "job_id").read_text(encoding="utf-8").split()[-1]


def busy_tasks_of(folders: Sequence[Path]) -> list[Task]:
    """Ask SLURM which tasks of some folders' arrays wait or run."""
    return cluster.busy_tasks([_job_of(each) for each in folders])


def busy_tasks(sweep: Sweep) -> list[Task]:
    """Ask SLURM which of the sweep's tasks wait or run, those that verify among them."""
    return busy_tasks_of(folders_of(sweep, CHAINS, SAMPLES))


def _some(tasks: Sequence[Task]) -> str:
    names = [f"{each.name()} {each.state}" for each in tasks]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
