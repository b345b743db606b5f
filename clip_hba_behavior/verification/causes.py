"""Why an epoch did not come out as recorded: the likely cause, from where the first difference shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clip_hba_behavior.reproducibility.record.epoch import Difference, Epoch, History
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, Ledger
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.files import ledger_leaves

# Two machines that round otherwise differ by this much, relative, within the first steps: by precision.
ROUNDING = {"float32": 1e-5, "tf32": 1e-4, "bfloat16": 1e-3}
_ROUNDING = "a difference as small as rounding: another number of threads, processor or library version"
_NO_ROUNDING = (
    "a difference as small as rounding, which portable arithmetic has on no machine: the record was changed, or "
    "one of the machines computes other bits (compare them with scripts/exact_anywhere.py)"
)

Sides = tuple[str, str]
REPLAYED: Sides = ("in the record", "in the replay")
RUNS: Sides = ("in A", "in B")

# What `compare` says of a leaf that only one of two states has.
_ONE_SIDED = ("only in the first", "only in the second")


# Tells, of batches that differ, whether their rows are the same, and which images alone may have changed: none
# where they cannot be told from the others.
Images = Callable[[], tuple[bool, Sequence[str]]]


@dataclass(frozen=True)
class Cause:
    """A likely cause.

    Attributes:
        text: a sentence.
        is_certain: whether the records themselves show it, so that no other setting explains it better.
    """

    text: str
    is_certain: bool = False


@dataclass(frozen=True)
class Witness:
    """A ledger that may know to which epoch a state or a batch belongs.

    Attributes:
        ledger: its records.
        name: whose it is; empty for the run's own.
    """

    ledger: Ledger
    name: str = ""

    def epoch_with_parameters(self, state: TrainingState) -> int | None:
        """Return the epoch at whose end these very parameters were recorded."""
        now = {name: value for name, value in ledger_leaves(state).items() if name.startswith("parameters/")}
        for epoch, record in self.ledger.ends():
            if now.items() <= record.get("state", {}).items():
                return epoch
        return None

    def epoch_with_batch(self, batch: str) -> int | None:
        """Return the epoch in whose first step this very batch was recorded."""
        return next((epoch for epoch, record in self.ledger.first_steps() if record.get("batch") == batch), None)


def explain(
    differences: Sequence[Difference],
    recorded: Epoch,
    replayed: Epoch | None,
    witnesses: Sequence[Witness],
    images: Images,
) -> Cause | None:
    """Name the likely cause of what differs between a run's record and its replay.

    Args:
        differences: between the two, in the order of time.
        recorded: what the run's files hold.
        replayed: what the replay gave; None where there was none: then the records alone are asked.
        witnesses: ledgers, the run's own first.
        images: which images may have changed, where batches differ.
    """
    by_kind = {each.kind: each.text for each in reversed(recorded.contradictions)}
    if "setting" in by_kind:
        return Cause(by_kind["setting"], is_certain=True)
    swapped = _swapped(recorded, replayed, witnesses)
    if swapped is not None:
        return Cause(swapped, is_certain=True)
    if "start" in by_kind:
        return Cause(f"the state that the epoch started from: see epoch {recorded.number - 1}", is_certain=True)
    in_state = [each for each in differences if each.source == "state"]
    in_ledger = [each for each in differences if each.source == "ledger"]
    if replayed is None:
        first = recorded.contradictions[0].text.partition("\n")[0] if recorded.contradictions else None
        return Cause(first, is_certain=True) if first is not None else None
    has_states = recorded.end is not None and replayed.end is not None
    if in_ledger and has_states and not in_state and in_ledger[0].name != "batch":
        return Cause("the ledger was changed: the checkpoint and the replay agree", is_certain=True)
    if in_ledger or in_state:
        has_steps, settings = bool(recorded.steps), recorded.settings
        why = cause_of_training(differences, _num_parameters(recorded), has_steps, has_states, images, settings)
        if in_state and not in_ledger and END_OF_EPOCH in recorded.steps:
            why += "; the ledger and the replay agree, so it was changed after it was written"
        return Cause(why, is_certain="end" in by_kind)
    return Cause(
        "the results file was changed, or is another run's: the checkpoint and the replay agree", is_certain=True
    )


def cause_of_training(
    differences: Sequence[Difference],
    num_parameters: int,
    has_steps: bool,
    has_states: bool,
    images: Images,
    settings: Mapping[str, Any],
) -> str:
    """Name the likely cause of differences that training itself, or a change of the state, must have made.

    Args:
        differences: in the order of time.
        num_parameters: of a state.
        has_steps: whether the steps are recorded.
        has_states: whether both states are there.
        images: which may have changed.
        settings: the keys under which the epoch was trained.
    """
    in_state = [each for each in differences if each.source == "state"]
    first = next((each for each in differences if each.source == "ledger"), None)
    setting = _cause_in_optimizer(in_state)
    if setting is not None:
        return setting
    if first is not None and (first.step != END_OF_EPOCH or not has_states):
        return _cause_of_steps(first, images, settings)
    return _cause_of_state(in_state, num_parameters, first is None and has_steps, settings)


def _by_rounding(size: float, settings: Mapping[str, Any], more: str = "") -> str | None:
    """Say what a difference of some relative size means, if rounding makes such."""
    if size >= ROUNDING.get(settings.get("precision", "float32"), 0.0):
        return None
    return _NO_ROUNDING if settings.get("arithmetic", "native") != "native" else _ROUNDING + more


def _cause_of_steps(first: Difference, images: Images, settings: Mapping[str, Any]) -> str:
    if first.name == "batch":
        same_rows, suspects = images()
        if not same_rows:
            return "the random state at the epoch's start: a draw more or less before it, or another seed"
        if not suspects:
            return "images or targets are not what they were, in batches of the same rows"
        return f"an image or its targets are not what they were, in batches of the same rows: {_some(suspects)}"
    relative = first.relative()
    why = (
        _by_rounding(relative, settings, ", or a parameter changed in its last bits")
        if relative is not None
        else None
    )
    if why is not None:
        return why
    if first.step == 1:
        return "the state before the first step, or the images' features: the first loss differs already"
    if first.name == "loss":
        return (
            "the update: batches and the loss of the first step are the same, so the learning rate, the weight "
            "decay or the optimizer's state was another"
        )
    return "what is drawn or computed between the steps: their batches and losses are the same"


def _cause_of_state(
    differences: Sequence[Difference], num_parameters: int, steps_agree: bool, settings: Mapping[str, Any]
) -> str:
    parts = {_part(each.name) for each in differences}
    if parts == {"random states"}:
        return "a random draw more or less than the epoch makes"
    if parts == {"optimizer"} and all(each.text in _ONE_SIDED for each in differences):
        return "optimizer state was dropped from the file"
    if parts <= {"metrics", "early stopping"}:
        columns = [_short(each.name) for each in differences if each.part() == "metrics"]
        return (
            f"results were changed, or evaluated in another way ({', '.join(columns) or 'early stopping'}): "
            "parameters, optimizer and random states are the same"
        )
    changed = [each for each in differences if each.part() == "parameters"]
    if {"parameters", "optimizer"} <= parts:  # as every other update leaves them
        why = _by_rounding(max(each.largest or 0.0 for each in changed), settings)
        if why is not None:
            return why
        if len(changed) == num_parameters and not steps_agree:
            return "the epoch was trained in another way, or the state it started from is another"
    return "the file was changed after training: no step of training gives such a state"


def _cause_in_optimizer(differences: Sequence[Difference]) -> str | None:
    """Name another learning rate or weight decay that the optimizer's state itself tells."""
    for each in differences:
        for key, name in (("/lr", "learning rate"), ("/weight_decay", "weight decay")):
            if each.name.startswith("optimizer_state/param_groups/") and each.name.endswith(key):
                return f"another {name} in this epoch: {each.text}"
    return None


def _swapped(recorded: Epoch, replayed: Epoch | None, witnesses: Sequence[Witness]) -> str | None:
    """Say whether a file holds another epoch's state, as far as a ledger tells."""
    own = witnesses[0]
    for witness in witnesses:
        says = f", says the ledger of {witness.name}" if witness.name else ""
        for number, state in ((recorded.number, recorded.end), (recorded.number - 1, recorded.start)):
            other = witness.epoch_with_parameters(state) if isinstance(state, TrainingState) else None
            if other not in (None, number):
                return f"files were swapped: epoch {number}'s holds the parameters of epoch {other}{says}"
    if replayed is None:
        return None
    if isinstance(replayed.end, TrainingState):
        other = own.epoch_with_parameters(replayed.end)
        if other not in (None, recorded.number):
            return f"files were swapped: the replay reached the parameters recorded for epoch {other}"
    other = own.epoch_with_batch(str(replayed.steps[1]["batch"])) if 1 in replayed.steps else None
    if other not in (None, recorded.number):
        why = f"the state that epoch {recorded.number} started from leads to the batches of epoch {other}"
        return f"files or their random states were swapped: {why}"
    return None


def suspect_images(
    epochs: Sequence[int],
    first: History,
    second: History,
    batches_of: Callable[[int], Sequence[torch.Tensor] | None],
) -> tuple[bool, list[int]]:
    """Find the rows that are in every batch that differs and in none that agrees, over several epochs.

    Args:
        epochs: of which both are asked.
        first: one source.
        second: the other.
        batches_of: an epoch's batches, each `[batch] int64`; None where they cannot be derived.

    Returns:
        Whether the batches held the same rows (then some of them agree), and the rows.
    """
    suspects: set[int] | None = None
    same_rows = False
    for epoch in epochs:
        left, right = first.steps(epoch), second.steps(epoch)
        both = [step for step in left.keys() & right.keys() if isinstance(step, int)]
        agreeing = {step for step in both if left[step].get("batch") == right[step].get("batch")}
        if not agreeing or len(agreeing) == len(both):
            continue  # no image can be told from the others
        same_rows = True
        batches = batches_of(epoch)
        if batches is None:
            continue
        rows = {step: set(batch.tolist()) for step, batch in enumerate(batches, 1)}
        found = set[int]().union(*(rows[step] for step in both if step not in agreeing))
        found -= set[int]().union(*(rows[step] for step in agreeing))
        suspects = found if suspects is None else suspects & found
    return same_rows, sorted(suspects or ())


# --- differences in sentences -----------------------------------------------------------------------


def first_line(difference: Difference, sides: Sides) -> str:
    """Describe the first difference of two ledgers in a line; `sides` name where each value is."""
    where = "at its end" if difference.step == END_OF_EPOCH else f"at step {difference.step}"
    first, second = difference.first, difference.second
    return f"first differs {where}: {difference.name} ({first!r} {sides[0]}, {second!r} {sides[1]})"


def group(differences: Sequence[Difference], sides: Sides) -> list[str]:
    """Describe differences of two states, a sentence for each part of the state, the largest first."""
    by_part: dict[str, list[Difference]] = {}
    for each in differences:
        if each.source == "state":
            by_part.setdefault(_part(each.name), []).append(each)
    lines = []
    for part, found in by_part.items():
        both = [each for each in found if each.text not in _ONE_SIDED]
        if both:
            worst = max(both, key=lambda each: each.largest or 0.0)
            largest = f", by up to {worst.largest:.3g}" if worst.largest is not None else ""
            more = f"; and {len(both) - 1} more" if len(both) > 1 else ""
            lines.append(f"{part}: {_short(worst.name)}: {worst.text}{largest}{more}")
        for text, side in zip(_ONE_SIDED, sides, strict=True):
            names = [each.name for each in found if each.text == text]
            # an empty container is a leaf of its own; it says nothing where the other side fills it
            names = [name for name in names if not any(each.name.startswith(f"{name}/") for each in found)]
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                lines.append(f"{part}: only {side}: {_short(names[0])}{more}")
    return lines


def largest_parameter(differences: Sequence[Difference]) -> float:
    """Return the largest absolute difference of a parameter."""
    found = (each.largest or 0.0 for each in differences if each.source == "state" and each.part() == "parameters")
    return max(found, default=0.0)


def _num_parameters(epoch: Epoch) -> int:
    return len(epoch.end.as_dict().get("parameters", ())) if epoch.end is not None else 0


def _short(name: str) -> str:
    return name.partition("/")[2] or name


def _part(name: str) -> str:
    parts: dict[str, Any] = {
        "parameters": "parameters",
        "optimizer_state": "optimizer",
        "rng_state": "random states",
        "early_stopping_state": "early stopping",
        "metrics": "metrics",
    }
    return str(parts.get(name.partition("/")[0], "cursor"))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" or one of {len(names) - 5} more" if len(names) > 5 else "")
