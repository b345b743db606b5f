"""What happens when a run advances: the events of every loop, and what the ledger records of each.

A loop yields events and stands still at each. At one that has the state it can be taken, and a repetition that is
given it yields the same events from there. Two consumers read them: the recorder writes them down, the replay
compares.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, Record, Step
from clip_hba_behavior.reproducibility.record.session import Report

STEPS_BETWEEN_DIGESTS = 50


@dataclass(frozen=True)
class StepDone:
    """One training step.

    Attributes:
        epoch: the epoch under way, counted from 1.
        step: within the epoch, counted from 1.
        num_steps: of a whole epoch.
        batch_digest: of what the step trained with.
        loss: of its batch.
        has_state: whether the loop stands where this step led; one that reads its losses late may be further on.
    """

    epoch: int
    step: int
    num_steps: int
    batch_digest: str
    loss: float
    has_state: bool = True


@dataclass(frozen=True)
class EpochDone:
    """The end of an epoch, evaluation included.

    Attributes:
        epoch: number of completed epochs.
        metrics: its row of results.
    """

    epoch: int
    metrics: Mapping[str, Any]


Event = StepDone | EpochDone


class State(Protocol):
    """Everything that changes while a run trains, as a tree of tensors and scalars that shares no live memory."""

    def as_dict(self) -> dict[str, Any]:
        """Return the tree."""

    def leaves(self) -> Iterable[tuple[str, Any]]:
        """Return the tree's leaves by name."""

    def digest(self) -> str:
        """Return the digest of the tree."""


class Live(Protocol):
    """What trains, between two events."""

    def snapshot(self) -> State:
        """Copy the state."""

    def leaf_digests(self) -> dict[str, str]:
        """Return a short digest of each tensor and random stream."""


def records_state(step: int) -> bool:
    """Whether the ledger's line of a step, counted within its epoch, has each tensor's digest."""
    return step % STEPS_BETWEEN_DIGESTS == 0


def step_record(event: StepDone, live: Live, with_state: bool = False) -> Record:
    """Return what the ledger records of a step; of every fiftieth, or `with_state`, also each tensor's digest."""
    record: Record = {"batch": event.batch_digest, "loss": event.loss}
    if with_state or records_state(event.step):
        record["state"] = live.leaf_digests()
    return record


def end_record(event: EpochDone, state: State, live: Live) -> Record:
    """Return what the ledger records of an epoch's end."""
    return {"metrics": dict(event.metrics), "state_digest": state.digest(), "state": live.leaf_digests()}


class Replay:
    """Consumes a loop's events as it is run again, and keeps what a recorder would write.

    Attributes:
        steps: what the ledger would record of each step, and of the epoch's end.
    """

    def __init__(self, live: Live, report: Report, with_state: bool = False) -> None:
        """Begin an epoch.

        Args:
            live: what trains.
            report: told of the progress.
            with_state: put each tensor's digest into every step's record.
        """
        self.steps: dict[Step, Record] = {}
        self._end: State | None = None
        self._live, self._report, self._with_state = live, report, with_state

    def record(self, event: Event) -> None:
        """Keep what an event gives."""
        if isinstance(event, StepDone):
            self.steps[event.step] = step_record(event, self._live, self._with_state)
            self._report(f"replaying epoch {event.epoch}: steps", event.step, event.num_steps)
        else:
            self._end = self._live.snapshot()
            self.steps[END_OF_EPOCH] = end_record(event, self._end, self._live)

    def state(self) -> State:
        """Return the state after the last event."""
        return self._end if self._end is not None else self._live.snapshot()


def replay(events: Iterable[Event], live: Live, report: Report, with_state: bool = False) -> Replay:
    """Run a loop of one epoch, or of its first steps, to its end."""
    repeated = Replay(live, report, with_state)
    for event in events:
        repeated.record(event)
    return repeated
