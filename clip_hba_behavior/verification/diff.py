"""Where two runs first differ, and why: from what they recorded, then by replaying that epoch of both."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.compare import Comparison, compare
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.run.checkpoint import Checkpoint
from clip_hba_behavior.run.environment import changed_data
from clip_hba_behavior.run.log import Report
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import NonFiniteLossError
from clip_hba_behavior.verification.causes import (
    REPLAYED,
    RUNS,
    FirstDifference,
    cause_in_optimizer,
    cause_of_state,
    cause_of_steps,
    first_difference,
    group,
)
from clip_hba_behavior.verification.checkpoints import disagreements, origins_of, recorded_config
from clip_hba_behavior.verification.history import Entry, History, Recorded, read_history
from clip_hba_behavior.verification.replay import Replay, epoch_batches, make_trainer, replay_epoch
from clip_hba_behavior.verification.settings import ORDER_KEYS, Setting, differing_settings


@dataclass(frozen=True)
class RunDifference:
    """Where two runs first differ.

    Attributes:
        runs: the two directories, called A and B.
        epochs: the epochs of which both have a checkpoint.
        epoch: the first in which they differ; None if in none.
        step: the first step in it, or `END_OF_EPOCH`; None for the state that the comparison begins with.
        thing: `batch order`, `batch content`, `loss`, `metrics`, or a part of the state.
        lines: what differs there: values, tensors, by how much.
        replays: what training that epoch of each run again showed.
        settings: what differs in config, data, weights, numerics and versions, the likeliest cause first.
        problems: where a run's own records disagree.
        notes: what could not be compared.
        cause: the likely cause.
    """

    runs: tuple[str, str]
    epochs: tuple[int, ...]
    epoch: int | None = None
    step: int | str | None = None
    thing: str | None = None
    lines: tuple[str, ...] = ()
    replays: tuple[str, ...] = ()
    settings: tuple[Setting, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    cause: str | None = None

    def equal(self) -> bool:
        """Whether all that both recorded is the same, and neither contradicts itself."""
        return self.epoch is None and not self.problems


@dataclass(frozen=True)
class _Run:
    """One of the two: its name here, what it left behind, its checkpoints."""

    name: str
    history: History
    files: dict[int, Recorded]

    def steps(self, epoch: int) -> dict[int | str, Entry]:
        return {step: entry for (each, step), entry in self.history.ledger.items() if each == epoch}

    def origin(self, epoch: int | None) -> Mapping[str, Any]:
        origins = origins_of(self.files)
        return origins.get(max(origins, default=0) if epoch is None else epoch, {})

    def problems(self) -> list[str]:
        """Name where this run's own records disagree, and files that are not what they were."""
        found = disagreements(self.history, origins_of(self.files))
        for recorded in self.files.values():
            if recorded.problem is not None:
                found.append(recorded.problem)
            state = recorded.checkpoint.state if recorded.checkpoint is not None else None
            other = self.history.leaves_beside_the_ledger(state) if state is not None else None
            end = self.history.end_of(recorded.epoch) or {}
            if other:
                more = f" and {len(other) - 1} more" if len(other) > 1 else ""
                found.append(f"the file of epoch {recorded.epoch} and the ledger disagree: {other[0]}{more}")
            elif state is not None and end.get("state_digest", state.digest()) != state.digest():
                found.append(f"the file of epoch {recorded.epoch} and the ledger disagree: the state digest")
            columns = self.columns_beside_the_file(recorded)
            if state is not None and self.history.results is not None and columns:
                row = self.history.results.rows[recorded.epoch]
                more = f", and {', '.join(columns[1:])} too" if len(columns) > 1 else ""
                found.append(
                    f"{columns[0]} of epoch {recorded.epoch}: training_res.csv and the checkpoint disagree{more}\n"
                    f"    in the CSV:        {row[columns[0]]!r}\n"
                    f"    in the checkpoint: {state.metrics[columns[0]]!r}"
                )
        return [f"{self.name}: {each}" for each in found]

    def columns_beside_the_file(self, recorded: Recorded) -> list[str]:
        """Name the columns of the CSV whose value is not the one in an epoch's file."""
        state = recorded.checkpoint.state if recorded.checkpoint is not None else None
        if state is None or self.history.results is None:
            return []
        row = self.history.results.rows.get(recorded.epoch, {})
        kept = {name: state.metrics[name] for name in row if state.metrics.get(name) is not None}
        return [name for name, value in kept.items() if repr(float(value)) != repr(row[name])]


@dataclass(frozen=True)
class _Place:
    """The first epoch that differs, and what differs in it."""

    epoch: int
    first: FirstDifference | None
    comparison: Comparison | None
    lines: tuple[str, ...]


@numerics_left_as_they_were()
def diff_runs(
    first: Path, second: Path, with_replay: bool, logger: logging.Logger, report: Report
) -> RunDifference:
    """Find the first epoch, step and thing in which two runs differ.

    Args:
        first: a run's directory, or a directory of checkpoints; called A.
        second: another; called B.
        with_replay: also train the differing epoch of each again, to see which repeats its record, and at
            which step they part where the ledgers do not tell.
        logger: for what is said while data are read.
        report: told of the progress.

    Raises:
        BadInputError: there is nothing to compare.
    """
    a, b = (_open(name, path) for name, path in (("A", first), ("B", second)))
    epochs = sorted(a.files.keys() & b.files.keys())
    if not epochs:
        raise BadInputError(
            "the two runs have no epoch in common\n"
            + "\n".join(f"  {run.name}: {run.history.path}, epochs {sorted(run.files)}" for run in (a, b))
        )
    problems = (*a.problems(), *b.problems())
    place = next((found for epoch in epochs if (found := _compare_epoch(a, b, epoch, epochs[0]))), None)
    about: dict[str, Any] = {
        "runs": (str(a.history.path), str(b.history.path)),
        "epochs": tuple(epochs),
        "problems": problems,
        "notes": tuple(_not_compared(a, b, epochs)),
    }
    if place is None:
        settings = differing_settings((a.history, b.history), (a.origin(None), b.origin(None)), None)
        return RunDifference(settings=tuple(settings), cause=problems[0] if problems else None, **about)

    replays: list[tuple[str, Replay | None, bool | None]] = []
    if with_replay and place.epoch > epochs[0]:
        replays = [_replay(run, place.epoch, logger, report) for run in (a, b)]
    first_step = place.first
    if first_step is None and len(replays) == 2 and replays[0][1] is not None and replays[1][1] is not None:
        first_step = first_difference(replays[0][1].entries, replays[1][1].entries)
    thing, same_rows, suspects = _thing(a, b, place, first_step)
    origins = (a.origin(place.epoch), b.origin(place.epoch))
    settings = differing_settings((a.history, b.history), origins, thing)
    return RunDifference(
        epoch=place.epoch,
        step=None if place.epoch == epochs[0] else first_step.step if first_step is not None else END_OF_EPOCH,
        thing=thing,
        lines=place.lines + ((first_step.line(RUNS),) if place.first is None and first_step is not None else ()),
        replays=tuple(text for text, _, _ in replays),
        settings=tuple(settings),
        cause=_cause((a, b), place, first_step, settings, [each[2] for each in replays], same_rows, suspects),
        **about,
    )


def _not_compared(a: _Run, b: _Run, epochs: Sequence[int]) -> list[str]:
    """Name what only one of two runs has between the first and the last epoch of both, and states in part."""
    notes = []
    between = range(epochs[0], epochs[-1] + 1)
    for run, other in ((a, b), (b, a)):
        alone = [epoch for epoch in between if epoch in run.files and epoch not in other.files]
        if alone:
            notes.append(f"only {run.name} has a checkpoint of epoch {', '.join(map(str, alone))}")
        partial = [
            epoch for epoch in epochs if (file := run.files[epoch].checkpoint) is not None and file.state is None
        ]
        if partial:
            notes.append(f"{run.name} does not hold whole states: of them only what both have is compared")
    return notes


def _open(name: str, path: Path) -> _Run:
    history = read_history(path)
    return _Run(name, history, {epoch: history.read(epoch) for epoch in history.files})


def _compare_epoch(a: _Run, b: _Run, epoch: int, start: int) -> _Place | None:
    """Compare everything that both recorded of an epoch."""
    first = first_difference(a.steps(epoch), b.steps(epoch)) if epoch > start else None
    lines = [] if first is None else [first.line(RUNS)]
    files = [run.files[epoch].checkpoint for run in (a, b)]
    comparison = None
    if files[0] is None or files[1] is None:
        unreadable = [run.name for run, file in zip((a, b), files, strict=True) if file is None]
        if len(unreadable) == 1:
            lines.append(f"the checkpoint of {unreadable[0]} cannot be read")
    else:
        whole = files[0].state is not None and files[1].state is not None
        random_states = files[0].rng_state is not None and files[1].rng_state is not None
        comparison = compare(*(_content(file, whole, random_states) for file in (files[0], files[1])))
        lines += group(comparison.differences, RUNS)
    for name, here, there in _rows(a, b, epoch):
        if repr(here) != repr(there):
            lines.append(f"{name} in the results: {here!r} in A, {there!r} in B")
    return _Place(epoch, first, comparison, tuple(lines)) if lines else None


def _content(checkpoint: Checkpoint, whole: bool, with_random_states: bool) -> dict[str, Any]:
    """Return what of a checkpoint is compared: its state if both are whole, else what old files have too."""
    if whole and checkpoint.state is not None:
        return checkpoint.state.as_dict()
    content: dict[str, Any] = {"parameters": checkpoint.parameters}
    return content | ({"rng_state": checkpoint.rng_state} if with_random_states else {})


def _rows(a: _Run, b: _Run, epoch: int) -> list[tuple[str, float, float]]:
    tables = a.history.results, b.history.results
    if tables[0] is None or tables[1] is None:
        return []
    rows = tables[0].rows.get(epoch, {}), tables[1].rows.get(epoch, {})
    return [(name, rows[0][name], rows[1][name]) for name in rows[0] if name in rows[1]]


def _replay(
    run: _Run, epoch: int, logger: logging.Logger, report: Report
) -> tuple[str, Replay | None, bool | None]:
    """Train an epoch of a run again; say whether it repeats the run's record."""
    before, after = run.history.read(epoch - 1), run.files[epoch]
    start = before.sound()
    if start is None or start.state is None:
        why = before.problem or "the state before it is not whole"
        return f"{run.name}: epoch {epoch} not replayed: {why}", None, None
    try:
        config = recorded_config(run.history, origins_of(run.files), {})
        trainer, environment = make_trainer(config, report, logger)
        changed = changed_data(run.history.environment or run.origin(epoch), environment)
        if changed:
            why = "what it was made from changed\n    " + "\n    ".join(changed)
            return f"{run.name}: epoch {epoch} not replayed: {why}", None, None
        replay = replay_epoch(trainer, start.state, None, report, digests_each_step=True)
    except (BadInputError, NonFiniteLossError) as error:
        return f"{run.name}: epoch {epoch} not replayed: {error}", None, None
    if after.checkpoint is None or after.checkpoint.state is None or replay.state is None:
        return f"{run.name}: epoch {epoch} replayed; there is no whole state to compare with", replay, None
    comparison = compare(after.checkpoint.state.as_dict(), replay.state.as_dict())
    first = first_difference(run.steps(epoch), replay.entries)
    if comparison.equal() and first is None:
        return f"{run.name}: epoch {epoch} replayed: it repeats the record, 0 bits differ", replay, True
    lines = [*([] if first is None else [first.line(REPLAYED)]), *group(comparison.differences, REPLAYED)]
    return f"{run.name}: epoch {epoch} replayed: the record is another\n    " + "\n    ".join(lines), replay, False


def _thing(a: _Run, b: _Run, place: _Place, first: FirstDifference | None) -> tuple[str, bool, list[str]]:
    """Name what differs first; of batches also whether their rows are the same, and which image it may be."""
    if first is not None and first.thing == "batch":
        same_rows, suspects = _suspects(a, b)
        same_rows = same_rows or _same_draws(a, b, place)
        return ("batch content" if same_rows else "batch order"), same_rows, suspects
    name = first.thing if first is not None else ""
    if not name and place.comparison is not None and place.comparison.differences:
        name = place.comparison.differences[0].name
    if not name and place.lines:
        name = "metrics"
    return name.partition("/")[0], True, []


def _same_draws(a: _Run, b: _Run, place: _Place) -> bool:
    """Whether both drew the epoch's order from the same random states, by the same rule, of as many rows."""
    if place.comparison is None or any(
        each.name.startswith("rng_state/") for each in place.comparison.differences
    ):
        return False
    rules = [
        (
            {key: run.origin(place.epoch).get("config", {}).get(key) for key in ORDER_KEYS},
            len((run.history.environment or {}).get("targets", {})),
        )
        for run in (a, b)
    ]
    return rules[0] == rules[1]


def _suspects(a: _Run, b: _Run) -> tuple[bool, list[str]]:
    """Find the images that stand in every batch that differs and in none that agrees, over all epochs.

    Returns:
        Whether the batches held the same rows (then some of them agree), and the images.
    """
    suspects: set[int] | None = None
    same_rows = False
    names = list((a.history.environment or {}).get("images", {}))
    num_images = len((a.history.environment or {}).get("targets", {}))
    for epoch in sorted({epoch for epoch, _ in a.history.ledger}):
        steps = a.steps(epoch), b.steps(epoch)
        both = [step for step in steps[0].keys() & steps[1].keys() if isinstance(step, int)]
        agreeing = {step for step in both if steps[0][step].get("batch") == steps[1][step].get("batch")}
        if not agreeing or len(agreeing) == len(both):
            continue
        same_rows = True
        start = a.history.read(epoch - 1).checkpoint
        if a.history.config is None or start is None or start.rng_state is None or not num_images:
            continue
        batches = epoch_batches(a.history.config, num_images, start.rng_state, epoch)
        rows = {step: set(batch.tolist()) for step, batch in enumerate(batches, 1)}
        found = set[int]().union(*(rows[step] for step in both if step not in agreeing))
        found -= set[int]().union(*(rows[step] for step in agreeing))
        suspects = found if suspects is None else suspects & found
    return same_rows, [names[row] for row in sorted(suspects or ()) if row < len(names)]


def _cause(
    runs: tuple[_Run, _Run],
    place: _Place,
    first: FirstDifference | None,
    settings: list[Setting],
    repeats: list[bool | None],
    same_rows: bool,
    suspects: list[str],
) -> str:
    """Name the likely cause: what contradicts itself, else the likeliest setting, else what the place says."""
    differences = place.comparison.differences if place.comparison is not None else ()
    steps_agree = first is None or first.step == END_OF_EPOCH
    file = runs[0].files[place.epoch].checkpoint
    in_state = ""
    if differences and file is not None:
        in_state = cause_of_state(differences, len(file.parameters), steps_agree)
    for run, other, repeated in zip(runs, reversed(runs), repeats or (None, None), strict=True):
        recorded = run.files[place.epoch]
        state = recorded.checkpoint.state if recorded.checkpoint is not None else None
        if state is not None and differences:
            # where a run does not repeat its record, the other's ledger may know what its file holds
            exchanged = _exchanged(run, state, place.epoch, (run, other) if repeated is False else (run,))
            if exchanged is not None:
                return exchanged
        if recorded.problem is not None:
            return f"{run.name}: {recorded.problem.partition(chr(10))[0]}" + (in_state and f"; {in_state}")
        if repeated is False and not differences and first is not None and first.thing != "batch":
            return f"the ledger of {run.name} was changed: its checkpoint and its replay agree"
        if state is not None and run.history.leaves_beside_the_ledger(state):
            why = "was changed after it was written: its own ledger says otherwise"
            return f"the file of {run.name} {why}" + (in_state and f"; {in_state}")
        columns = run.columns_beside_the_file(recorded)
        if not differences and columns:
            why = f"{', '.join(columns)} of epoch {place.epoch}, says its checkpoint"
            return f"training_res.csv of {run.name} was changed: {why}"
    if settings:
        likeliest = settings[0]
        return f"{likeliest.name}: {likeliest.first} in A, {likeliest.second} in B"
    why = ""
    if repeats in ([True, False], [False, True]):
        good, bad = (runs[0].name, runs[1].name) if repeats[0] else (runs[1].name, runs[0].name)
        why = f"{good} repeats its record and {bad} does not: {bad} was changed, or trained in another way; "
    if first is not None and first.step != END_OF_EPOCH:
        return why + (cause_in_optimizer(differences) or cause_of_steps(first, same_rows, suspects))
    return why + (in_state or "the results or the ledger were changed: the states are the same")


def _exchanged(run: _Run, state: TrainingState, epoch: int, witnesses: tuple[_Run, ...]) -> str | None:
    """Say whether a run's file holds the parameters that a ledger has under another epoch."""
    for each in witnesses:
        other = each.history.epoch_with_parameters(state)
        if other not in (None, epoch):
            what = f"epoch {epoch}'s holds the parameters of epoch {other}"
            return f"files of {run.name} were exchanged: {what}, says the ledger of {each.name}"
    return None


def describe(difference: RunDifference) -> str:
    """Return a comparison of two runs for a person."""
    a, b = difference.runs
    epochs = difference.epochs
    lines = [f"A: {a}", f"B: {b}", f"both have {len(epochs)} checkpoints, of epochs {epochs[0]} to {epochs[-1]}"]
    lines += [f"note: {note}" for note in difference.notes]
    if difference.epoch is not None:
        step = difference.step
        where = (
            "in the first state" if step is None else "at its end" if step == END_OF_EPOCH else f"at step {step}"
        )
        lines.append(f"first difference: epoch {difference.epoch}, {where}: {difference.thing}")
        lines += [f"  {line}" for line in difference.lines]
    lines += [f"replay of {text}" for text in difference.replays]
    lines += [f"problem in {problem}" for problem in difference.problems]
    if difference.settings:
        lines.append("what else differs, the likeliest cause first:")
        lines += [f"  {each}" for each in difference.settings]
    if difference.cause is not None:
        lines.append(f"likely cause: {difference.cause}")
    if difference.equal():
        lines.append(f"equal: 0 bits differ in {len(epochs)} states and all that both recorded of their epochs")
    else:
        where = f"from epoch {difference.epoch} on" if difference.epoch is not None else "in their records only"
        lines.append(f"different {where}")
    return "\n".join(lines)
