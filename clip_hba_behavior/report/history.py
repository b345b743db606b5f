"""Figures of what a run's results tell, epoch by epoch."""

from collections.abc import Sequence
from typing import Literal

from clip_hba_behavior.report.colours import INK
from clip_hba_behavior.report.figure import Figure, Level, Mark, Panel, Series, Span, Table, epoch_step
from clip_hba_behavior.report.sources import RunRecord


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
                        test, rho, style=0, kind="both", labels=named_epochs(list(record.rows)),
                        hover=[f"epoch {epoch}" for epoch in record.rows],
                    ),
                ),
                "test loss (mean squared error)",
                "behavioural RSA (Spearman’s rho)",
            ),
        ),
        Table(("epoch", "test_loss", "behavioral_rsa_rho"), list(zip(record.rows, test, rho, strict=True))),
    )  # fmt: skip


def named_epochs(epochs: Sequence[int], most: int = 8) -> list[str]:
    """Return a label for each epoch: a few of them named, the first and the last among them."""
    step = epoch_step(0, len(epochs) * 10 / most)
    ends = (0, len(epochs) - 1)
    return [str(epoch) if index in ends or epoch % step == 0 else "" for index, epoch in enumerate(epochs)]


def _kind(x: Sequence[float]) -> Literal["line", "both"]:
    return "both" if len(x) <= 30 else "line"
