"""The results of a sweep in one tidy table: a row for each epoch of each run."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError, StoppedError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.results import METRICS, P_VALUE_CAVEAT
from clip_hba_behavior.sweep.columns import COLUMNS, EFFECT_COLUMNS, to_csv, to_parquet
from clip_hba_behavior.sweep.effects import Effects
from clip_hba_behavior.sweep.finished import Results, recall
from clip_hba_behavior.sweep.plan import Plan, Run, SweepFile
from clip_hba_behavior.sweep.recovery import Recovery, recovery_of
from clip_hba_behavior.verification.files import RunFiles


def aggregate(plan: Plan, finished: Mapping[str, int]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the table's rows, in the plan's order, and what is wrong with the runs that are left out.

    A run that extends a shorter one has the epochs before its own from that one.

    Args:
        plan: the sweep.
        finished: the last epoch of each run that is done.

    Raises:
        StoppedError: the baseline's own results are not all there.
    """
    runs = [run for run in plan.runs() if run.name in finished]
    rows: list[dict[str, Any]] = []
    problems: dict[str, str] = {}
    if not runs:
        return rows, problems
    try:
        baseline = recorded(plan.baseline, min(run.epoch for run in runs), plan.last_epoch)
    except BadInputError as error:
        raise StoppedError(f"no table without the baseline's results: {error}") from None
    for run in runs:
        try:
            own = _results(plan, run, min(finished[run.name], plan.last_epoch))
        except BadInputError as error:
            problems[run.name] = str(error)
        else:
            rows += _rows_of(plan, run, own, baseline)
    return rows, problems


def _rows_of(plan: Plan, run: Run, own: Results, baseline: Results) -> Iterator[dict[str, Any]]:
    recovery = _recovery(plan, run, own, baseline)
    for epoch, (metrics, digest) in own.items():
        reference, reference_digest = baseline[epoch]
        yield {
            "run": run.name,
            "parent": str(plan.baseline),
            "parent_epoch": run.epoch - 1,
            "kind": run.kind,
            "perturb_epoch": run.epoch,
            "perturb_length": run.length,
            "seed": run.seed,
            "epoch": epoch,
            "perturbed": run.length > 0 and run.epoch <= epoch < run.epoch + run.length,
            **metrics,
            **{f"{name}_minus_baseline": metrics[name] - reference[name] for name in METRICS[:3]},
            "recovery_epochs": recovery and recovery.after_window,
            "recovery_epochs_from_start": recovery and recovery.after_start,
            "followed_epochs": recovery and recovery.followed,
            "censored": recovery and recovery.censored,
            "left_band": recovery and recovery.left_band,
            "state_digest": digest,
            "baseline_state_digest": reference_digest,
            "equals_baseline": digest == reference_digest,
        }


def _results(plan: Plan, run: Run, last: int) -> Results:
    """Return a run's epochs up to its last one, from itself and those that it extends."""
    first, shorter = plan.first_own_epoch(run), plan.shorter(run)
    found = _results(plan, shorter, min(last, first - 1)) if shorter is not None else {}
    if first > last:
        return found
    finished = recall(plan, run)
    if finished is None:
        return found | recorded(plan.path(run.name), first, last)
    return found | {epoch: each for epoch, each in finished.results.items() if epoch <= last}


def recorded(path: Path, first: int, last: int) -> Results:
    """Read what a run recorded of some epochs.

    Raises:
        BadInputError: something of it is not there; names the file.
    """
    files = RunFiles(path)
    metrics = files.rows
    found: Results = {}
    for epoch in range(first, last + 1):
        digest = (files.ledger.end(epoch) or {}).get("state_digest")
        missing = "training_res.csv" if epoch not in metrics else "steps.jsonl" if digest is None else None
        if missing is not None:
            reasons = "".join(f"\n  {each}" for each in files.problems)
            hint = f"\n  `{command_line('resume', path)}` writes the results again from the checkpoints"
            raise BadInputError(
                f"{path / missing} does not have epoch {epoch}{reasons}{hint if epoch not in metrics else ''}"
            )
        found[epoch] = dict(metrics[epoch]), str(digest)
    return found


def _recovery(plan: Plan, run: Run, own: Results, baseline: Results) -> Recovery | None:
    """Return when a run recovered; None for an unperturbed one, which has nothing to recover from."""
    if not run.length or not own:
        return None
    losses, references = (
        {epoch: metrics["test_loss"] for epoch, (metrics, _) in results.items()} for results in (own, baseline)
    )
    return recovery_of(losses, references, run.epoch, run.length, plan.file.band, plan.file.band_epochs)


def write_table(file: SweepFile, directory: Path, rows: list[dict[str, Any]], effects: Effects) -> Iterator[Path]:
    """Write `sweep.csv`, `sweep.parquet`, `sweep_effects.csv` where there is a null, and the note on the columns.

    The same rows give the same bytes.
    """
    path = directory / "sweep.csv"
    replace(path, to_csv(COLUMNS, rows))
    yield path
    path = directory / "sweep.parquet"
    replace(path, to_parquet(COLUMNS, rows, {"caveat": P_VALUE_CAVEAT}))
    yield path
    path = directory / "sweep_effects.csv"
    if compared := list(effects.rows()):
        replace(path, to_csv(EFFECT_COLUMNS, compared))
        yield path
    else:
        path.unlink(missing_ok=True)  # an earlier table's
    path = directory / "sweep_columns.json"
    note = {
        "caveat": P_VALUE_CAVEAT,
        "band": file.band,
        "band_epochs": file.band_epochs,
        "columns": {name: column.rule for name, column in COLUMNS.items()},
        "columns_of_sweep_effects.csv": {name: column.rule for name, column in EFFECT_COLUMNS.items()},
        "notes": list(effects.notes),
    }
    replace(path, (json.dumps(note, indent=1) + "\n").encode())
    yield path
