"""The recorder: writes down what a run does, in an order after which any crash can be repaired."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, format_record, position_of
from clip_hba_behavior.reproducibility.record.protocol import (
    EpochDone,
    Event,
    Live,
    State,
    StepDone,
    end_record,
    records_state,
    step_record,
)
from clip_hba_behavior.reproducibility.record.record_file import RecordFile
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import InterruptedRunError


class Store(Protocol):
    """Where the states of one kind of run go."""

    def check_held(self) -> None:
        """Return if this process may still write."""

    def save_step(self, state: Any) -> bool:
        """Save a state within an epoch; return whether this run can be continued from such a one."""

    def save_epoch(self, state: Any) -> None:
        """Save the state at an epoch's end: the mark that the epoch is done."""


@dataclass(frozen=True)
class Results:
    """A file of results, a row for each epoch.

    Attributes:
        file: open for rows.
        format_row: gives the row of what an epoch reported.
    """

    file: RecordFile
    format_row: Callable[[Mapping[str, Any]], str]


class Recorder:
    """Consumes a loop's events.

    An epoch's end is written in this order: ledger, row of results, state. Whatever a crash leaves of it is
    written again, and must then be the same.
    """

    def __init__(
        self,
        ledger: RecordFile,
        results: Results | None,
        store: Store,
        live: Live,
        session: Session,
        steps_between_states: int | None = None,
        check: Callable[[Any], None] = lambda state: None,
    ) -> None:
        """Bring the parts together.

        Args:
            ledger: open for lines.
            results: rows of results too; None where the ledger's closing lines are enough.
            store: where states go.
            live: what trains.
            session: its stop request is answered after a step.
            steps_between_states: also save the state within an epoch, each time after so many steps of it.
            check: given each epoch's state before it is written down; what it raises stops the run.
        """
        self._ledger, self._results, self._store = ledger, results, store
        self._live, self._session = live, session
        self._steps_between_states = steps_between_states
        self._check = check

    def record(self, event: Event) -> None:
        """Write an event down.

        Raises:
            InterruptedRunError: a signal came within the epoch; the state after this step is saved.
            NotReproducibleError: something else is recorded for this state.
        """
        if isinstance(event, StepDone):
            self._record_step(event)
        else:
            self._record_epoch(event)

    def needs_state(self, step: int) -> bool:
        """Whether the state after a step of the epoch under way is to be written down, as far as is known."""
        return self._session.stop.name is not None or self._is_due(step) or records_state(step)

    def _is_due(self, step: int) -> bool:
        return self._steps_between_states is not None and step % self._steps_between_states == 0

    def close(self) -> None:
        """Close the files."""
        self._ledger.close()
        if self._results is not None:
            self._results.file.close()

    def _record_step(self, event: StepDone) -> None:
        self._store.check_held()
        line = format_record(event.epoch, event.step, step_record(event, self._live))
        self._ledger.append(position_of(event.epoch, event.step), line)
        asked = self._session.stop.name if event.has_state else None  # else it is answered a step later
        if asked is not None or (self._is_due(event.step) and event.step < event.num_steps):
            self._ledger.commit()
            is_saved = self._store.save_step(self._live.snapshot())
        if asked is not None:
            left = "the state is saved" if is_saved else "the epoch begins again at the next start"
            raise InterruptedRunError(f"stopped by {asked} after epoch {event.epoch}, step {event.step}; {left}")
        self._session.report(f"epoch {event.epoch}: steps", event.step, event.num_steps)

    def _record_epoch(self, event: EpochDone) -> None:
        state: State = self._live.snapshot()
        self._check(state)
        line = format_record(event.epoch, END_OF_EPOCH, end_record(event, state, self._live))
        self._ledger.append(position_of(event.epoch, END_OF_EPOCH), line)
        self._ledger.commit()
        self._store.check_held()
        if self._results is not None:
            self._results.file.append((event.epoch, 0), self._results.format_row(event.metrics))
            self._results.file.commit()
        self._store.save_epoch(state)
