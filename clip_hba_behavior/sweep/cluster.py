"""SLURM's commands: job scripts that come back, submission, and what SLURM knows of jobs.

`sbatch` itself rather than submitit: submitit counts a preemption as a time-out when the limit is short,
pickles what it runs, and does not say `exec`, without which the signal never reaches Python.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.signals import StopRequest, stopping_on_signals
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.sweep.plan import SlurmSettings

_SECONDS_FOR_A_COMMAND = 120
_COMES_BACK = "SIGUSR2"  # before a preemption or the time limit; TERM is scancel
_ACCOUNTS = ("JobID", "State", "ExitCode", "Elapsed", "MaxRSS", "ReqMem")


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
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job],
            capture_output=True,
            text=True,
            timeout=_SECONDS_FOR_A_COMMAND,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"scontrol requeue {job}: {error}", file=sys.stderr)
        return False
    is_back = done.returncode == 0 or "pending execution" in done.stderr
    if not is_back:
        print(f"scontrol requeue {job}: {done.stderr.strip()}", file=sys.stderr)
    return is_back


def submit_script(script: Path, *options: str) -> str:
    """Submit a job script, with options in place of its own; return the job's number.

    Raises:
        BadInputError: SLURM is not here, or refuses.
    """
    return run_command(["sbatch", "--parsable", *options, str(script)]).strip().partition(";")[0]


def submit_array(folder: Path, settings: SlurmSettings, num_tasks: int) -> str:
    """Write the job script of an array whose tasks are described in a folder, and submit it; return its number.

    Raises:
        BadInputError: SLURM is not here, or refuses.
    """
    options = [
        "--job-name=clip-hba-sweep",
        array_option(settings, f"0-{num_tasks - 1}"),
        f"--output={folder}/task_%a.log",
    ]
    words = shlex.join([sys.executable, "-m", "clip_hba_behavior", "sweep", "task", str(folder)])
    script = batch_script(settings, options, f'{words} --index "$SLURM_ARRAY_TASK_ID"')
    publish(folder / "job.sh", script.encode())
    return submit_script(folder / "job.sh")


def array_option(settings: SlurmSettings, tasks: str) -> str:
    """Return the option of sbatch that names an array's tasks, such as `0-7`, and how many run at once."""
    return f"--array={tasks}" + (f"%{settings.throttle}" if settings.throttle is not None else "")


@dataclass(frozen=True)
class Task:
    """A task of a job array.

    Attributes:
        job: the array's number.
        index: within the array.
        state: in SLURM's word, such as PENDING.
    """

    job: str
    index: int
    state: str

    def name(self) -> str:
        """Return what SLURM calls it."""
        return f"{self.job}_{self.index}"


def busy_tasks(jobs: Sequence[str]) -> list[Task]:
    """Ask SLURM which tasks of some jobs wait or run. It knows nothing of what ended long ago.

    Raises:
        BadInputError: SLURM is not here, or refuses.
    """
    if not jobs:
        return []
    # with one id alone an unknown job is an error; a second makes it a job that is left out
    output = run_command(
        ["squeue", "--noheader", "--array", "--format=%F %K %T", f"--jobs={','.join([*jobs, *jobs])}"]
    )
    found = (line.split() for line in output.splitlines() if line.strip())
    return [Task(job, int(index), state) for job, index, state in found]


@dataclass(frozen=True)
class Account:
    """What SLURM's accounting keeps of a task that ended.

    Attributes:
        state: in SLURM's word, such as OUT_OF_MEMORY.
        exit_code: exit code and number of the signal that ended it, such as `1:0`.
        elapsed: the time that it took, such as 00:10:03.
        memory: the most that it used, such as 812344K; empty where that is not measured.
        requested: memory that it asked for.
    """

    state: str
    exit_code: str
    elapsed: str
    memory: str
    requested: str

    def describe(self) -> str:
        """Return it in words."""
        code, _, number = self.exit_code.partition(":")
        end = f"exit code {code}" if number in ("", "0") else f"signal {number}"
        memory = f", used {self.memory}" if self.memory else ", memory not measured"
        asked_for = f" of {self.requested}" if self.memory and self.requested else ""
        return f"{self.state}, {end}, after {self.elapsed}{memory}{asked_for}"


def accounts_of(tasks: Sequence[str]) -> dict[str, Account]:
    """Ask SLURM's accounting how tasks ended, the last time where they were requeued.

    Args:
        tasks: their names, such as `7_3`.

    Raises:
        BadInputError: there is no accounting here; says why.
    """
    options = ["--noheader", "--parsable2", f"--format={','.join(_ACCOUNTS)}"]
    jobs = dict.fromkeys(task.partition("_")[0] for task in tasks)  # thousands of tasks are too long a line
    output = run_command(["sacct", *options, f"--jobs={','.join(jobs)}"])
    rows = [line.split("|") for line in output.splitlines() if line.count("|") == len(_ACCOUNTS) - 1]
    found: dict[str, Account] = {}
    for task, *values in rows:
        if "." not in task:
            found[task] = Account(*values)
    for task, _, _, _, memory, _ in rows:  # a row for each step: memory is the batch script's
        name, _, step = task.partition(".")
        if step == "batch" and memory and name in found:
            found[name] = replace(found[name], memory=memory)
    return {task: found[task] for task in tasks if task in found}


def run_command(command: Sequence[str]) -> str:
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
    except subprocess.TimeoutExpired:
        raise BadInputError(f"{command[0]}: SLURM gave no answer for {_SECONDS_FOR_A_COMMAND} s") from None
    except subprocess.CalledProcessError as error:
        if command[0] == "squeue" and "Invalid job id" in error.stderr:
            return ""
        raise BadInputError(f"{command[0]} was refused by SLURM: {error.stderr.strip()}") from None
