"""A tracked run that begins with a state of another one."""

from pathlib import Path

from clip_hba_behavior.reproducibility.record.tracked import TrackedDirectory, TrackedFiles
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish


def fork(run: str | Path, at: int, into: str | Path) -> Path:
    """Make a new run that goes on from the state after an epoch of another run.

    The state is copied to the bit, random streams included: trained on under the same settings, the fork is the
    run that it was taken from. `track(into, settings=...)` then goes on with it; settings that it gives at its
    first opening are the fork's own.

    Args:
        run: the directory of a tracked run.
        at: number of completed epochs of the state to begin with; 0 is the state before training.
        into: the fork's new directory.

    Returns:
        The fork's directory.

    Raises:
        BadInputError: there is no run or no such state, it is damaged, or the new directory is in use.
    """
    source = TrackedFiles(Path(run).expanduser().absolute())
    target = TrackedDirectory(Path(into).expanduser().absolute())
    if at not in source.files:
        raise BadInputError(
            f"{source.directory.path} has no state after epoch {at}\n  found:    {sorted(source.files)}\n"
            "  give one of these epochs"
        )
    if target.path.exists() and (not target.path.is_dir() or any(target.path.iterdir())):
        raise BadInputError(f"{target.path} is not empty\n  give a new directory")
    state = source.state(at)  # refuses a damaged one
    parent = {
        "run": str(source.directory.path),
        "epoch": at,
        "state_digest": state.digest() if state is not None else None,
    }
    # noted first: from now on the run keeps this state, whatever it does not keep
    with source.directory.forks_file.open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{at} {target.path}\n")
    target.path.mkdir(parents=True, exist_ok=True)
    # first: a directory that is known as a fork and lacks its state is refused, and not trained in from nothing
    target.write_record({**source.record, "settings": None, "parent": parent})
    target.checkpoints.mkdir()
    publish(target.state_file((at, 0)), source.files[at].read_bytes())
    return target.path
