"""A tracked run that is recorded: opened, continued from its newest complete state, written down."""

import logging
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.lease import LOCK_NAME, hold
from clip_hba_behavior.reproducibility.record.ledger import LEDGER
from clip_hba_behavior.reproducibility.record.log_file import LogFile
from clip_hba_behavior.reproducibility.record.made_from import changes_from, describe_run, devices_of
from clip_hba_behavior.reproducibility.record.parts import Part
from clip_hba_behavior.reproducibility.record.protocol import EpochDone, Event
from clip_hba_behavior.reproducibility.record.quarantine import FOLDER, describe
from clip_hba_behavior.reproducibility.record.record_file import RecordFile, keep_apart, repair
from clip_hba_behavior.reproducibility.record.recorder import Recorder
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.record.signals import INTERRUPTED, stopping_on_signals
from clip_hba_behavior.reproducibility.record.states import epochs_to_keep, newest_complete, quarantine
from clip_hba_behavior.reproducibility.record.track import Run
from clip_hba_behavior.reproducibility.record.tracked import (
    RULES,
    TrackedDirectory,
    TrackedFiles,
    TrackedState,
    read_state,
    rules_of,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.reproducibility.state.tree import copy_tree

_OWN_FILES = {"run.json", "log.txt", LOCK_NAME, "checkpoints"}
# While a loop is verified, what `track` gives it instead of a run that is recorded.
_stand_in: ContextVar[Callable[..., Run] | None] = ContextVar("_stand_in", default=None)
_open_runs: dict[Path, "Recording"] = {}  # of this process: a run opened again there lets go of the earlier one


class Interrupted(SystemExit):
    """A signal asked the run to leave; its state is saved. Uncaught, it ends the process with exit code 75."""

    def __init__(self) -> None:
        """Carry the exit code."""
        super().__init__(INTERRUPTED)


def track(
    directory: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    data: str | None = None,
    checkpoint_every_steps: int | None = None,
    keep_checkpoints: str = "all",
    allow: Collection[str] = (),
    accept_mismatch: int | None = None,
    **parts: Part,
) -> Run:
    """Make a training loop a run that can be continued from any step, bit for bit.

    Args:
        directory: the run's own; made if it is not there.
        settings: what shapes the run besides its parts, as JSON values; changed ones are refused.
        data: digest of the data, as `digest` gives it; other data are refused.
        checkpoint_every_steps: also save the state within an epoch, each time after so many steps of it.
        keep_checkpoints: `all`, `last N` or `every N`; the first and the newest always stay.
        allow: names of settings, versions, devices or `data` that may be another than they were, on record.
        accept_mismatch: an epoch: what was recorded of it and later ones need not be repeated, on record.
        parts: by name, whatever changes in training and has `state_dict` and `load_state_dict`.

    Returns:
        The run; nothing is read into the parts, or written, before `Run.epochs`.

    Raises:
        BadInputError: something given cannot be used, or is not what the run was made from.
    """
    if stand_in := _stand_in.get():
        return stand_in(directory, settings=settings, data=data, **parts)
    devices = devices_of(parts)
    recording = Recording(
        TrackedDirectory(Path(directory).expanduser().absolute()),
        describe_run(parts, settings, data, devices[0]),
        checkpoint_every_steps,
        keep_checkpoints,
        tuple(allow),
        accept_mismatch,
    )
    recording.check()
    return Run(recording, parts, devices, recording.rules())


@contextmanager
def tracking_by(stand_in: Callable[..., Run]) -> Iterator[None]:
    """Let `track` give what another function gives."""
    token = _stand_in.set(stand_in)
    try:
        yield
    finally:
        _stand_in.reset(token)


class Recording:
    """The consumer of a run that is recorded."""

    def __init__(
        self,
        directory: TrackedDirectory,
        found: Mapping[str, Any],
        steps_between_states: int | None,
        keep_checkpoints: str,
        allow: Collection[str],
        accept_mismatch: int | None,
    ) -> None:
        """Keep what `track` was given; `found` is what `describe_run` gave."""
        self.directory = directory
        self._found = dict(found)
        self._steps_between_states = steps_between_states
        self._keep = keep_checkpoints
        self._allow, self._accept_mismatch = allow, accept_mismatch
        self._stack: ExitStack | None = None
        self._recorder: Recorder | None = None
        self._session = Session(logging.getLogger("clip_hba_behavior.reproducibility"))
        self._began = time.monotonic()
        self._last = 0

    def check(self) -> None:
        """Refuse what cannot be used before anything is done; raises as `track` does."""
        every = self._steps_between_states
        if every is not None and (type(every) is not int or every < 1):
            raise BadInputError(f"checkpoint_every_steps is {every!r}; expected a number from 1 on, or None")
        word, _, number = str(self._keep).partition(" ")
        if self._keep != "all" and not (word in ("last", "every") and number.isdecimal() and int(number) > 0):
            raise BadInputError(f"keep_checkpoints is {self._keep!r}; expected 'all', 'last N' or 'every N'")
        epoch = self._accept_mismatch
        if epoch is not None and (type(epoch) is not int or epoch < 1):
            raise BadInputError(f"accept_mismatch is {epoch!r}; expected the number of an epoch, or None")
        path = self.directory.path
        if self.directory.holds_run():
            if self.directory.states():
                self._drift()
            else:
                self._refuse_lost_states()
        elif self.directory.states():
            raise BadInputError(
                f"{path} has states, but no run.json: a fork that was cut short, or a run whose run.json is lost\n"
                "  begin the fork again in a new directory, or put run.json back; nothing was changed"
            )
        elif path.exists() and (not path.is_dir() or {each.name for each in path.iterdir()} - _OWN_FILES):
            raise BadInputError(f"{path} is not empty, and holds no tracked run\n  give another directory")

    # --- as a consumer --------------------------------------------------------------------------------

    def epochs(self, run: Run, last: int) -> Iterator[int]:
        """Open the run, then yield each epoch to train."""
        self._last = last
        self._open(run)
        while run.epoch < last:
            yield run.epoch + 1

    def record(self, event: Event) -> None:
        """Write an event down; leave if a signal has come.

        Raises:
            Interrupted: the state is saved.
            NotReproducibleError: something else is recorded for this state.
        """
        if self._recorder is None:
            raise BadInputError("this run was closed: another one was opened in its directory")
        try:
            self._recorder.record(event)
        except InterruptedRunError as error:
            self._leave(str(error))
        if isinstance(event, EpochDone):
            self._log_epoch(event)
            if self._session.stop.name is not None:
                last = ", the last one" if event.epoch == self._last else ""
                self._leave(
                    f"stopped by {self._session.stop.name} after epoch {event.epoch}{last}; the state is saved"
                )

    def close(self) -> None:
        """Let go of files, lease and signals."""
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()

    def _leave(self, why: str) -> None:
        self._session.logger.info("%s", why)
        print(f"{why}; start it again to go on", file=sys.stderr, flush=True)
        self.close()
        raise Interrupted

    def _log_epoch(self, event: EpochDone) -> None:
        now = time.monotonic()
        shown = ", ".join(f"{name} {_short(value)}" for name, value in event.metrics.items() if name != "epoch")
        self._session.logger.info("Epoch %d: %s, %.1f s", event.epoch, shown, now - self._began)
        self._began = now

    # --- opening --------------------------------------------------------------------------------------

    def _open(self, run: Run) -> None:
        directory = self.directory
        earlier = _open_runs.pop(directory.path, None)
        if earlier is not None:
            earlier.close()  # such as one whose loop ended in an exception that a notebook still holds
        directory.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            stop = stack.enter_context(stopping_on_signals(second="is not ours"))
            lease = stack.enter_context(hold(directory.path))
            for left in [*directory.path.glob(".*.tmp"), *directory.checkpoints.glob(".*.tmp")]:
                left.unlink(missing_ok=True)
            logger = stack.enter_context(_logging_to(directory.log_file))
            self._session = Session(logger, stop=stop)
            state, record = self._first_or_newest(run, logger)
            store = _Store(directory, self._keep, self._provenance(record), lease.check, logger)
            store.clear(state)

            def accept(epoch: int) -> str:
                return f"track(..., accept_mismatch={epoch})"

            ledger = RecordFile(directory.ledger_file, state.position(), LEDGER, accept)
            recorder = Recorder(ledger, None, store, run, self._session, self._steps_between_states)
            stack.callback(recorder.close)
            stack.callback(self._forget, directory.path)
            self._recorder = recorder
            self._stack = stack.pop_all()
        _open_runs[directory.path] = self
        self._began = time.monotonic()

    def _forget(self, path: Path) -> None:
        self._recorder = None
        if _open_runs.get(path) is self:
            del _open_runs[path]

    def _first_or_newest(self, run: Run, logger: logging.Logger) -> tuple[TrackedState, dict[str, Any]]:
        """Restore the newest complete state, or save the first one; return it, and the run's record."""
        directory = self.directory
        files = directory.states()
        if not files:
            record = {**self._made_from({}), "parent": None, "drift": []}
            directory.write_record(record)
            run.begin_new()
            state = run.snapshot()
            directory.write_state(state, self._provenance(record))
            logger.info("A new run in %s", directory.path)
            return state, record
        directory.refuse_if_no_run()
        record, drift = directory.read_record(), self._drift()
        newest, refused = newest_complete(files, read_state)
        if newest is None:
            reasons = "\n  ".join(str(why).partition("\n")[0] for _, why in refused)
            raise BadInputError(f"{directory.path} has no complete state to go on from\n  {reasons}")
        state = newest[0]
        run.restore(state, str(directory.state_file(state.position())))  # it may refuse; nothing was written yet
        quarantine(directory.path, refused, logger)
        self._repair(state, logger)
        step = f", step {state.step_in_epoch}" if state.step_in_epoch else ""
        # a fork's settings are its own from its first opening on
        drift = [f"{each}, from the state after epoch {state.epoch}{step} on" for each in drift]
        # first: once the record has the new values, nothing tells any more that the lines need not be repeated
        self._keep_apart(state, drift, record, logger)
        now = {**record, **self._made_from(record), "drift": [*record["drift"], *drift]}
        if now != record:
            record = now
            directory.write_record(record)
        if drift:
            logger.warning("Not as it was, and allowed: %s", "; ".join(drift))
        step = f", step {state.step_in_epoch} of the next" if state.step_in_epoch else ""
        logger.info("Going on from the state after epoch %d%s", state.epoch, step)
        return state, record

    def rules(self) -> int:
        """Return by which rules this run records: those that it began with."""
        directory = self.directory
        return rules_of(directory.read_record()) if directory.holds_run() and directory.states() else RULES

    def _made_from(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """Return what `run.json` tells of the run as it is now; `before` it told this."""
        now = {"format_version": 1, "rules": self.rules(), **self._found, "keep_checkpoints": self._keep}
        if before and before.get("keep_checkpoints") != "all":  # of one that did not keep all states some are gone
            del now["keep_checkpoints"]
        return now

    def _refuse_lost_states(self) -> None:
        """Return if the run was killed before its first state: then it begins again, and nothing is lost."""
        directory = self.directory
        recorded = [each for each in (directory.ledger_file, directory.path / FOLDER) if each.exists()]
        if recorded or directory.read_record()["parent"] is not None:
            what = f"{recorded[0].name} is there" if recorded else "it is a fork"
            raise BadInputError(
                f"{directory.path} has no state to go on from, though {what}\n  found:    none in "
                f"{directory.checkpoints}\n  put the states back, or begin in a new directory; nothing was changed"
            )

    def _repair(self, state: TrackedState, logger: logging.Logger) -> None:
        """Keep a damaged ledger, and leave its valid lines. (Its own loop alone could make lines again.)"""
        first = min(self.directory.states())
        for each in repair(self.directory.ledger_file, LEDGER, first, state.position(), lambda lines, faults: {}):
            logger.warning("Repaired %s", describe(each))
        for note in TrackedFiles(self.directory.path).notes:
            logger.warning("%s", note)

    def _keep_apart(
        self, state: TrackedState, drift: list[str], record: dict[str, Any], logger: logging.Logger
    ) -> None:
        """Move lines beyond the state into the quarantine, if a person decided that they need not be repeated."""
        why, after = "", state.position()
        if drift:
            why = f"the run went on otherwise on request: {'; '.join(drift)}"
        elif self._accept_mismatch is not None:
            why = f"mismatch accepted: what was recorded of epoch {self._accept_mismatch} on need not be repeated"
            after = max(after, (self._accept_mismatch - 1, 0))
        if why:
            kept = keep_apart(self.directory.ledger_file, LEDGER, after, why)
            if kept is not None:
                logger.warning("Kept apart: %s", describe(kept))
                if not drift:
                    record["drift"] = [*record["drift"], why]
                    self.directory.write_record(record)

    def _drift(self) -> list[str]:
        """Return what is not as it was and is allowed; refuse what is not allowed."""
        record = self.directory.read_record()
        return changes_from(record, self._found, self.directory.path, self._allow)

    def _provenance(self, record: Mapping[str, Any]) -> dict[str, Any]:
        content: dict[str, Any] = copy_tree(
            {**self._found, "drift": record["drift"], "parent": record["parent"]}, "provenance"
        )
        return content


class _Store:
    """Where the recorder puts the states, and which of them stay."""

    def __init__(
        self,
        directory: TrackedDirectory,
        keep: str,
        provenance: Mapping[str, Any],
        check_held: Callable[[], None],
        logger: logging.Logger,
    ) -> None:
        self._directory, self._keep, self._provenance = directory, keep, provenance
        self.check_held = check_held
        self._logger, self._has_warned = logger, False

    def save_step(self, state: TrackedState) -> bool:
        """Save the state within an epoch, if `Run.batches` can go on there; of those, the two newest stay."""
        if state.batches is None:
            if not self._has_warned:
                self._has_warned = True
                self._logger.warning(
                    "No state within an epoch is saved: the loop does not take its batches from run.batches"
                )
            return False
        self._directory.write_state(state, self._provenance)
        within = [path for (_, step), path in self._directory.states().items() if step]
        for path in within[:-2]:
            path.unlink()
        return True

    def save_epoch(self, state: TrackedState) -> None:
        """Save the state at an epoch's end."""
        self._directory.write_state(state, self._provenance)
        self.clear(state)

    def clear(self, state: TrackedState) -> None:
        """Remove the states within epochs that are complete, and those that are not to be kept."""
        states = self._directory.states()
        for position, path in states.items():
            if position[1] and position[0] < state.epoch:
                path.unlink()
        epochs = [epoch for epoch, step in states if step == 0]
        forked = self._directory.forked_epochs()
        for epoch in set(epochs) - epochs_to_keep(epochs, self._keep, forked):
            states[epoch, 0].unlink()


@contextmanager
def _logging_to(path: Path) -> Iterator[logging.Logger]:
    """Log to the run's file, and warnings on standard error; release both in the end."""
    logger = logging.getLogger(f"clip_hba_behavior.reproducibility.{path.parent}")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    file, screen = LogFile(path), logging.StreamHandler()
    screen.setLevel(logging.WARNING)
    for handler in (file, screen):
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        for handler in (file, screen):
            logger.removeHandler(handler)
        file.close()


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
