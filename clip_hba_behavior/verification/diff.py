"""Where two runs first differ, and why: from what they recorded, then by replaying that epoch of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.config import make_config
from clip_hba_behavior.reproducibility.record.epoch import Difference, Epoch, compare_epochs
from clip_hba_behavior.reproducibility.record.judge import Verdict
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, Step
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.run.environment import changed_data, recorded_settings
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.verification.causes import (
    RUNS,
    Images,
    Witness,
    cause_of_training,
    explain,
    first_line,
    group,
    suspect_images,
)
from clip_hba_behavior.verification.files import RunFiles
from clip_hba_behavior.verification.found import common_epochs
from clip_hba_behavior.verification.replays import ReplayHistory, recorded_config
from clip_hba_behavior.verification.seed import epoch_batches
from clip_hba_behavior.verification.settings import ORDER_KEYS, Setting, differing_settings
from clip_hba_behavior.verification.verify import EpochVerifier, Verified


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
        notes: what could not be compared, and what was repaired.
        cause: the likely cause.
    """

    runs: tuple[str, str]
    epochs: tuple[int, ...]
    epoch: int | None = None
    step: Step | None = None
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


@dataclass
class _Run:
    """One of the two: its name here, its files, what reading all of them showed, its replay."""

    name: str
    files: RunFiles
    problems: list[str]
    origins: dict[int, Mapping[str, Any]]
    partial: list[int]
    verified: Verified | None = None
    why_not: str | None = None

    def origin(self, epoch: int | None) -> Mapping[str, Any]:
        return self.origins.get(max(self.origins, default=0) if epoch is None else epoch, {})


@numerics_left_as_they_were()
def diff_runs(first: Path, second: Path, with_replay: bool, session: Session) -> RunDifference:
    """Find the first epoch, step and thing in which two runs differ.

    Args:
        first: a run's directory, or a directory of checkpoints; called A.
        second: another; called B.
        with_replay: also train the differing epoch of each again, to see which repeats its record, and at
            which step they diverge where the ledgers do not tell.
        session: told of the progress.

    Raises:
        BadInputError: there is nothing to compare.
    """
    files = {"A": RunFiles(first), "B": RunFiles(second)}
    epochs = common_epochs(files["A"].found, files["B"].found)
    a, b = (_open(name, each) for name, each in files.items())
    epoch, differences = _first_epoch(a, b, epochs)
    about: dict[str, Any] = {
        "runs": (str(a.files.path), str(b.files.path)),
        "epochs": tuple(epochs),
        "problems": tuple(f"{run.name}: {problem}" for run in (a, b) for problem in run.problems),
        "notes": tuple(_not_compared(a, b, epochs)),
    }
    if epoch is None:
        settings = differing_settings((a.files, b.files), (a.origin(None), b.origin(None)), None)
        cause = about["problems"][0] if about["problems"] else None
        return RunDifference(settings=tuple(settings), cause=cause, **about)

    lines = _lines(differences)
    if with_replay and epoch > epochs[0]:
        for run, other in ((a, b), (b, a)):
            _replay(run, other, epoch, session, lambda: _suspects(a, b))
        again = [run.verified.replayed for run in (a, b) if run.verified is not None and run.verified.replayed]
        if len(again) == 2 and not any(each.source == "ledger" for each in differences):
            steps = [Epoch(epoch, steps=each.steps) for each in again]
            differences = [*compare_epochs(*steps), *differences]
            lines += [first_line(each, RUNS) for each in differences[:1] if each.source == "ledger"]
    thing, same_rows, suspects = _thing(a, b, epoch, differences)
    settings = differing_settings((a.files, b.files), (a.origin(epoch), b.origin(epoch)), thing)
    return RunDifference(
        epoch=epoch,
        step=None if epoch == epochs[0] and differences[0].source == "state" else differences[0].step,
        thing=thing,
        lines=tuple(lines),
        replays=tuple(_describe_replay(run, epoch) for run in (a, b)) if with_replay and epoch > epochs[0] else (),
        settings=tuple(settings),
        cause=_cause((a, b), epoch, differences, settings, (same_rows, suspects)),
        **about,
    )


def _open(name: str, files: RunFiles) -> _Run:
    """Read every file of a run once, one at a time, for what its records say against each other."""
    problems, partial, origins = [], [], {}
    for epoch in files.epochs():
        file = files.file(epoch)
        if "config" in file.origin:
            origins[epoch] = file.origin
        if file.checkpoint is not None and file.state is None:
            partial.append(epoch)
        if file.problem is not None:
            problems.append(file.problem)
        # the file's own problem is said, the start is the epoch before's end, and settings are the run's problem
        found = files.epoch(epoch).contradictions
        problems += [each.text for each in found if each.kind in ("end", "results")]
    return _Run(name, files, [*files.disagreements(origins), *problems], origins, partial)


def _first_epoch(a: _Run, b: _Run, epochs: Sequence[int]) -> tuple[int | None, list[Difference]]:
    """Return the first epoch in which two runs differ, and all that differs in it."""
    recorded = [set(run.files.ledger.epochs()) | run.files.rows.keys() for run in (a, b)]
    for epoch in sorted({*epochs, *(recorded[0] & recorded[1])}):
        files = [run.files.file(epoch) for run in (a, b)]
        pairs = zip((a, b), files, strict=True)
        unreadable = [run.name for run, file in pairs if file.checkpoint is None and epoch in run.files.files]
        found = [
            each
            for each in compare_epochs(*(run.files.epoch(epoch) for run in (a, b)))
            if each.source != "records"
        ]
        if len(unreadable) == 1:
            found.append(Difference(END_OF_EPOCH, "records", f"the checkpoint of {unreadable[0]} cannot be read"))
        if found:
            return epoch, found
    return None, []


def _lines(differences: Sequence[Difference]) -> list[str]:
    ledger = [each for each in differences if each.source == "ledger"]
    lines = [first_line(each, RUNS) for each in ledger[:1]]
    lines += [each.name for each in differences if each.source == "records"]
    lines += group(differences, RUNS)
    return lines + [
        f"{each.name} in the results: {each.first!r} in A, {each.second!r} in B"
        for each in differences
        if each.source == "results"
    ]


def _not_compared(a: _Run, b: _Run, epochs: Sequence[int]) -> list[str]:
    """Name what only one of two runs has between the first and the last epoch of both, and states in part."""
    notes = []
    between = range(epochs[0], epochs[-1] + 1)
    for run, other in ((a, b), (b, a)):
        alone = [epoch for epoch in between if epoch in run.files.files and epoch not in other.files.files]
        if alone:
            notes.append(f"only {run.name} has a checkpoint of epoch {', '.join(map(str, alone))}")
        if set(run.partial) & set(epochs):
            notes.append(f"{run.name} does not hold complete states: of them only what both have is compared")
        notes += [f"{run.name}: {note}" for note in run.files.notes]
    return notes


def _replay(run: _Run, other: _Run, epoch: int, session: Session, images: Images) -> None:
    """Train an epoch of a run again; keep what it showed, or why it could not be."""
    before = run.files.file(epoch - 1)
    if (before.problem is not None or before.state is None) and not run.files.is_left_out(epoch - 1):
        run.why_not = before.problem or "the state before it is not complete"
        return
    try:
        replays = ReplayHistory(run.files, Replayer(recorded_config(run.files, {}), session), with_state=True)
        recorded = run.files.environment or run.origin(epoch)
        changed = changed_data(recorded, replays.replayer.environment()) if "digests" in recorded else []
        if changed:
            run.why_not = "what it was made from changed\n    " + "\n    ".join(changed)
            return
        # where a run does not repeat its record, the other's ledger may know what its file holds
        witnesses = [Witness(other.files.ledger, other.name)]
        run.verified = EpochVerifier(run.files, replays, witnesses, images).verify(epoch)
    except BadInputError as error:
        run.why_not = str(error)


def _describe_replay(run: _Run, epoch: int) -> str:
    if run.verified is None or run.verified.replayed is None:
        why = run.why_not or "; ".join(run.verified.outcome.differences if run.verified is not None else ())
        return f"{run.name}: epoch {epoch} not replayed: {why}"
    outcome = run.verified.outcome
    if outcome.word is Verdict.REPRODUCIBLE:
        return f"{run.name}: epoch {epoch} replayed: it repeats the record, 0 bits differ"
    lines = "\n    ".join(outcome.differences)
    return f"{run.name}: epoch {epoch} replayed: the record is another\n    {lines}"


def _thing(a: _Run, b: _Run, epoch: int, differences: Sequence[Difference]) -> tuple[str, bool, list[str]]:
    """Name what differs first; of batches also whether their rows are the same, and which image it may be."""
    first = differences[0]
    if first.name == "batch":
        same_rows, suspects = _suspects(a, b)
        same_rows = same_rows or _same_draws(a, b, epoch, differences)
        return ("batch content" if same_rows else "batch order"), same_rows, suspects
    return ("metrics" if first.source == "results" else first.part()), True, []


def _same_draws(a: _Run, b: _Run, epoch: int, differences: Sequence[Difference]) -> bool:
    """Whether both drew the epoch's order from the same random states, by the same rule, of as many rows."""
    if a.files.file(epoch).state is None or b.files.file(epoch).state is None:
        return False
    if any(each.source == "state" and each.part() == "rng_state" for each in differences):
        return False
    rules = [
        (
            {key: run.origin(epoch).get("config", {}).get(key) for key in ORDER_KEYS},
            len(run.files.environment.get("targets", {})),
        )
        for run in (a, b)
    ]
    return rules[0] == rules[1]


def _suspects(a: _Run, b: _Run) -> tuple[bool, list[str]]:
    """Find the images that alone may have changed between two runs; see `suspect_images`."""
    names = list(a.files.environment.get("images", {}))
    num_images = len(a.files.environment.get("targets", {}))

    def batches_of(epoch: int) -> Sequence[torch.Tensor] | None:
        start = a.files.file(epoch - 1).checkpoint
        if a.files.config is None or start is None or start.rng_state is None or not num_images:
            return None
        config = make_config(a.files.config.model_dump() | a.origin(epoch).get("config", {}))
        return epoch_batches(config, num_images, start.rng_state, epoch)

    same_rows, rows = suspect_images(a.files.ledger.epochs(), a.files, b.files, batches_of)
    return same_rows, [names[row] for row in rows if row < len(names)]


def _cause(
    runs: tuple[_Run, _Run],
    epoch: int,
    differences: Sequence[Difference],
    settings: Sequence[Setting],
    batches: tuple[bool, list[str]],
) -> str:
    """Name the likely cause: what a run's own records show, else the likeliest setting, else the replays."""
    own = {}
    for run in runs:
        cause = run.verified.cause if run.verified is not None else None
        if run.verified is None or run.verified.replayed is None:
            witnesses = [Witness(run.files.ledger)]
            cause = explain((), run.files.epoch(epoch), None, witnesses, lambda: batches)
        problem = run.files.file(epoch).problem
        if problem is not None:
            first = problem.partition("\n")[0]
            in_state = cause.text if cause is not None and run.verified is not None else ""
            is_swapped = in_state.startswith("files ")
            return f"{run.name}: {in_state if is_swapped else '; '.join(filter(None, [first, in_state]))}"
        is_setting = any(each.kind == "setting" for each in run.files.epoch(epoch).contradictions)
        if cause is not None and cause.is_certain and not is_setting:  # the settings name both values
            return f"{run.name}: {cause.text}"
        own[run.name] = cause
    if settings:
        likeliest = settings[0]
        return f"{likeliest.name}: {likeliest.first} in A, {likeliest.second} in B"
    repeats = [run.verified is not None and run.verified.outcome.word is Verdict.REPRODUCIBLE for run in runs]
    if repeats[0] != repeats[1] and all(run.verified is not None for run in runs):
        good, bad = (runs[0], runs[1]) if repeats[0] else (runs[1], runs[0])
        found = own[bad.name]
        why = f"{bad.name} was changed, or trained in another way"
        return f"{good.name} repeats its record and {bad.name} does not: {why}" + (
            f"; {found.text}" if found else ""
        )
    states = [run.files.file(epoch).checkpoint for run in runs]
    has_states = all(each is not None for each in states)
    if not any(each.source in ("ledger", "state") for each in differences):
        return "the results or the ledger were changed: the states are the same"
    num_parameters = len(states[0].parameters) if states[0] is not None else 0
    of_run = recorded_settings(runs[0].origin(epoch))
    return cause_of_training(differences, num_parameters, True, has_states, lambda: batches, of_run)


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
        order = "" if difference.equal() else ", the likeliest cause first"
        lines.append(f"what else differs{order}:")
        lines += [f"  {each}" for each in difference.settings]
    if difference.cause is not None:
        lines.append(f"likely cause: {difference.cause}")
    if difference.equal():
        lines.append(f"equal: 0 bits differ in {len(epochs)} states and all that both recorded of their epochs")
    else:
        where = f"from epoch {difference.epoch} on" if difference.epoch is not None else "in their records only"
        lines.append(f"different {where}")
    return "\n".join(lines)
