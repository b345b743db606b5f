"""A sweep on a SLURM cluster: a job array through `sbatch`, each task a chain that requeues itself.

`sbatch` itself rather than submitit: submitit counts a preemption as a time-out when the limit is short,
pickles what it runs, and does not say `exec`, without which the signal never reaches Python.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.signals import StopRequest, stopping_on_signals
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.sweep.plan import Plan, Run, SlurmSettings, make_sweep_file
from clip_hba_behavior.sweep.status import status_of
from clip_hba_behavior.sweep.sweep import SWEEP_FILE, Chain, Sweep

_MAX_ARRAY = 1000  # MaxArraySize's default
_SECONDS_FOR_A_COMMAND = 120
_COMES_BACK = "SIGUSR2"  # before a preemption or the time limit; TERM is scancel


def submit(sweep: Sweep) -> str:
    """Submit what is missing of a sweep as job arrays; return what was submitted.

    The tasks read the plan from beside their script, not the sweep's file, which may change while they wait.

    Raises:
        BadInputError: SLURM is not here, or refuses; or jobs of this sweep are still waiting or running.
    """
    busy = list(_tasks(sweep))
    if busy:
        raise BadInputError(
            f"{len(busy)} jobs of this sweep are still waiting or running: {_some(busy)}\n"
            f"  wait for them, or cancel them: {command_line('sweep', 'cancel', sweep.copied_file())}"
        )
    chains = [
        (number, runs)
        for number, runs in sweep.chains()
        if any(status_of(sweep.plans[number], run).state != "done" for run in runs)
    ]
    if not chains:
        return "every run is done: nothing to submit"
    lines = []
    for start in range(0, len(chains), _MAX_ARRAY):
        part = chains[start : start + _MAX_ARRAY]
        folder = _new_folder(sweep)
        publish(folder / "chains.json", _to_json(sweep, part))
        script = folder / "job.sh"
        publish(script, _script(sweep.file.slurm, folder, len(part)).encode())
        job = submit_script(script)
        publish(folder / "job_id", f"{job}\n".encode())
        lines.append(f"job {job}: {len(part)} tasks, {sum(len(runs) for _, runs in part)} runs; logs in {folder}")
    return "\n".join(lines)


def submit_script(script: Path) -> str:
    """Submit a job script; return the job's number.

    Raises:
        BadInputError: SLURM is not here, or refuses.
    """
    return _command(["sbatch", "--parsable", str(script)]).strip().partition(";")[0]


def work(folder: Path, index: int) -> int:
    """Execute one task's chain, as the job script asks; return the exit code."""
    plan = _read_task(folder, index)
    from clip_hba_behavior.sweep.work import execute  # what trains; the commands that only ask SLURM do without

    again = _go_on_with(plan.directory)
    with coming_back(again) as stop:
        for run in plan.runs():
            stop.check()
            status = execute(plan, run)
            print(f"{run.name}: {status.state}", flush=True)
            if status.state != "done":
                print(status.detail, file=sys.stderr)
                return 1
    return 0


def _go_on_with(directory: Path) -> str:
    return go_on_with(command_line("sweep", "resume", directory / SWEEP_FILE, "--engine", "slurm"))


def _to_json(sweep: Sweep, chains: Sequence[Chain]) -> bytes:
    content = {
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
        "chains": [{"plan": number, "runs": [asdict(run) for run in runs]} for number, runs in chains],
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def _read_task(folder: Path, index: int) -> Plan:
    """Read the plan of one task: the sweep as it was submitted, and its chain."""
    try:
        content = json.loads((folder / "chains.json").read_text(encoding="utf-8"))
        chain = content["chains"][index]
        plan = content["plans"][chain["plan"]]
        return Plan(
            make_sweep_file(content["sweep"]),
            Path(plan["baseline"]),
            Path(content["directory"]),
            int(plan["last_epoch"]),
            (tuple(Run(**each) for each in chain["runs"]),),
            arithmetic=plan["arithmetic"],
            prefix=plan["prefix"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInputError(f"{folder} has no task {index}: {error}") from None


def describe_jobs(sweep: Sweep) -> Iterator[str]:
    """Say of each job that waits or runs in which state it is."""
    for task in _tasks(sweep):
        yield f"job {task}"


def cancel(sweep: Sweep) -> str:
    """Cancel the sweep's jobs; each saves its run on the signal, within the cluster's KillWait."""
    jobs = _jobs(sweep)
    busy = list(_tasks(sweep))
    if not busy:
        return "no job of this sweep waits or runs"
    _command(["scancel", *jobs])
    return f"cancelled {len(busy)} jobs; their runs are saved\n  {_go_on_with(sweep.directory)}"


def _script(settings: SlurmSettings, folder: Path, num_tasks: int) -> str:
    """Write the job script of an array."""
    throttle = f"%{settings.throttle}" if settings.throttle is not None else ""
    options = [
        "--job-name=clip-hba-sweep",
        f"--array=0-{num_tasks - 1}{throttle}",
        f"--output={folder}/task_%a.log",
    ]
    command = shlex.join([sys.executable, "-m", "clip_hba_behavior", "sweep", "task", str(folder)])
    return batch_script(settings, options, f'{command} --index "$SLURM_ARRAY_TASK_ID"')


def batch_script(settings: SlurmSettings, options: Sequence[str], command: str) -> str:
    """Return a job script whose Python is told before a preemption or the time limit, and can come back.

    Args:
        settings: time, memory and where.
        options: further options of sbatch.
        command: what to run, as bash reads it.
    """
    all_options = [
        *options,
        f"--time={settings.time}",
        f"--cpus-per-task={settings.cpus}",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:USR2@{settings.signal_seconds}",
    ]
    named = {"partition": settings.partition, "account": settings.account, "constraint": settings.constraint}
    named |= {"gres": settings.gres, "mem": settings.memory}
    all_options += [f"--{name}={value}" for name, value in named.items() if value is not None]
    lines = ["#!/bin/bash", *(f"#SBATCH {each}" for each in [*all_options, *settings.options]), ""]
    # A USR2 that comes while Python still imports would end it; ignored here, it stays so until Python takes it.
    lines += ['trap "" USR2', *settings.setup]
    # with exec the signal reaches Python; bash would die of it, and Python go on as an orphan
    lines.append(f"exec {command}")
    return "\n".join(lines) + "\n"


@contextmanager
def coming_back(otherwise: str) -> Iterator[StopRequest]:
    """Requeue this job if SLURM asks the run to leave and it was saved.

    Before a preemption or the time limit SLURM sends USR2: the job comes back. On TERM it does not: that is
    `scancel`, and the job would run again.

    Args:
        otherwise: how a person goes on where the job does not come back.
    """
    with stopping_on_signals() as stop:
        try:
            yield stop
        except InterruptedRunError as error:
            is_back = stop.name == _COMES_BACK and _requeue()
            error.next_step = "it is in SLURM's queue again, and goes on by itself" if is_back else otherwise
            raise


def _requeue() -> bool:
    """Put this task back into the queue; return whether it is there, by this or because SLURM was first."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array is not None else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    done = subprocess.run(
        ["scontrol", "requeue", job], capture_output=True, text=True, timeout=_SECONDS_FOR_A_COMMAND, check=False
    )
    is_back = done.returncode == 0 or "pending execution" in done.stderr
    if not is_back:
        print(f"scontrol requeue {job}: {done.stderr.strip()}", file=sys.stderr)
    return is_back


def _new_folder(sweep: Sweep) -> Path:
    parent = sweep.directory / "slurm"
    parent.mkdir(parents=True, exist_ok=True)
    number = 1 + max((int(each.name) for each in parent.iterdir() if each.name.isdecimal()), default=0)
    folder = parent / str(number)
    folder.mkdir()
    return folder


def _jobs(sweep: Sweep) -> list[str]:
    return [
        path.read_text(encoding="utf-8").strip() for path in sorted((sweep.directory / "slurm").glob("*/job_id"))
    ]


def _tasks(sweep: Sweep) -> Iterator[str]:
    """Ask SLURM which tasks of the sweep's jobs wait or run. It knows nothing of what ended long ago."""
    jobs = _jobs(sweep)
    if not jobs:
        return
    # with one id alone an unknown job is an error; a second makes it a job that is left out
    output = _command(
        ["squeue", "--noheader", "--array", "--format=%F_%K %T", f"--jobs={','.join([*jobs, *jobs])}"]
    )
    yield from (line.strip() for line in output.splitlines() if line.strip())


def _command(command: Sequence[str]) -> str:
    """Run one of SLURM's commands with this job's own variables left out: sbatch would hand them on."""
    environment: dict[str, Any] = {
        name: value for name, value in os.environ.items() if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_SECONDS_FOR_A_COMMAND, check=True, env=environment
        ).stdout
    except FileNotFoundError:
        raise BadInputError(f"{command[0]} is not here: this needs a machine of the cluster") from None
    except subprocess.CalledProcessError as error:
        if command[0] == "squeue" and "Invalid job id" in error.stderr:
            return ""
        raise BadInputError(f"{shlex.join(command)} was refused by SLURM: {error.stderr.strip()}") from None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
