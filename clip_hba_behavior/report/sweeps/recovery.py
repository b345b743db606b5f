"""How runs come back to their baseline: curves since the perturbation, and the median time of each kind."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_hba_behavior.report.blocks import Titled
from clip_hba_behavior.report.colours import INK
from clip_hba_behavior.report.figure import Cell, Figure, Level, Mark, Panel, Series, Span, Table, epoch_step
from clip_hba_behavior.report.sweeps.record import SweepRecord
from clip_hba_behavior.sweep.recovery import kaplan_meier_median

_MOST_NAMED = 5
Curves = dict[int, dict[int, list[float]]]  # of each start epoch, by epochs since it, the seeds' differences in %


def recovery_curves(record: SweepRecord) -> Iterator[Figure]:
    """Yield a figure for each length: a panel for each kind, a line for each start epoch."""
    baseline = {epoch: row["test_loss"] for epoch, row in record.baseline.rows.items()}
    found: dict[int, dict[str, Curves]] = defaultdict(lambda: defaultdict(dict))
    for rows in record.runs(*record.plan.file.kinds):
        first = rows[0]
        of_start = found[first["perturb_length"]][first["kind"]].setdefault(first["perturb_epoch"], {})
        for row in rows:
            share = 100 * row["test_loss_minus_baseline"] / abs(baseline[row["epoch"]])
            of_start.setdefault(row["epoch"] - first["perturb_epoch"], []).append(share)
    band = 100 * record.plan.file.band
    for length in sorted(found):
        starts = sorted({start for curves in found[length].values() for start in curves})
        named = _spread(starts)
        others = f" {len(starts) - len(named)} further start epochs are grey." if len(named) < len(starts) else ""
        plural = "s" if length > 1 else ""
        yield Figure(
            f"{record.prefix}recovery-{length}",
            f"Recovery: {length} perturbed epoch{plural}",
            "Test loss of the perturbed run minus the baseline’s at the same epoch, as a share of the "
            "baseline’s. 0 on the horizontal axis is the first perturbed epoch. A line is a start epoch, the "
            "mean over seeds; each ends with the baseline’s last epoch, so late starts have short "
            f"lines.{others} Shaded: within {band:g} % of the baseline.",
            f"Difference of the test loss over the epochs since the perturbation, for {len(starts)} start epochs.",
            tuple(_panel(curves, kind, length, band, named) for kind, curves in found[length].items()),
            Table(
                ("kind", "start_epoch", "epochs_since_start", "percent_of_baseline", "seeds"),
                [
                    (kind, start, since, float(np.mean(values)), len(values))
                    for kind, curves in found[length].items()
                    for start, of_start in sorted(curves.items())
                    for since, values in sorted(of_start.items())
                ],
            ),
        )


def _spread(starts: Sequence[int]) -> list[int]:
    """Choose a few start epochs from the first to the last, which get a colour."""
    places = np.linspace(0, len(starts) - 1, min(_MOST_NAMED, len(starts)))
    return [starts[round(place)] for place in places]


def _panel(curves: Curves, kind: str, length: int, band: float, named: Sequence[int]) -> Panel:
    marks: list[Mark] = [Span(-band, band, f"within {band:g} %", is_upright=False)]
    if length > 1:
        marks.append(Level(length - 0.5, "the window’s end", is_upright=True))
    # the grey ones lie below the coloured ones
    for start in sorted(curves, key=lambda each: (each in named, each)):
        of_start = sorted(curves[start].items())
        x = [float(since) for since, _ in of_start]
        y = [float(np.mean(values)) for _, values in of_start]
        is_named = start in named
        marks.append(
            Series(
                x,
                y,
                f"start {start}" if is_named else "",
                named.index(start) if is_named else INK,
                "both" if is_named and len(x) <= 30 else "line",
                hover=[f"start {start}"] * len(x),
                is_faint=not is_named,
            )
        )
    last = max(since for of_start in curves.values() for since in of_start)
    return Panel(
        tuple(marks), "epochs since the first perturbed one", "test loss, % of the baseline’s", kind,
        x_step=epoch_step(0, last),
    )  # fmt: skip


def recovery_medians(record: SweepRecord) -> Titled:
    """Return the table of recovery times: Kaplan and Meier's median for each kind and length."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = defaultdict(list)
    for rows in record.runs(*record.plan.file.kinds):
        groups[rows[0]["kind"], rows[0]["perturb_length"]].append(rows[0])
    band, band_epochs = record.plan.file.band, record.plan.file.band_epochs
    return Titled(
        f"{record.prefix}recovery-medians",
        "Median recovery",
        f"A run has recovered when its test loss comes within {100 * band:g} % of the baseline’s and stays "
        f"there for {band_epochs} consecutive {'epoch' if band_epochs == 1 else 'epochs'}; its time is counted "
        "from the last perturbed epoch to the first of these, and from the first perturbed epoch. Runs that "
        "were never outside had nothing to recover from and are counted apart. A run that ended before it "
        "recovered is censored there; of a censored one without time, the baseline ends too early after the "
        "window for any recovery to be seen. The median is Kaplan and Meier’s: the first time by which at least "
        "half have recovered; none where fewer than half do. It takes a run’s end to tell nothing of when it "
        "would have recovered. Unperturbed runs have no recovery.",
        Table(
            (
                "kind", "length", "runs", "never outside", "recovered", "censored", "of them without time",
                "median after the window", "median after the start",
            ),
            [(*key, *_median_row(runs, key[1])) for key, runs in groups.items()],
        ),
    )  # fmt: skip


def _median_row(runs: Sequence[Mapping[str, Any]], length: int) -> tuple[Cell, ...]:
    inside = [run for run in runs if not run["left_band"] and run["recovery_epochs"] == 1]
    left = [run for run in runs if run not in inside]
    censored = [bool(run["censored"]) for run in left]
    # a censored run is followed for as long as its recovery could have been seen
    times = [run["followed_epochs"] if run["censored"] else run["recovery_epochs"] for run in left]
    without_time = sum(bool(run["censored"]) and run["followed_epochs"] == 0 for run in left)
    median = kaplan_meier_median(times, censored) if left else None
    after_start = None if median is None else median + length - 1
    return len(runs), len(inside), censored.count(False), censored.count(True), without_time, median, after_start
