"""Why an epoch did not come out as recorded: the likely cause, from where the first difference shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.compare import Difference

# Two machines that round otherwise differ by this much, relative, within the first steps.
ROUNDING = 1e-5

Entries = Mapping[int | str, Mapping[str, Any]]
Sides = tuple[str, str]
REPLAYED: Sides = ("in the record", "in the replay")
RUNS: Sides = ("in A", "in B")


@dataclass(frozen=True)
class FirstDifference:
    """Where two records of one epoch first differ.

    Attributes:
        step: counted from 1, or `END_OF_EPOCH`.
        thing: `batch`, `loss`, `metrics`, or a part of the state, such as `parameters/clip_model...`.
        first: the value in the first record.
        second: the value in the second.
    """

    step: int | str
    thing: str
    first: Any
    second: Any

    def line(self, sides: Sides) -> str:
        """Say it in a line; `sides` say where each value stands."""
        where = "at its end" if self.step == END_OF_EPOCH else f"at step {self.step}"
        return f"first differs {where}: {self.thing} ({self.first!r} {sides[0]}, {self.second!r} {sides[1]})"

    def relative(self) -> float | None:
        """Return the relative difference of two numbers."""
        if isinstance(self.first, float) and isinstance(self.second, float) and self.first:
            return abs(self.second / self.first - 1)
        return None


def first_difference(recorded: Entries, replayed: Entries) -> FirstDifference | None:
    """Walk two records of an epoch to the first difference; only what both have is compared."""
    both = recorded.keys() & replayed.keys()
    steps: list[int | str] = sorted(step for step in both if isinstance(step, int))
    for step in [*steps, *(both & {END_OF_EPOCH})]:
        there, here = recorded[step], replayed[step]
        for key in ("batch", "loss", "state", "metrics", "state_digest"):
            if key not in there or key not in here or repr(there[key]) == repr(here[key]):
                continue
            if isinstance(there[key], dict) and isinstance(here[key], dict):
                for name in {**here[key], **there[key]}:
                    if repr(there[key].get(name)) != repr(here[key].get(name)):
                        thing = name if key == "state" else f"{key}/{name}"
                        return FirstDifference(step, thing, there[key].get(name), here[key].get(name))
            return FirstDifference(step, key, there[key], here[key])
    return None


def cause_of_steps(first: FirstDifference, same_random_start: bool, suspects: Sequence[str]) -> str:
    """Name the likely cause of a first difference among an epoch's steps.

    Args:
        first: where it shows.
        same_random_start: whether both began the epoch with the same random states.
        suspects: images of which one may have changed.
    """
    if first.thing == "batch":
        if not same_random_start:
            return "the random state at the epoch's start: a draw more or less before it, or another seed"
        if not suspects:
            return "images or targets are not what they were, in batches of the same rows"
        return f"an image or its targets are not what they were, in batches of the same rows: {_some(suspects)}"
    relative = first.relative()
    if relative is not None and relative < ROUNDING:
        return (
            "a difference as small as rounding: another number of threads, processor or library version, "
            "or a parameter changed in its last bits"
        )
    if first.step == 1:
        return "the state before the first step, or the images' features: the first loss differs already"
    if first.thing == "loss":
        return (
            "the update: batches and the loss of the first step are the same, so the learning rate, the weight "
            "decay or the optimizer's state was another"
        )
    return "what is drawn or computed between the steps: their batches and losses are the same"


def cause_of_state(differences: Sequence[Difference], num_parameters: int, steps_agree: bool) -> str:
    """Name the likely cause where a recorded state is not the one that training reached.

    Args:
        differences: between the recorded state and the replayed one.
        num_parameters: how many parameters the state has.
        steps_agree: whether the ledger was compared, and all its steps came out the same.
    """
    parts = {_part(each.name) for each in differences}
    setting = cause_in_optimizer(differences)
    if setting is not None:
        return setting
    if parts == {"random states"}:
        return "a random draw more or less than the epoch makes"
    if parts == {"optimizer"} and all(each.what in _ONE_SIDED for each in differences):
        return "optimizer state was dropped from the file"
    if parts <= {"metrics", "early stopping"}:
        columns = [_short(each.name) for each in differences if each.name.startswith("metrics/")]
        return (
            f"results were changed, or evaluated in another way ({', '.join(columns) or 'early stopping'}): "
            "parameters, optimizer and random states are the same"
        )
    changed = [each for each in differences if each.name.startswith("parameters/")]
    if {"parameters", "optimizer"} <= parts:  # as every other update leaves them
        if max(each.largest or 0.0 for each in changed) < ROUNDING:
            return "a difference as small as rounding: another number of threads, processor or library version"
        if len(changed) == num_parameters and not steps_agree:
            return "the epoch was trained in another way, or the state it started from is another"
    return "the file was changed after training: no step of training gives such a state"


def cause_in_optimizer(differences: Sequence[Difference]) -> str | None:
    """Name another learning rate or weight decay that the optimizer's state itself tells."""
    for each in differences:
        for key, name in (("/lr", "learning rate"), ("/weight_decay", "weight decay")):
            if each.name.startswith("optimizer_state/param_groups/") and each.name.endswith(key):
                return f"another {name} in this epoch: {each.what}"
    return None


def group(differences: Sequence[Difference], sides: Sides) -> list[str]:
    """Put differences into sentences, one for each part of the state, the largest first."""
    by_part: dict[str, list[Difference]] = {}
    for each in differences:
        by_part.setdefault(_part(each.name), []).append(each)
    lines = []
    for part, found in by_part.items():
        both = [each for each in found if each.what not in _ONE_SIDED]
        if both:
            worst = max(both, key=lambda each: each.largest or 0.0)
            largest = f", by up to {worst.largest:.3g}" if worst.largest is not None else ""
            more = f"; and {len(both) - 1} more" if len(both) > 1 else ""
            lines.append(f"{part}: {_short(worst.name)}: {worst.what}{largest}{more}")
        for what, side in zip(_ONE_SIDED, sides, strict=True):
            names = [each.name for each in found if each.what == what]
            # an empty container is a leaf of its own; it says nothing where the other side fills it
            names = [name for name in names if not any(each.name.startswith(f"{name}/") for each in found)]
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"{part}: only {side}: {_short(names[0])}{more}")
    return lines


# What `compare` says of a leaf that only one of two states has.
_ONE_SIDED = ("only in the first", "only in the second")


def _short(name: str) -> str:
    return name.partition("/")[2] or name


def _part(name: str) -> str:
    parts = {
        "parameters": "parameters",
        "optimizer_state": "optimizer",
        "rng_state": "random states",
        "early_stopping_state": "early stopping",
        "metrics": "metrics",
    }
    return parts.get(name.partition("/")[0], "cursor")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" or one of {len(names) - 5} more" if len(names) > 5 else "")
