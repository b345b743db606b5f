"""The `clip-hba sweep` commands: read the sweep's file, do what is asked, print.

What needs torch is imported once the file is read: a wrong path or key is told at once.
"""

import random
import statistics
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from clip_hba_behavior.reproducibility.record.lease import hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.run.checkpoint_files import list_checkpoints, name_epochs
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import epoch_seconds, session
from clip_hba_behavior.sweep import slurm
from clip_hba_behavior.sweep.local import cancel_local, refuse_no_fork_server, run_locally
from clip_hba_behavior.sweep.plan import Plan, Run, make_plan, read_sweep_file
from clip_hba_behavior.sweep.progress import SweepProgress
from clip_hba_behavior.sweep.status import Status, status_of


def read_plan(sweep: Path) -> Plan:
    """Read a sweep's file and list its runs."""
    return make_plan(read_sweep_file(sweep))


def plan(sweep: Path) -> int:
    """Print the runs, what they share, and what they will cost as measured on the baseline."""
    planned = read_plan(sweep)
    for chain in planned.chains:
        for run in chain:
            shares = f", continues {run.extends}" if run.extends else ""
            print(f"{run.name}: epochs {planned.first_own_epoch(run)} to {planned.last_epoch}{shares}")
    print()
    for line in _not_in_the_table(planned):
        print(line)
    seconds, checkpoint = _cost_of_an_epoch(planned)
    runs, trained, alone = len(planned.runs()), planned.epochs_to_train(), planned.epochs_alone()
    files = trained + runs
    print(f"{runs} runs, {trained} epochs to train; {alone} if each began at the baseline")
    if seconds is None:
        print("the baseline's log tells no times")
    else:
        at_once = planned.num_processes()
        print(
            f"{seconds:.2f} s per epoch on the baseline: {_hours(trained * seconds)} of one process, "
            f"{_hours(trained * seconds / at_once)} with {at_once} at once here; start-up apart"
        )
    print(f"{files} checkpoints of {checkpoint / 1e6:.2f} MB: {files * checkpoint / 1e9:.2f} GB")
    return 0


def _not_in_the_table(planned: Plan) -> Iterator[str]:
    """Name the runs that someone may expect in the table: asked for but impossible, or there but not asked for."""
    left_out = Counter((run.epoch, run.length) for run in planned.left_out)
    if left_out:
        yield (
            f"{_runs(left_out.total())} left out: the perturbation would go beyond the baseline's last epoch, "
            f"{planned.last_epoch}"
        )
        for (epoch, length), number in left_out.items():
            yield f"  {name_epochs(range(epoch, epoch + length))}: {number} of them"
        if planned.file.epochs != "all":  # else a longer baseline would have as many at its end
            end = max(epoch + length - 1 for epoch, length in left_out)
            longer = command_line("resume", planned.baseline, "--set", f"epochs={end}")
            yield f"  to have them, train the baseline further: {longer}"
    folder = planned.directory / "runs"
    there = {each.name for each in folder.iterdir() if each.is_dir()} if folder.is_dir() else set()
    if others := sorted(there - {run.name for run in planned.runs()}):
        names = ", ".join(others)
        yield f"{_runs(len(others))} in {folder}, but not in the sweep's file, so not in the table: {names}"
        yield "  to have them in the table, ask for them in the file; else give the sweep another directory"


def _runs(number: int) -> str:
    return f"{number} runs are" if number != 1 else "1 run is"


def _cost_of_an_epoch(planned: Plan) -> tuple[float | None, int]:
    """Return an epoch's median seconds and a checkpoint's bytes, of the baseline."""
    baseline = RunDirectory(planned.baseline)
    found = [seconds for _, seconds in epoch_seconds(baseline.log_file)]
    newest = list_checkpoints(baseline.checkpoints)[planned.last_epoch]
    return (statistics.median(found) if found else None), newest.stat().st_size


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def run(sweep: Path, engine: str) -> int:
    """Do what is missing of a sweep, and write the table; return 0 if every run is done, else 1."""
    planned = read_plan(sweep)
    if engine not in ("local", "slurm"):
        raise BadInputError(f"--engine {engine}: expected local or slurm")
    if engine == "local":
        refuse_no_fork_server()
    planned.directory.mkdir(parents=True, exist_ok=True)
    replace(planned.copied_file(), sweep.read_bytes())
    if engine == "slurm":
        print(slurm.submit(planned))
        return 0
    total, done = len(planned.runs()), 0

    def report(each: Run, status: Status) -> None:
        nonlocal done
        done += 1
        progress.end(each.name)
        print(f"[{done}/{total}] {each.name}: {status.state}", flush=True)
        if status.detail:
            print(f"  {_indented(status.detail)}", flush=True)

    with session() as here, hold(planned.directory):
        progress = SweepProgress(planned, here.report)
        try:
            run_locally(planned, here.stop, report, progress.look)
        except InterruptedRunError as error:
            error.next_step = go_on_with(command_line("sweep", "resume", sweep))
            raise
    return collect(planned)


def table(sweep: Path) -> int:
    """Aggregate the finished runs of a sweep, as `collect` does.

    Raises:
        BadInputError: the sweep has not begun.
    """
    planned = read_plan(sweep)
    if not planned.directory.is_dir():
        begin = command_line("sweep", "run", sweep)
        raise BadInputError(
            f"there is nothing in {planned.directory} yet: the sweep has not begun\n  begin: {begin}"
        )
    return collect(planned)


def collect(planned: Plan) -> int:
    """Aggregate the finished runs into the table; return 0 if that is all of them and every control holds."""
    from clip_hba_behavior.sweep.table import aggregate, write_table

    states = {each.name: status_of(planned, each) for each in planned.runs()}
    finished = {name: int(found.epoch or 0) for name, found in states.items() if found.state == "done"}
    rows, problems = aggregate(planned, finished)
    for path in write_table(planned, rows):
        print(path)
    problems |= {name: found.detail for name, found in states.items() if found.state == "failed"}
    for name, problem in problems.items():
        print(f"{name} is not in the table\n  {_indented(problem)}")
    controls = {row["run"] for row in rows if row["kind"] == "none"}
    failed = sorted({row["run"] for row in rows if row["kind"] == "none" and not row["equals_baseline"]})
    print(f"{len(finished)} of {len(states)} runs are done")
    for line in _not_in_the_table(planned):
        print(line)
    if controls:
        print(f"controls equal to the baseline byte for byte: {len(controls) - len(failed)} of {len(controls)}")
    for name in failed:
        where = command_line("diff", planned.baseline, planned.path(name))
        print(f"control {name} is not the baseline; find out where: {where}")
    return 0 if len(finished) == len(states) and not failed and not problems else 1


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n  ")


def status(sweep: Path) -> int:
    """Print how far each run is; of failed ones the last lines of the error."""
    planned = read_plan(sweep)
    counts: Counter[str] = Counter()
    for each in planned.runs():
        found = status_of(planned, each)
        counts[found.state] += 1
        if found.state != "done":
            at = f" at epoch {found.epoch} of {planned.last_epoch}" if found.epoch is not None else ""
            print(f"{each.name}: {found.state}{at}")
            if found.detail:
                print(f"  {_indented(found.detail)}")
    for line in slurm.describe_jobs(planned):
        print(line)
    for line in _not_in_the_table(planned):
        print(line)
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    return 0 if counts["done"] == counts.total() else 1


def cancel(sweep: Path) -> int:
    """Stop what runs of a sweep; each run saves its state first."""
    planned = read_plan(sweep)
    for line in (cancel_local(planned), slurm.cancel(planned)):
        print(line)
    return 0


def verify(sweep: Path, sample: int, seed: int) -> int:
    """Replay one random epoch of some finished runs, and compare the bits; return 0 if all are reproducible."""
    planned = read_plan(sweep)
    states = [(each, status_of(planned, each)) for each in planned.runs()]
    finished = [  # with the epochs that each trained itself: none, if the run that it extends stopped early
        (each, epochs)
        for each, found in states
        if found.state == "done" and (epochs := range(planned.first_own_epoch(each), int(found.epoch or 0) + 1))
    ]
    if not finished:
        how_far = command_line("sweep", "status", sweep)
        raise BadInputError(f"no run of {planned.directory} is done yet\n  see how far they are: {how_far}")
    from clip_hba_behavior.verification.text import closing_line, epoch_block
    from clip_hba_behavior.verification.verify import verify_checkpoints

    chance = random.Random(seed)
    codes = []
    sampled = chance.sample(finished, min(sample, len(finished)))
    for each, epochs in sorted(sampled, key=lambda pair: pair[0].name):
        epoch = chance.choice(epochs)
        with session() as here:
            outcome = verify_checkpoints(planned.path(each.name), {}, [epoch], None, here)
        print(f"{each.name}: {closing_line(outcome)}")
        if outcome.word().exit_code():
            print("\n".join(epoch_block(found) for found in outcome.epochs))
        codes.append(outcome.word().exit_code())
    print(f"{codes.count(0)} of {len(codes)} sampled epochs are reproducible")
    return max(codes, key=lambda code: (code != 0, -code))
