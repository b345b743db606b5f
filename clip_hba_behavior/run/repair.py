"""Damaged records made valid again: rows from checkpoints, ledger lines from a replay that proves them."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from clip_hba_behavior.reproducibility.record.ledger import (
    LEDGER,
    format_record,
    position_of,
    read_ledger,
)
from clip_hba_behavior.reproducibility.record.lines import Fault, Lines, Position
from clip_hba_behavior.reproducibility.record.quarantine import describe
from clip_hba_behavior.reproducibility.record.record_file import Remade, repair
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint import Checkpoint, read_named
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.run.results import RESULTS, format_row


def repair_records(run: RunDirectory, resumed: Checkpoint, replayer: Callable[[], Replayer]) -> Iterator[str]:
    """Repair ledger and results of a run that is resumed; what they were stays in the quarantine.

    Args:
        run: held by this process.
        resumed: the state that is resumed from.
        replayer: makes what trains epochs again; called only where ledger lines are missing.

    Yields:
        A sentence on each file that was repaired.
    """
    state = resumed.whole_state()
    after = (state.epoch, state.step_in_epoch)
    first = (min(list_checkpoints(run.checkpoints), default=0), 0)

    def lines_from_replay(lines: Lines, faults: tuple[Fault, ...]) -> Remade:
        epochs = {epoch for fault in faults for epoch in _epochs_within(fault, after)}
        epochs |= _epochs_with_gaps(lines, first[0], state.epoch)
        remade: Remade = {}
        for epoch in sorted(epochs):
            remade |= _replayed_lines(run, resumed, epoch, lines, replayer)
        return remade

    def rows_from_checkpoints(lines: Lines, faults: tuple[Fault, ...]) -> Remade:
        return _rows(run, after, lines)

    for record in repair(run.ledger_file, LEDGER, first, after, lines_from_replay):
        yield describe(record)
    had_results = run.results_file.exists()
    for record in repair(run.results_file, RESULTS, first, (state.epoch, 0), rows_from_checkpoints):
        yield describe(record)
    if not had_results and run.results_file.exists():
        yield f"{run.results_file.name} was not there; its rows were made again from the checkpoints"


def _epochs_within(fault: Fault, after: Position) -> Iterable[int]:
    """Return the epochs whose lines may have stood where a fault is, up to the state that is resumed from."""
    first = fault.after or (0, 0)
    last = min(fault.before or after, after)
    return range(first[0] + 1, last[0] + (last[1] > 0) + 1)


def _epochs_with_gaps(lines: Lines, first: int, last: int) -> set[int]:
    """Return the completed epochs of which a step or the end is missing; none where there is no ledger at all."""
    if not lines.found:
        return set()
    num_steps, last_step = Counter[int](), Counter[int]()
    for completed, step in lines.found:
        if step > 0:
            num_steps[completed + 1] += 1
            last_step[completed + 1] = max(step, last_step[completed + 1])
    epochs = range(first + 1, last + 1)
    return {each for each in epochs if num_steps[each] < max(1, last_step[each]) or (each, 0) not in lines.found}


def _replayed_lines(
    run: RunDirectory, resumed: Checkpoint, epoch: int, lines: Lines, replayer: Callable[[], Replayer]
) -> Remade:
    """Train an epoch again and return the lines that are missing of it, if its end is the recorded one."""
    state = resumed.whole_state()
    is_open = epoch == state.epoch + 1  # the epoch under way: up to the step that is resumed from
    try:
        start = read_named(checkpoint_path(run.checkpoints, epoch - 1))
        end = resumed if is_open else read_named(checkpoint_path(run.checkpoints, epoch))
        settings = end.provenance["config"] | {"device": end.provenance["device"]}
        begin, expected = start.whole_state(), end.whole_state().digest()
    except (BadInputError, KeyError):
        return {}  # the lines stay missing, and the verifier says so
    recorded = read_ledger(run.ledger_file).end(epoch)
    if recorded is not None and recorded.get("state_digest") != expected:
        return {}
    try:
        again = replayer().replay(begin, settings, state.step_in_epoch if is_open else None)
    except BadInputError:  # such as a device that is not here
        return {}
    if again.state().digest() != expected:
        return {}
    source = f"a replay of epoch {epoch} from {start.path.name}, which reached the recorded state"
    found = {
        position_of(epoch, step): (format_record(epoch, step, record), source)
        for step, record in again.steps.items()
    }
    return {position: line for position, line in found.items() if position not in lines.found}


def _rows(run: RunDirectory, after: Position, lines: Lines) -> Remade:
    """Return the rows that are missing; each checkpoint holds its own."""
    files = list_checkpoints(run.checkpoints)
    first = min(files, default=0)  # the first state's row, if it has one, is its parent's
    remade: Remade = {}
    for epoch, path in files.items():
        if first < epoch <= after[0] and (epoch, 0) not in lines.found:
            try:
                metrics = read_named(path).whole_state().metrics
            except BadInputError:
                continue  # its row stays missing, and the verifier says so
            remade[epoch, 0] = (format_row(metrics), path.name)
    return remade
