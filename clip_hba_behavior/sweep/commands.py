"""The `clip-hba sweep` commands: read the sweep's file, do what is asked, print.

What needs torch is imported once the file is read: a wrong path or key is told at once.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.lease import hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory, remove_temporary_files
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.log import session
from clip_hba_behavior.run.workers import refuse_no_fork_server
from clip_hba_behavior.sweep import sample_tasks, slurm
from clip_hba_behavior.sweep.collected import collect, not_in_the_table, of_no_baseline
from clip_hba_behavior.sweep.local import cancel_local, run_locally
from clip_hba_behavior.sweep.plan import Plan, Run
from clip_hba_behavior.sweep.progress import SweepProgress
from clip_hba_behavior.sweep.sample import choose, exit_code, summary
from clip_hba_behavior.sweep.sample import verify as verify_sample
from clip_hba_behavior.sweep.sizing import counted, seconds_per_epoch
from clip_hba_behavior.sweep.status import Status, status_of
from clip_hba_behavior.sweep.sweep import Sweep, read_sweep
from clip_hba_behavior.sweep.watch import watch


def plan(sweep: Path) -> int:
    """Print the runs, what they share, and what they will cost as measured on the baseline."""
    planned = read_sweep(sweep)
    for each, run in planned.runs():
        shares = f", continues {run.extends}" if run.extends else ""
        print(f"{run.name}: epochs {each.first_own_epoch(run)} to {each.last_epoch}{shares}")
    print()
    _print_not_in_the_table(planned)
    runs, trained = len(planned.runs()), sum(each.epochs_to_train() for each in planned.plans)
    alone = sum(each.epochs_alone() for each in planned.plans)
    print(f"{runs} runs, {trained} epochs to train; {alone} if each began at the baseline")
    if null := sum(run.kind == "reorder" for _, run in planned.runs()):
        seeds = planned.file.null_seeds
        from clip_hba_behavior.sweep.nulls import least_p_note

        print(f"{null} of them are the null of effects: reorder, seeds 1 to {seeds}, for each start and length")
        print(least_p_note(seeds))
    for each in planned.plans:
        if len(planned.plans) > 1:
            print(f"{each.baseline}: {len(each.runs())} runs, {each.epochs_to_train()} epochs")
        _print_cost(each, planned.num_processes())
    if runs and "slurm" in planned.file.model_fields_set:
        divided = slurm.share_out_chains(planned, planned.chains(), {})
        print(f"on SLURM: {counted(len(divided.tasks), 'task')}; {divided.reason}")
    return 0


def _print_cost(planned: Plan, at_once: int) -> None:
    seconds, checkpoint = seconds_per_epoch(planned), _bytes_of_a_checkpoint(planned)
    trained = planned.epochs_to_train()
    if seconds is None:
        print("the baseline's log tells no times")
    else:
        print(
            f"{seconds:.2f} s per epoch on the baseline: {_hours(trained * seconds)} of one process, "
            f"{_hours(trained * seconds / at_once)} with {at_once} at once here; start-up apart"
        )
        if to_make := planned.states_to_make():
            print(f"{to_make} states of the baseline are made again first: {_hours(to_make * seconds)} or more")
    for line in _disk(planned, checkpoint, seconds):
        print(line)


def _print_not_in_the_table(planned: Sweep) -> None:
    for each in planned.plans:
        for line in not_in_the_table(each):
            print(line)
    for line in of_no_baseline(planned):
        print(line)


def _disk(planned: Plan, checkpoint: int, seconds: float | None) -> Iterator[str]:
    """Yield what the checkpoints take if all are kept, and if few are, and what making one of the others takes."""
    runs = planned.runs()
    own = [planned.last_epoch - planned.first_own_epoch(run) + 2 for run in runs]  # with the one it begins with
    # the first, the best, the last, and what a longer run begins with
    few = [min(each, 3 + (planned.longer(run) is not None)) for run, each in zip(runs, own, strict=True)]
    kept = {**planned.retention(), **planned.file.settings}.get("keep_checkpoints")
    kept = kept or RunDirectory(planned.baseline).read_config().keep_checkpoints
    yield f"a checkpoint has {checkpoint / 1e6:.2f} MB; keep_checkpoints is {kept}"
    yield f"  all:  {sum(own)} checkpoints, {sum(own) * checkpoint / 1e9:.2f} GB"
    again = "" if seconds is None else f"; any other is made again in at most {_hours(max(own) * seconds)}"
    yield f"  best: {sum(few)} checkpoints at most, {sum(few) * checkpoint / 1e9:.2f} GB{again}"


def _bytes_of_a_checkpoint(planned: Plan) -> int:
    newest = list_checkpoints(RunDirectory(planned.baseline).checkpoints)[planned.last_epoch]
    return newest.stat().st_size


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def run(sweep: Path, engine: str) -> int:
    """Do what is missing of a sweep, and write the table; return 0 if every run is done, else 1."""
    planned = read_sweep(sweep)
    _refuse_other_engine(engine)
    if engine == "local":
        refuse_no_fork_server("a sweep")
    planned.directory.mkdir(parents=True, exist_ok=True)
    if engine == "slurm":
        replace(planned.copied_file(), sweep.read_bytes())
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
        kept = [planned.directory / each / its.prefix for each in ("finished", "failed") for its in planned.plans]
        remove_temporary_files(planned.directory, *kept)
        replace(planned.copied_file(), sweep.read_bytes())
        progress = SweepProgress(planned, here.report)
        try:
            run_locally(planned, here.stop, report, progress.look)
        except InterruptedRunError as error:
            error.next_step = go_on_with(command_line("sweep", "resume", sweep))
            raise
    return _write_table(planned)


def table(sweep: Path) -> int:
    """Aggregate the finished runs of a sweep, name what is not in the table; return 0 if all is.

    Raises:
        BadInputError: the sweep has not begun.
    """
    planned = read_sweep(sweep)
    if not planned.directory.is_dir():
        begin = command_line("sweep", "run", sweep)
        raise BadInputError(
            f"there is nothing in {planned.directory} yet: the sweep has not begun\n  begin: {begin}"
        )
    return _write_table(planned)


def _write_table(planned: Sweep) -> int:
    """Aggregate the finished runs into the table; return 0 if that is all of them and every control holds."""
    collected = [collect(each) for each in planned.plans]
    rows = [row for found in collected for row in found.rows]
    from clip_hba_behavior.sweep.effects import effects_of
    from clip_hba_behavior.sweep.table import write_table

    effects = effects_of(rows)
    for path in write_table(planned.file, planned.directory, rows, effects):
        print(path)
    for note in effects.notes:
        print(note)
    for found in collected:
        for name, problem in found.problems.items():
            print(f"{name} is not in the table\n  {_indented(problem)}")
    num_done = sum(found.num_done() for found in collected)
    print(f"{num_done} of {len(planned.runs())} runs are done")
    _print_not_in_the_table(planned)
    num_controls = sum(len(found.controls()) for found in collected)
    failed = [(found.plan, name) for found in collected for name in found.failed_controls()]
    if num_controls:
        print(f"controls equal to the baseline byte for byte: {num_controls - len(failed)} of {num_controls}")
    for its, name in failed:
        where = command_line("diff", its.baseline, its.path(name))
        print(f"control {name} is not the baseline; find out where: {where}")
    return 0 if all(found.is_complete() for found in collected) else 1


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n  ")


def status(sweep: Path) -> int:
    """Print how far each run is; of failed ones the last lines of the error."""
    planned = read_sweep(sweep)
    counts: Counter[str] = Counter()
    not_done = set()
    for its, each in planned.runs():
        found = status_of(its, each)
        counts[found.state] += 1
        if found.state != "done":
            not_done.add(each.name)
            at = f" at epoch {found.epoch} of {its.last_epoch}" if found.epoch is not None else ""
            print(f"{each.name}: {found.state}{at}")
            if found.detail:
                print(f"  {_indented(found.detail)}")
    for line in slurm.describe_jobs(planned, not_done):
        print(line)
    _print_not_in_the_table(planned)
    print(", ".join(f"{number} {state}" for state, number in counts.items()))
    return 0 if counts["done"] == counts.total() else 1


def cancel(sweep: Path) -> int:
    """Stop what runs of a sweep; each run saves its state first."""
    planned = read_sweep(sweep)
    print(cancel_local(planned), flush=True)  # told even where SLURM then refuses
    print(slurm.cancel(planned))
    return 0


def watch_status(sweep: Path) -> int:
    """Show how far each run is until nothing works on the sweep any more; then say it as `status` does."""
    planned = read_sweep(sweep)
    with session() as here:
        try:
            watch(planned, here)
        except InterruptedRunError as error:
            error.next_step = (
                f"the sweep goes on; watch it again: {command_line('sweep', 'status', sweep, '--watch')}"
            )
            raise
    return status(sweep)


def verify(sweep: Path, number: int, seed: int, engine: str) -> int:
    """Replay one random epoch of some finished runs, and compare the bits; return 0 if all are reproducible."""
    planned = read_sweep(sweep)
    _refuse_other_engine(engine)
    samples = choose(planned, number, seed)
    if not samples:
        how_far = command_line("sweep", "status", sweep)
        raise BadInputError(f"no run of {planned.directory} is done yet\n  see how far they are: {how_far}")
    if engine == "slurm":
        options = ("--sample", number, "--seed", seed, "--engine", "slurm")
        again = command_line("sweep", "verify", planned.copied_file(), *options)
        lines, code = sample_tasks.submit_or_collect(planned, samples, again)
        print("\n".join(lines))
        return code
    kept: Kept[Any] = Kept()
    verified = []
    for each in samples:
        with session() as here:
            verified.append(verify_sample(each, here, kept))
        print(verified[-1].text())
    print(summary(verified))
    return exit_code(verified)


def task(folder: Path, index: int) -> int:
    """Execute one task of a job array: its share of the chains, or of a sample to verify; return the exit code."""
    is_sample = (folder / slurm.SAMPLES).exists()
    return sample_tasks.work(folder, index) if is_sample else slurm.work(folder, index)


def _refuse_other_engine(engine: str) -> None:
    if engine not in ("local", "slurm"):
        raise BadInputError(f"--engine {engine}: expected local or slurm")
