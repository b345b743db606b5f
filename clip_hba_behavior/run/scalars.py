"""A run's records as scalars by step, as trackers draw them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clip_hba_behavior.reproducibility.record.ledger import parse_record
from clip_hba_behavior.reproducibility.record.lines import Position
from clip_hba_behavior.run.results import parse_row

STEP_LOSS = "loss/step"
# Of the columns of `training_res.csv`; trackers group by what stands before the stroke. The p-value is left out:
# it is no test, and trackers keep single precision, in which a small one is 0.
NAMES = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "behavioral_rsa_rho": "rsa/rho",
}


@dataclass(frozen=True)
class Scalars:
    """What is drawn above one place of the horizontal axis.

    Attributes:
        step: the epoch; of a step's loss, the number of steps since the first epoch began.
        values: by name.
    """

    step: int
    values: Mapping[str, float]


def of_step(epoch: int, step: int, loss: float, num_steps: int) -> Scalars:
    """Return the loss of a training step; `num_steps` are those of a whole epoch."""
    return Scalars((epoch - 1) * num_steps + step, {STEP_LOSS: loss})


def of_epoch(metrics: Mapping[str, Any]) -> Scalars:
    """Return what an epoch's row of results holds."""
    return Scalars(int(metrics["epoch"]), {name: float(metrics[column]) for column, name in NAMES.items()})


def of_loop_epoch(epoch: int, metrics: Mapping[str, Any]) -> Scalars:
    """Return the numbers that a loop of the user's own reported, under names that `STEP_LOSS` is none of."""
    numbers = {name: each for name, each in metrics.items() if type(each) in (int, float) and name != "epoch"}
    return Scalars(epoch, {f"epoch/{name}": float(each) for name, each in numbers.items()})


def longest_epoch(ledger: Mapping[Position, str]) -> int:
    """Return the largest number of steps that a ledger's lines have of any epoch; 0 without lines."""
    return max((step for _, step in ledger), default=0)


def scalars_of(
    ledger: Mapping[Position, str], rows: Mapping[Position, str] | None, num_steps: int
) -> Iterator[Scalars]:
    """Yield all that is recorded, in the order in which training wrote it.

    Args:
        ledger: lines by position.
        rows: of results; None for a loop of the user's own, whose ledger has what its epochs reported.
        num_steps: of a whole epoch, at least `longest_epoch(ledger)`, so that no two steps share a place.
    """
    for position in sorted({*ledger, *(rows or {})}):
        if position in ledger and (position[1] or rows is None):
            epoch, step, record = parse_record(ledger[position])
            if isinstance(step, int):
                yield of_step(epoch, step, float(record["loss"]), num_steps)
            else:
                yield of_loop_epoch(epoch, record["metrics"])
        elif rows is not None and position in rows:
            yield of_epoch(parse_row(rows[position]))
