"""The page of several runs beside each other."""

import statistics
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.report.blocks import Block, Facts, Page, Section, Text, Titled
from clip_hba_behavior.report.colours import INK
from clip_hba_behavior.report.figure import Figure, Level, Mark, Panel, Series, Table, epoch_step
from clip_hba_behavior.report.groups import Group, groups_of
from clip_hba_behavior.report.parting import Parting, partings
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.checkpoint_files import name_epochs
from clip_hba_behavior.sweep.nulls import standard_deviation

_LABELS = {  # as on a run's own page
    "test_loss": "test loss (mean squared error)",
    "train_loss": "training loss (mean squared error)",
    "behavioral_rsa_rho": "behavioural RSA (Spearman’s rho)",
}
_MOST_NAMED = 8  # more single runs are not told apart
_MOST_LEVELS = 3  # more upright lines hide the curves


def runs_page(records: Sequence[RunRecord], session: Session) -> Page:
    """Make the page of several runs, or of results tables.

    Args:
        records: at least one.
        session: told of the progress.
    """
    groups = groups_of(records)
    parted = partings(records, session)
    blocks: list[Block] = [_table(records, groups)]
    blocks += [Text(f"{record.name}: {note}") for record in records for note in record.notes]
    if any(record.config is None for record in records):
        blocks.append(Text("A results table says nothing of seed and settings; tables are taken for equal ones."))
    sections = [
        Section("runs", "Runs", blocks),
        Section("over-epochs", "Over epochs", [
            _over_epochs(groups, parted, "losses", "Losses", ("test_loss", "train_loss")),
            _over_epochs(groups, parted, "alignment", "Behavioural RSA", ("behavioral_rsa_rho",)),
            _trajectories(groups),
        ]),
        Section("final", "In each run’s best epoch", [_spread(group) for group in groups]),
    ]  # fmt: skip
    if parted:
        sections.append(Section("parting", "Where they part", _parting(records, parted)))
    number = len(records)
    title = f"{number} runs beside each other" if number > 1 else f"Results {records[0].name}"
    return Page("index.html", title, "Losses and alignment with people over epochs, by run and by seed.", sections)


def _table(records: Sequence[RunRecord], groups: Sequence[Group]) -> Titled:
    group_of = {run.name: group.name for group in groups for run in group.runs}
    rows = []
    for record in records:
        best = record.best_epoch()
        row = record.rows[best]
        rows.append(
            (
                record.name,
                "table" if record.config is None else "run",
                None if record.config is None else record.config.random_seed,
                name_epochs(record.rows).removeprefix("epochs ").removeprefix("epoch "),
                best,
                row["test_loss"],
                row["behavioral_rsa_rho"],
                group_of[record.name] or "the same",
            )
        )
    columns = ("run", "kind", "seed", "epochs", "best_epoch", "test_loss", "behavioral_rsa_rho", "settings")
    text = (
        "The best epoch has the lowest test loss, so it was chosen by the test images; both metrics are of that "
        "epoch. Test loss: mean squared error between predicted and measured dimensions of the test images. "
        "Behavioural RSA: Spearman’s rho of the model’s and the human RDM of 48 held-out images."
    )
    return Titled("table", "The runs", text, Table(columns, rows))


def _over_epochs(
    groups: Sequence[Group], parted: Sequence[Parting], name: str, title: str, metrics: Sequence[str]
) -> Figure:
    runs = [run for group in groups for run in group.runs]
    ends = [epoch for run in runs for epoch in (min(run.rows), max(run.rows))]
    step = epoch_step(min(ends), max(ends))
    epochs = sorted({epoch for run in runs for epoch in run.rows})
    text = ""
    if any(len(group.distinct()) > 1 for group in groups):
        text = (
            "Thin: single runs. Thick: the mean over the runs with equal settings, at the epochs that all of "
            "them have; its band is one standard deviation (n − 1) of the n runs to either side. "
        )
    if repeating := [run.name for group in groups for run in group.repeating()]:
        text += f"Not counted in a mean, for they repeat another run’s results: {', '.join(repeating)}. "
    if levels := _levels(parted, min(runs[0].rows)):
        text += f"Upright: the first epoch in which a run differs from {runs[0].name}."
    panels = [
        Panel(
            (*_curves(groups, metric), *levels), "epoch", _LABELS[metric],
            title="" if len(metrics) == 1 else _LABELS[metric], x_step=step,
        )
        for metric in metrics
    ]  # fmt: skip
    return Figure(
        name,
        title,
        text.strip(),
        f"{title} of {len(runs)} runs over epochs {epochs[0]} to {epochs[-1]}.",
        tuple(panels),
        Table(
            ("epoch", *(f"{run.name} {metric}" for metric in metrics for run in runs)),
            [
                (
                    epoch,
                    *(
                        run.rows[epoch][metric] if epoch in run.rows else None
                        for metric in metrics
                        for run in runs
                    ),
                )
                for epoch in epochs
            ],
        ),
    )


def _curves(groups: Sequence[Group], metric: str) -> list[Mark]:
    """Return every run's curve, and for each group of several the mean with its band."""
    marks: list[Mark] = []
    is_one = len(groups) == 1
    for number, group in enumerate(groups):
        has_mean = len(group.distinct()) > 1
        for index, run in enumerate(group.runs):
            style = index if is_one and len(group.runs) <= _MOST_NAMED else number
            named = run.name if len(group.runs) <= _MOST_NAMED and (is_one or not has_mean) else ""
            x = [float(epoch) for epoch in run.rows]
            marks.append(Series(x, run.column(metric), named, style, is_faint=has_mean))
        if has_mean:
            x, values = group.over_epochs(metric)
            with np.errstate(invalid="ignore"):  # a loss may be infinite
                mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
            name = f"mean of {len(values)}{', settings ' if group.name else ''}{group.name}"
            style = INK if is_one else number
            marks.append(Series(x, _plain(mean), name, style, low=_plain(mean - sd), high=_plain(mean + sd)))
    return marks


def _levels(parted: Sequence[Parting], first: int) -> list[Mark]:
    """Return a line where runs begin to differ, if not from the first epoch on."""
    epochs: dict[int, list[str]] = {}
    for each in parted:
        if each.epoch is not None and each.epoch > first:
            epochs.setdefault(each.epoch, []).append(each.run)
    if len(epochs) > _MOST_LEVELS:
        return []
    return [
        Level(epoch, f"{_few(names)}: from epoch {epoch}", 3, is_upright=True)
        for epoch, names in sorted(epochs.items())
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{len(names)} runs"


def _trajectories(groups: Sequence[Group]) -> Figure:
    runs = [(run, number) for number, group in enumerate(groups) for run in group.runs]
    marks: list[Mark] = []
    for index, (run, number) in enumerate(runs):
        style = index if len(runs) <= _MOST_NAMED else number
        name = run.name if len(runs) <= _MOST_NAMED else ""
        x, y = run.column("test_loss"), run.column("behavioral_rsa_rho")
        hover = [f"{run.name}, epoch {epoch}" for epoch in run.rows]
        marks.append(Series(x, y, name, style, hover=hover))
        marks.append(Series(x[-1:], y[-1:], "", style, "points", hover=hover[-1:]))
    panel = Panel(tuple(marks), _LABELS["test_loss"], _LABELS["behavioral_rsa_rho"], height=460)
    return Figure(
        "trajectories",
        "Alignment against test loss",
        "A curve for each run, over its epochs; its point is the last one. The numbers are in the tables above.",
        f"Behavioural RSA against test loss of {len(runs)} runs.",
        (panel,),
    )


def _spread(group: Group) -> Facts:
    rows = [("Runs", ", ".join(run.name for run in group.distinct()))]
    if group.name:
        rows.insert(0, (f"Settings {group.name}", group.settings))
    for metric in ("test_loss", "behavioral_rsa_rho"):
        values = [float(value) for value in group.at_best(metric)]
        text = f"{statistics.fmean(values):.4g}"
        if len(values) > 1:
            sd = standard_deviation(values)
            text = (
                f"mean {text}, standard deviation {sd:.2g} (n − 1; n = {len(values)}), {min(values):.4g} to "
                f"{max(values):.4g}"
            )
        rows.append((_LABELS[metric][0].upper() + _LABELS[metric][1:], text))
    return Facts(rows)


def _parting(records: Sequence[RunRecord], parted: Sequence[Parting]) -> list[Block]:
    first = records[0].name
    text = (
        f"The first epoch in which a run differs from {first} in any bit: in its states, its ledger or its "
        "results; of a table, in its results alone. Beside it the settings that differ, likeliest cause first: "
        f"{first}’s value, then the run’s."
    )
    rows = [(each.run, each.epoch, each.what, each.settings) for each in parted]
    return [
        Titled("partings", f"Compared with {first}", text, Table(("run", "first_epoch", "what", "settings"), rows))
    ]


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [float(value) for value in values]
