"""A sample of a sweep's epochs verified by tasks of SLURM: submitted by one call, collected by the next ones."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError, StoppedError
from clip_hba_behavior.reproducibility.state.files import publish, replace
from clip_hba_behavior.run.advice import go_on_with
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.log import session
from clip_hba_behavior.sweep.cluster import array_option, coming_back, submit_script
from clip_hba_behavior.sweep.sample import Sample, Verified, exit_code, summary, verify
from clip_hba_behavior.sweep.sizing import counted, seconds_per_epoch, share_out
from clip_hba_behavior.sweep.slurm import MAX_ARRAY, SAMPLES, add_job, busy_tasks_of, folders_of, submit_tasks
from clip_hba_behavior.sweep.sweep import Sweep


def submit_or_collect(sweep: Sweep, samples: Sequence[Sample], again: str) -> tuple[list[str], int]:
    """Submit a sample, or tell what its tasks found so far; what no task works on any more is submitted again.

    Args:
        sweep: the sweep.
        samples: as `choose` gives them; not asked for where an earlier sample by the same command is there and its
            files have not changed, though further runs may be done by now.
        again: the command that submits and collects.

    Returns:
        What to print, and the exit code: 0 once it is submitted, 1 while epochs are not verified yet.

    Raises:
        BadInputError: SLURM is not here, or refuses.
    """
    for folder in reversed(folders_of(sweep, SAMPLES)):
        content = _read(folder)
        before = [Sample(**each) for each in content["samples"]]
        if content["again"] == again and all(each.is_current() for each in before):
            return _collect(sweep, folder, before, again)
    seconds = {str(plan.baseline): seconds_per_epoch(plan) for plan in sweep.plans}
    times = [None if (each := seconds[one.baseline]) is None else one.epochs * each for one in samples]
    shares = share_out(times, sweep.file.slurm, "epoch")
    at_once = -(-len(shares.tasks) // MAX_ARRAY)  # of an array that may not have so many tasks
    tasks = [
        [number for task in shares.tasks[first : first + at_once] for number in task]
        for first in range(0, len(shares.tasks), at_once)
    ]
    content = {"samples": [asdict(each) for each in samples], "tasks": tasks, "again": again}
    job, folder = submit_tasks(sweep, SAMPLES, content, len(tasks))
    counts = f"{counted(len(tasks), 'task')}, {counted(len(samples), 'epoch')} to verify"
    return [f"job {job}: {counts}; logs in {folder}", shares.reason, f"see what they find: {again}"], 0


def _collect(sweep: Sweep, folder: Path, samples: Sequence[Sample], again: str) -> tuple[list[str], int]:
    lines, complete, missing = [], [], []
    for number, sample in enumerate(samples):
        found = _verified(folder, number)
        if found is not None:
            complete.append(found)
            lines.append(found.text())
            continue
        missing.append(number)
        if (failure := _failure(folder, number)).exists():
            reason = failure.read_text(encoding="utf-8").strip()
            lines.append(f"{sample.run}: could not be verified\n  {reason}")
    if not missing:
        kept = f"as {folder} has it; to verify others, give another --seed; to verify these again, remove it"
        return [*lines, summary(complete), kept], exit_code(complete)
    lines.append(f"{len(missing)} of {len(samples)} sampled epochs are not verified yet")
    if busy := busy_tasks_of([folder]):
        return [*lines, f"jobs that wait or run: {len(busy)}; see what they find: {again}"], 1
    left = [index for index, its in enumerate(_read(folder)["tasks"]) if set(its) & set(missing)]
    job = submit_script(folder / "job.sh", array_option(sweep.file.slurm, ",".join(map(str, left))))
    add_job(folder, job)
    return [*lines, f"no job works on them: submitted again as job {job}; logs in {folder}"], 1


def work(folder: Path, index: int) -> int:
    """Verify one task's share of a sample, as the job script asks; what is verified already is left alone.

    Returns:
        The exit code: 1 if an epoch could not be verified.

    Raises:
        BadInputError: there is no such task.
        InterruptedRunError: SLURM asked it to leave.
    """
    try:
        content = _read(folder)
        samples = {number: Sample(**content["samples"][number]) for number in content["tasks"][index]}
    except (LookupError, TypeError) as error:
        raise BadInputError(f"{folder} has no task {index}: {error}") from None
    kept: Kept[Any] = Kept()
    code = 0
    with coming_back(go_on_with(content["again"])) as stop:
        for number, sample in samples.items():
            if _verified(folder, number) is not None:
                continue
            stop.check()
            try:
                with session() as here:
                    found = verify(sample, here, kept)
            except (BadInputError, NotReproducibleError, StoppedError) as error:
                print(f"{sample.run}: {error}", file=sys.stderr, flush=True)
                replace(_failure(folder, number), f"{error}\n".encode())
                code = 1
                continue
            publish(_result(folder, number), (json.dumps(asdict(found), indent=1) + "\n").encode())
            _failure(folder, number).unlink(missing_ok=True)
            print(found.text(), flush=True)
    return code


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / SAMPLES).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{folder / SAMPLES} cannot be read: {error}") from None


def _result(folder: Path, number: int) -> Path:
    return folder / f"verified_{number}.json"


def _failure(folder: Path, number: int) -> Path:
    return folder / f"failed_{number}.txt"


def _verified(folder: Path, number: int) -> Verified | None:
    """Return what a task found of an epoch; None where none has come to it."""
    try:
        return Verified(**json.loads(_result(folder, number).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
