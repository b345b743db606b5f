"""What is asked of a state that is to be made again, checked without torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, read_ledger
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint_files import (
    checkpoint_path,
    list_checkpoints,
    name_epochs,
    step_checkpoint_path,
)
from clip_hba_behavior.run.directory import RunDirectory


@dataclass(frozen=True)
class MissingState:
    """A state that is to be made again.

    Attributes:
        run: that it is of.
        epoch: as in a checkpoint's name: the state after this epoch, or within it, counted from 1.
        step: the steps done of the epoch; None for the state after it.
        file: where it is to go.
    """

    run: RunDirectory
    epoch: int
    step: int | None
    file: Path

    def name(self) -> str:
        """Return what it is, for a person."""
        within = "" if self.step is None else f"step {self.step} of "
        return f"the state after {within}epoch {self.epoch}"


def missing_state(path: Path, epoch: int, step: int | None = None, out: Path | None = None) -> MissingState:
    """Check what is asked, as far as it can be without reading a state.

    Args:
        path: the run's directory.
        epoch: as in a checkpoint's name.
        step: as in the name of a checkpoint within an epoch.
        out: the new file; None for the one that the run would have.

    Raises:
        BadInputError: there is no run, no such state on record, none before it, or the file is there or
            cannot be.
    """
    run = RunDirectory.at(path)
    run.refuse_if_no_run()
    last, found = run.newest_epoch(), list_checkpoints(run.checkpoints)
    if not min(found) < epoch <= last:
        possible = range(min(found) + 1, last + 1)
        raise BadInputError(
            f"--epoch {epoch}: there is no state of {run.path} from which it could be trained again\n"
            f"  found:    checkpoints of {name_epochs(found)}\n"
            f"  expected: {f'one of {name_epochs(possible)}' if possible else 'one of an earlier epoch too'}"
        )
    recorded = read_ledger(run.ledger_file).steps(epoch)
    if END_OF_EPOCH not in recorded:
        raise BadInputError(f"{run.ledger_file} records no end of epoch {epoch}, so a state could not be compared")
    num_steps = max((each for each in recorded if each != END_OF_EPOCH), default=0)
    if step is not None and step > num_steps:
        raise BadInputError(f"--step {step}: epoch {epoch} of {run.path} has {num_steps} steps")
    own = checkpoint_path(run.checkpoints, epoch)
    if step is not None:
        own = step_checkpoint_path(run.step_checkpoints, epoch, step)
    file = own if out is None else out.expanduser().absolute()
    if os.path.lexists(file):
        elsewhere = "\n  to make it again all the same, give --out FILE" if out is None else ""
        raise BadInputError(f"{file} is there already, and is not replaced{elsewhere}")
    if out is not None and not file.parent.is_dir():
        raise BadInputError(f"--out {out}: {file.parent} is no directory")
    folder = next(each for each in file.parents if each.is_dir())
    if not os.access(folder, os.W_OK):  # before an hour of training, not behind it
        raise BadInputError(
            f"{file} cannot be written: nothing can be in {folder}\n  give another --out FILE"
            "\n  to fork or continue it from that state, copy the run to where it can be written"
        )
    return MissingState(run, epoch, step, file)
