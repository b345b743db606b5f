"""A random epoch of some finished runs of a sweep, verified."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.kept import Kept, mark_of
from clip_hba_behavior.sweep.status import status_of
from clip_hba_behavior.sweep.sweep import Sweep


@dataclass(frozen=True)
class Sample:
    """An epoch to be verified.

    Attributes:
        run: the run's name.
        path: its directory.
        epoch: one that it trained itself.
        epochs: how many must be trained at most, if states before it are to be made again.
        baseline: directory of the run that it started from.
        marks: of the files that held the epoch, and the state before it, when it was chosen.
    """

    run: str
    path: str
    epoch: int
    epochs: int
    baseline: str
    marks: str

    def is_current(self) -> bool:
        """Whether none of these files has changed since."""
        return self.marks == _marks(RunDirectory(Path(self.path)), self.epoch)


def _marks(run: RunDirectory, epoch: int) -> str:
    states = (checkpoint_path(run.checkpoints, each) for each in (epoch - 1, epoch))
    return " ".join(str(mark_of(each)) for each in (run.ledger_file, run.results_file, *states))


@dataclass(frozen=True)
class Verified:
    """What a verification of a sample found.

    Attributes:
        line: in a sentence.
        details: where it is not reproducible, of the epoch; else empty.
        code: the exit code that it stands for.
    """

    line: str
    details: str
    code: int

    def text(self) -> str:
        """Return what is printed of it."""
        return "\n".join(each for each in (self.line, self.details) if each)


def choose(sweep: Sweep, number: int, seed: int) -> list[Sample]:
    """Choose an epoch of each of some finished runs, by name; none where no run is done.

    Args:
        sweep: whose runs.
        number: of runs, at most.
        seed: which ones.
    """
    states = [(plan, run, status_of(plan, run)) for plan, run in sweep.runs()]
    finished = [  # with the epochs that each trained itself: none, if the run that it extends stopped early
        (plan, run, epochs)
        for plan, run, found in states
        if found.state == "done" and (epochs := range(plan.first_own_epoch(run), int(found.epoch or 0) + 1))
    ]
    chance = random.Random(seed)
    samples = []
    for plan, run, epochs in sorted(
        chance.sample(finished, min(number, len(finished))), key=lambda each: each[1].name
    ):
        epoch, directory = chance.choice(epochs), RunDirectory(plan.path(run.name))
        to_train, marks = epoch - epochs[0] + 1, _marks(directory, epoch)
        samples.append(Sample(run.name, str(directory.path), epoch, to_train, str(plan.baseline), marks))
    return samples


def verify(sample: Sample, session: Session, kept: Kept[Any]) -> Verified:
    """Replay the epoch of a sample, and compare.

    Args:
        sample: the epoch.
        session: told of the progress, and asked whether to stop.
        kept: the inputs of the run before it.

    Raises:
        BadInputError: the run's data or backbone cannot be used.
        InterruptedRunError: a signal came.
    """
    from clip_hba_behavior.verification.text import closing_line, epoch_block
    from clip_hba_behavior.verification.verify import verify_checkpoints

    found = verify_checkpoints(Path(sample.path), {}, [sample.epoch], None, session, kept=kept)
    code = found.word().exit_code()
    details = "\n".join(epoch_block(each) for each in found.epochs) if code else ""
    return Verified(f"{sample.run}: {closing_line(found)}", details, code)


def summary(verified: Sequence[Verified]) -> str:
    """Return in a sentence how many are reproducible."""
    good = sum(each.code == 0 for each in verified)
    return f"{good} of {len(verified)} sampled epochs are reproducible"


def exit_code(verified: Sequence[Verified]) -> int:
    """Return 0 if all are reproducible, else the lowest code of those that are not."""
    return max((each.code for each in verified), key=lambda code: (code != 0, -code))
