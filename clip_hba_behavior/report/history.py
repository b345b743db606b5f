"""Figures of what a run's results tell, epoch by epoch."""

import statistics
from collections.abc import Sequence
from typing import Literal

from clip_hba_behavior.report.colours import INK
from clip_hba_behavior.report.figure import Figure, Level, Mark, Panel, Series, Span, Table, epoch_step
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.listing import in_time
from clip_hba_behavior.run.log import epoch_seconds

_LEAST_DISTANCE = 0.08  # of two labels, as a share of the panel


def epochs_of(record: RunRecord) -> list[float]:
    """Return the recorded epochs, as numbers of an axis."""
    return [float(epoch) for epoch in record.rows]


def perturbed_span(record: RunRecord) -> list[Mark]:
    """Return the shade over the perturbed epochs of a fork; none of another run."""
    config = record.config
    if config is None or config.perturb_type == "none" or config.perturb_epoch is None:
        return []
    last = config.perturb_epoch + config.perturb_length - 1
    return [Span(config.perturb_epoch - 0.5, last + 0.5, f"perturbed: {config.perturb_type}")]


def recorded_figures(record: RunRecord) -> list[Figure]:
    """Return the figures that need neither checkpoints nor data."""
    times = epoch_times(record)
    return [losses(record), trajectory(record), *([] if times is None else [times])]


def losses(record: RunRecord) -> Figure:
    """Return the figure of the training and the test loss."""
    x, best = epochs_of(record), record.best_epoch()
    train, test = record.column("train_loss"), record.column("test_loss")
    marks: list[Mark] = [
        *perturbed_span(record),
        Series(x, train, "training images", 0, _kind(x)),
        Series(x, test, "test images", 1, _kind(x)),
        Level(best, f"lowest test loss: epoch {best}", INK, is_upright=True),
    ]
    return Figure(
        "losses",
        "Losses",
        "Mean squared error between predicted and measured dimensions. Of the training images it is the mean over "
        "an epoch’s steps, while the parameters change; of the test images it is taken after the epoch.",
        f"Training and test loss over {len(x)} epochs. The test loss is lowest, "
        f"{record.rows[best]['test_loss']:.4g}, after epoch {best}.",
        (Panel(tuple(marks), "epoch", "mean squared error", x_step=epoch_step(x[0], x[-1])),),
        Table(("epoch", "train_loss", "test_loss"), list(zip(record.rows, train, test, strict=True))),
    )


def trajectory(record: RunRecord) -> Figure:
    """Return the figure of alignment against test loss, its epochs named along the curve."""
    test, rho = record.column("test_loss"), record.column("behavioral_rsa_rho")
    return Figure(
        "trajectory",
        "Alignment against test loss",
        "Each point is the model after one epoch; numbers name epochs. A curve that goes to the left without "
        "rising predicts the dimensions better, but not the dissimilarities of the held-out images.",
        f"Behavioural RSA against test loss, from epoch {min(record.rows)} to {max(record.rows)}.",
        (
            Panel(
                (
                    Series(
                        test, rho, style=0, kind="both", labels=named_epochs(list(record.rows), test, rho),
                        hover=[f"epoch {epoch}" for epoch in record.rows],
                    ),
                ),
                "test loss (mean squared error)",
                "behavioural RSA (Spearman’s rho)",
            ),
        ),
        Table(("epoch", "test_loss", "behavioral_rsa_rho"), list(zip(record.rows, test, rho, strict=True))),
    )  # fmt: skip


def named_epochs(epochs: Sequence[int], x: Sequence[float], y: Sequence[float]) -> list[str]:
    """Return a label for each point of a curve: its epoch, or nothing where another label is too near.

    The last and the first epoch come first, then those that end in zeros.
    """
    width, height = (max(values) - min(values) or 1.0 for values in (x, y))
    places = [(a / width, b / height) for a, b in zip(x, y, strict=True)]
    chosen: list[int] = []
    order = sorted(
        range(1, len(epochs) - 1), key=lambda index: (epochs[index] % 10 > 0, epochs[index] % 5 > 0, index)
    )
    for index in (len(epochs) - 1, 0, *order):
        apart = (max(abs(places[index][axis] - places[each][axis]) for axis in (0, 1)) for each in chosen)
        if index not in chosen and all(distance >= _LEAST_DISTANCE for distance in apart):
            chosen.append(index)
    return [str(epoch) if index in chosen else "" for index, epoch in enumerate(epochs)]


def _kind(x: Sequence[float]) -> Literal["line", "both"]:
    return "both" if len(x) <= 30 else "line"


def alignment_recorded(record: RunRecord) -> Figure:
    """Return the figure of behavioural RSA as the run recorded it: without an interval."""
    x, rho = epochs_of(record), record.column("behavioral_rsa_rho")
    return Figure(
        "alignment",
        "Behavioural RSA over epochs, as recorded",
        "Spearman’s rho of the model’s and the human RDM of the held-out images. It has no interval here: that "
        "takes the predictions.",
        f"Behavioural RSA over {len(x)} epochs: {rho[0]:.3f} at first, {rho[-1]:.3f} at the end.",
        (
            Panel(
                (*perturbed_span(record), Series(x, rho, style=0, kind=_kind(x))),
                "epoch",
                "behavioural RSA (Spearman’s rho)",
                x_step=epoch_step(x[0], x[-1]),
            ),
        ),
        Table(("epoch", "behavioral_rsa_rho"), list(zip(record.rows, rho, strict=True))),
    )


def epoch_times(record: RunRecord) -> Figure | None:
    """Return the figure of the seconds of each epoch, as the run's log has them; None if it has none."""
    found = dict(epoch_seconds(RunDirectory.at(record.path).log_file))  # of an epoch trained twice, the last
    if not found:
        return None
    x = [float(epoch) for epoch in sorted(found)]
    seconds = [found[int(epoch)] for epoch in x]
    total = in_time(sum(seconds))
    return Figure(
        "times",
        "Seconds of each epoch",
        f"With its evaluation, from the run’s log: {total} in all, median {statistics.median(seconds):.3g} s.",
        f"Seconds of {len(x)} epochs, {total} in all.",
        (
            Panel(
                (Series(x, seconds, kind=_kind(x)),),
                "epoch",
                "seconds",
                x_step=epoch_step(x[0], x[-1]),
                y_range=(0.0, 1.1 * max(*seconds, 0.1)),
                height=280,
            ),
        ),
        Table(("epoch", "seconds"), list(zip(map(int, x), seconds, strict=True))),
    )
