"""A tracked run verified by its own loop: each epoch is trained again from the state before it, and compared."""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.epoch import Difference, Epoch, compare_epochs
from clip_hba_behavior.reproducibility.record.judge import Claim, Level, Tolerance, Verdict, judge, worst
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.record.made_from import (
    changes_from,
    describe_run,
    devices_of,
    machine_changes,
    made_from_changes,
)
from clip_hba_behavior.reproducibility.record.parts import Part
from clip_hba_behavior.reproducibility.record.protocol import EpochDone, Event, Replay
from clip_hba_behavior.reproducibility.record.recording import tracking_by
from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.reproducibility.record.track import Run
from clip_hba_behavior.reproducibility.record.tracked import TrackedFiles, TrackedState, rules_of
from clip_hba_behavior.reproducibility.state.environment import sentences
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import undisturbed_generators

_TOLERANCE = 1e-4  # of losses and metrics, where the environment supports no claim on bits


@dataclass(frozen=True)
class EpochVerification:
    """What training an epoch again showed.

    Attributes:
        epoch: counted from 1.
        verdict: `reproducible`, `consistent`, `not reproducible` or `could not be tested`.
        differences: in the order of time; none where every bit is equal.
        why_not: why it could not be tested.
    """

    epoch: int
    verdict: Verdict
    differences: tuple[Difference, ...] = ()
    why_not: str = ""

    def __str__(self) -> str:
        """Name the epoch, the verdict and the first difference."""
        text = f"epoch {self.epoch}: {self.verdict}"
        if self.differences:
            text += f", {describe_difference(self.differences[0])}"
            text += f", and {len(self.differences) - 1} more" if len(self.differences) > 1 else ""
        return f"{text}: {self.why_not}" if self.why_not else text


@dataclass(frozen=True)
class Verification:
    """The outcome of `verify`.

    Attributes:
        run: the directory.
        level: L0 where equal bits are claimed, L2 where versions or processor are others.
        reasons: what keeps it from L0.
        problems: what is wrong with the run's own records.
        notes: what is not there, and so was not tested.
        epochs: each that was to be tested.
    """

    run: str
    level: Level
    reasons: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    epochs: tuple[EpochVerification, ...]

    def verdict(self) -> Verdict:
        """Return the verdict on all."""
        if self.problems:
            return Verdict.DIFFERENT
        return worst(each.verdict for each in self.epochs)

    def __str__(self) -> str:
        """Return a line for each epoch, and the verdict."""
        lines = [str(each) for each in self.epochs]
        lines += [f"problem: {each}" for each in self.problems]
        lines += [f"note: {each}" for each in self.notes]
        lines += [f"level {self.level}: {each}" for each in self.reasons]
        return "\n".join([*lines, f"{self.run}: {self.verdict()} ({self.level})"])


def verify(
    path: str | Path,
    main: Callable[..., Any],
    epochs: Collection[int] | None = None,
    report: Report = lambda what, done, total: None,
) -> Verification:
    """Train epochs of a run again, by its own loop, and compare every bit with what is on record.

    Args:
        path: the run's directory; nothing in it is written.
        main: the function that trains. A parameter called `track` is given what it must call; without one, `track`
            itself does not record while `main` runs, but repeats.
        epochs: which; None for all whose state before is there.
        report: told of the progress.

    Returns:
        The verdicts. The global random streams are afterwards as they were.

    Raises:
        BadInputError: there is no run, or `main` gives other settings, data or parts than it was made from.
    """
    files = TrackedFiles(Path(path).expanduser().absolute())
    known = [epoch for epoch in files.epochs() if epoch > min(files.epochs())]
    keeps_all = files.record.get("keep_checkpoints") == "all"  # then a state that is not there is lost
    skipped = (
        [epoch for epoch in known if epoch - 1 not in files.files] if epochs is None and not keeps_all else []
    )
    wanted = sorted(set(known) - set(skipped) if epochs is None else epochs)
    if unknown := sorted(set(wanted) - set(known)):
        raise BadInputError(f"{files.directory.path} has no epoch {unknown[0]}\n  found:    {known}")
    if not wanted:
        raise BadInputError(f"{files.directory.path} has no completed epoch to verify")
    replaying = _Replaying(files, report)
    with undisturbed_generators(), tracking_by(replaying.track):
        # Each epoch from the loop's beginning, and the last one first: what is no part, and outlives the loop in
        # its module, would else bring the value along that it had in the run.
        for number in sorted(wanted, reverse=True):
            replaying.wanted = [number]
            _train(main, replaying.track)
    if not replaying.has_run:
        raise BadInputError("main(track) did not iterate over the epochs of a run that track gave it")
    found = {each.epoch: each for each in replaying.found}
    missing = "the loop did not come to this epoch"
    verified = [found.get(each, EpochVerification(each, Verdict.UNTESTED, (), missing)) for each in wanted]
    claim = replaying.claim
    notes = [f"epoch {each} was not tested: there is no state after epoch {each - 1}" for each in skipped]
    return Verification(
        run=str(files.directory.path),
        level=claim.level,
        reasons=claim.reasons,
        problems=tuple(files.problems),
        notes=(*notes, *files.notes),
        epochs=tuple(verified),
    )


def _train(main: Callable[..., Any], track: Callable[..., Run]) -> None:
    """Call the user's function, which may end as a script does."""
    try:
        if "track" in inspect.signature(main).parameters:
            main(track=track)
        else:
            main()
    except SystemExit as error:
        if error.code not in (None, 0):
            raise BadInputError(f"main left by sys.exit({error.code!r}), which says that it failed") from error


class _Replaying:
    """The consumer of a run that is trained again."""

    def __init__(self, files: TrackedFiles, report: Report) -> None:
        self.found: list[EpochVerification] = []
        self.claim = Claim("L0")
        self.has_run = False
        self.wanted: list[int] = []
        self._files, self._report = files, report
        self._replay: Replay | None = None
        self._made_from: Mapping[str, Any] = {}

    def track(
        self,
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
        """Stand for the real `track`: where the run is and how it is kept is known."""
        record, devices = self._files.record, devices_of(parts)
        found = self._made_from = describe_run(parts, settings, data, devices[0])
        machine = machine_changes(record, found)
        changes_from(record, found, self._files.directory.path, list(machine))
        reasons = (*sentences(machine), *record["drift"])
        if reasons:
            self.claim = Claim("L2", reasons)
        return Run(self, parts, devices, rules_of(record))

    def epochs(self, run: Run, last: int) -> Iterator[int]:
        """Restore the state before each epoch, yield it, and compare."""
        self.has_run = True
        for number in self.wanted:
            if number > last:
                continue
            try:
                start = self._files.state(number - 1)
                why = self._why_not(number, start)
            except BadInputError as error:
                why = str(error)
            if start is None or why:
                self.found.append(EpochVerification(number, Verdict.UNTESTED, (), why))
                continue
            run.restore(start, str(self._files.files[number - 1]))
            self._replay = Replay(run, self._report)
            yield number

    def _why_not(self, number: int, start: TrackedState | None) -> str:
        """Say why an epoch cannot be tested by this loop; empty if it can."""
        if start is None:
            return f"there is no state after epoch {number - 1}"
        try:
            _, then = self._files.read(number)
        except BadInputError:
            return ""  # the comparison names what is wrong with it
        if any(f"after epoch {number - 1}, step " in each for each in self._files.record["drift"]):
            return "it was continued otherwise within the epoch, on request"
        changes = made_from_changes({**self._files.record, **then}, self._made_from)
        return f"it was trained otherwise: {'; '.join(sentences(changes))}" if changes else ""

    def record(self, event: Event) -> None:
        """Keep what the ledger would record."""
        if self._replay is not None:
            self._replay.record(event)
            if isinstance(event, EpochDone):
                self._compare(event.epoch)

    def close(self) -> None:
        """Nothing is open."""

    def _compare(self, number: int) -> None:
        replay, recorded = self._replay, self._files.epoch(number)
        if replay is None or END_OF_EPOCH not in replay.steps:
            return
        end = replay.state()
        differences = compare_epochs(recorded, Epoch(number, end=end, steps=replay.steps))
        steps_then, steps_now = (each.keys() - {END_OF_EPOCH} for each in (recorded.steps, replay.steps))
        if steps_then and steps_then != steps_now:
            numbers = len(steps_then), len(steps_now)
            differences = (Difference(END_OF_EPOCH, "ledger", "number of steps", *numbers), *differences)
        self.found.append(EpochVerification(number, judge(differences, self._claim_on(end)), differences))

    def _claim_on(self, end: Any) -> Claim:
        if self.claim.level == "L0":
            return self.claim
        metrics = end.metrics if isinstance(end, TrackedState) else {}
        relative = dict.fromkeys(["loss", "loss_sum", *metrics], _TOLERANCE)
        tolerance = Tolerance(relative, exact=("batch", "rng_state", "number of steps"))
        return Claim("L2", self.claim.reasons, tolerance)


@dataclass(frozen=True)
class RunDifference:
    """The outcome of `diff`.

    Attributes:
        runs: the two directories.
        epochs: how many epochs both have a record of, the one under way included.
        epoch: the first in which they differ; None if in none.
        differences: all in that epoch, in the order of time.
        settings: what they were made from and is not the same, a text each.
        problems: what of their records is damaged or contradicts itself, and so was not compared.
    """

    runs: tuple[str, str]
    epochs: int
    epoch: int | None
    differences: tuple[Difference, ...]
    settings: tuple[str, ...]
    problems: tuple[str, ...] = ()

    def equal(self) -> bool:
        """Whether all that both recorded is the same, and nothing of it is damaged."""
        return self.epoch is None and not self.problems

    def __str__(self) -> str:
        """Name the first difference and what may have made it."""
        lines = [f"A: {self.runs[0]}", f"B: {self.runs[1]}"]
        if self.epoch is None:
            but = ", but for what is damaged" if self.problems else ""
            lines.append(f"equal in all of {self.epochs} epochs that both have{but}")
        else:
            lines.append(f"first difference: epoch {self.epoch}, {describe_difference(self.differences[0])}")
            lines += [f"  {describe_difference(each)}" for each in self.differences[1:6]]
        return "\n".join([*lines, *(f"problem: {each}" for each in self.problems), *self.settings])


def diff(first: str | Path, second: str | Path) -> RunDifference:
    """Find where two runs first differ, from what they recorded.

    Args:
        first: the directory of a tracked run; called A.
        second: another; called B.

    Raises:
        BadInputError: there is no run, or they have no epoch in common.
    """
    pair = [TrackedFiles(Path(each).expanduser().absolute()) for each in (first, second)]
    runs = (str(pair[0].directory.path), str(pair[1].directory.path))
    known = [{*each.epochs(), *each.ledger.epochs()} for each in pair]  # the epoch under way has steps alone
    common = sorted(known[0] & known[1])
    if not common:
        raise BadInputError(
            "the two runs have no epoch in common\n"
            + "\n".join(f"  {each.directory.path}: {sorted(own)}" for each, own in zip(pair, known, strict=True))
        )
    settings = []
    for kind in ("settings", "digests", "numerics", "versions"):
        a, b = (each.record.get(kind) or {} for each in pair)
        settings += [
            f"{name}\n    in A: {a.get(name)}\n    in B: {b.get(name)}"
            for name in {**a, **b}
            if a.get(name) != b.get(name)
        ]
    problems = [f"{name}: {each}" for name, files in zip("AB", pair, strict=True) for each in files.problems]
    for number in common:
        epochs = [each.epoch(number) for each in pair]
        problems += [
            f"{name}: {each.text}" for name, own in zip("AB", epochs, strict=True) for each in own.contradictions
        ]
        found = tuple(each for each in compare_epochs(*epochs) if each.source != "records")
        if found:
            return RunDifference(runs, len(common), number, found, tuple(settings), tuple(problems))
    return RunDifference(runs, len(common), None, (), tuple(settings), tuple(problems))


def describe_difference(difference: Difference) -> str:
    """Name step, leaf and values of a difference."""
    where = "at its end" if difference.step == END_OF_EPOCH else f"step {difference.step}"
    if difference.source == "records":
        return difference.name
    what = difference.text or f"{difference.first!r} != {difference.second!r}"
    return f"{where}: {difference.name}: {what}"
