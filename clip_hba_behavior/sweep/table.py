"""The results of a sweep in one tidy table: a row for each epoch of each run."""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep.plan import Plan, Run
from clip_hba_behavior.verification.history import History, read_history
from clip_hba_behavior.verification.results_table import METRICS, read_results_table

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
CAVEAT = (
    "behavioral_rsa_p_value treats the 1,128 pairs of 48 images as independent, which they are not: "
    "use it to rank, not to test."
)


def gather(plan: Plan, finished: list[Run]) -> list[dict[str, Any]]:
    """Return the table's rows, in the plan's order.

    A run that extends a shorter one has the epochs before its own from that one. Recovery is the number of
    epochs after the last perturbed one until the test loss is back within the band of the baseline's, and
    censored where the run ends before.
    """
    baseline = read_history(plan.baseline)
    by_name = {run.name: run for run in finished}
    rows: list[dict[str, Any]] = []
    for run in finished:
        own = _results(plan, run, by_name)
        recovery = _recovery(plan, run, own, baseline)
        for epoch in sorted(own):
            metrics, digest = own[epoch]
            reference = baseline.results.rows[epoch] if baseline.results is not None else {}
            rows.append(
                {
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
                    "equals_baseline": digest == (baseline.end_of(epoch) or {}).get("state_digest"),
                }
            )
    return rows


def _results(plan: Plan, run: Run, by_name: dict[str, Run]) -> dict[int, tuple[dict[str, float], str]]:
    """Return each epoch's metrics and state digest, from the run and those that it extends."""
    history = read_history(plan.path(run.name))
    found: dict[int, tuple[dict[str, float], str]] = {}
    if run.extends is not None:
        shorter = _results(plan, by_name[run.extends], by_name)
        found = {epoch: each for epoch, each in shorter.items() if epoch < plan.first_own_epoch(run)}
    table = read_results_table(RunDirectory(plan.path(run.name)).path / "training_res.csv")
    return found | {
        epoch: (dict(metrics), str(_end(history, epoch)["state_digest"])) for epoch, metrics in table.rows.items()
    }


def _end(history: History, epoch: int) -> dict[str, Any]:
    return history.end_of(epoch) or {"state_digest": ""}


def _recovery(plan: Plan, run: Run, own: dict[int, tuple[dict[str, float], str]], baseline: History) -> int | None:
    last_perturbed = run.epoch + run.length - 1
    for epoch in sorted(epoch for epoch in own if epoch > last_perturbed):
        reference = baseline.results.rows[epoch]["test_loss"] if baseline.results is not None else float("nan")
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
    note = {"caveat": CAVEAT, "band": plan.file.band, "columns": list(COLUMNS)}
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
    schema = pa.schema([pa.field(name, types[kinds[name]]) for name in COLUMNS], metadata={"caveat": CAVEAT})
    pq.write_table(pa.Table.from_arrays(arrays, schema=schema), sink)
    return sink.getvalue()
