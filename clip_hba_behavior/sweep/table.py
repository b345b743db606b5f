"""The results of a sweep in one tidy table: a row for each epoch of each run."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError, StoppedError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.results import METRICS, P_VALUE_CAVEAT
from clip_hba_behavior.sweep.plan import Plan, Run
from clip_hba_behavior.verification.files import RunFiles

Results = dict[int, tuple[dict[str, float], str]]  # of each epoch its metrics and its state digest

COLUMNS = (
    "run",
    "parent",
    "parent_epoch",
    "kind",
    "perturb_epoch",
    "perturb_length",
    "seed",
    "epoch",
    "perturbed",
    *METRICS,
    *(f"{name}_minus_baseline" for name in METRICS[:3]),
    "recovery_epochs",
    "censored",
    "state_digest",
    "equals_baseline",
)


def aggregate(plan: Plan, finished: Mapping[str, int]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the table's rows, in the plan's order, and what is wrong with the runs that are left out.

    A run that extends a shorter one has the epochs before its own from that one. Recovery is the number of
    epochs after the last perturbed one until the test loss is back within the band of the baseline's, and
    censored where the run ends before.

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
        baseline = _recorded(plan.baseline, min(run.epoch for run in runs), plan.last_epoch)
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
            "recovery_epochs": recovery,
            "censored": recovery is None,
            "state_digest": digest,
            "equals_baseline": digest == reference_digest,
        }


def _results(plan: Plan, run: Run, last: int) -> Results:
    """Return a run's epochs up to its last one, from itself and those that it extends."""
    first, shorter = plan.first_own_epoch(run), plan.shorter(run)
    found = _results(plan, shorter, min(last, first - 1)) if shorter is not None else {}
    return found | (_recorded(plan.path(run.name), first, last) if first <= last else {})


def _recorded(path: Path, first: int, last: int) -> Results:
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


def _recovery(plan: Plan, run: Run, own: Results, baseline: Results) -> int | None:
    last_perturbed = run.epoch + run.length - 1
    for epoch in (epoch for epoch in own if epoch > last_perturbed):
        reference = baseline[epoch][0]["test_loss"]
        if abs(own[epoch][0]["test_loss"] - reference) <= plan.file.band * abs(reference):
            return epoch - last_perturbed
    return None


def write_table(plan: Plan, rows: list[dict[str, Any]]) -> Iterator[Path]:
    """Write `sweep.csv`, `sweep.parquet` and the note on the columns; the same rows give the same bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        values = (row[name] for name in COLUMNS)
        writer.writerow(
            ["" if each is None else repr(each) if isinstance(each, float) else each for each in values]
        )
    path = plan.directory / "sweep.csv"
    replace(path, text.getvalue().encode())
    yield path
    path = plan.directory / "sweep.parquet"
    replace(path, _parquet(rows))
    yield path
    path = plan.directory / "sweep_columns.json"
    note = {"caveat": P_VALUE_CAVEAT, "band": plan.file.band, "columns": list(COLUMNS)}
    replace(path, (json.dumps(note, indent=1) + "\n").encode())
    yield path


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {
        bool: pa.bool_(),
        int: pa.int64(),
        float: pa.float64(),
        str: pa.string(),
    }
    kinds: dict[str, type] = dict.fromkeys(COLUMNS, str)
    kinds |= dict.fromkeys(("parent_epoch", "perturb_epoch", "perturb_length", "seed", "epoch"), int)
    kinds |= dict.fromkeys((*METRICS, *(f"{name}_minus_baseline" for name in METRICS[:3])), float)
    kinds |= {"recovery_epochs": int, "perturbed": bool, "censored": bool, "equals_baseline": bool}
    arrays = [pa.array([row[name] for row in rows], type=types[kinds[name]]) for name in COLUMNS]
    sink = io.BytesIO()
    schema = pa.schema(
        [pa.field(name, types[kinds[name]]) for name in COLUMNS], metadata={"caveat": P_VALUE_CAVEAT}
    )
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return sink.getvalue()
