"""What commands on a trained model refuse before torch is imported."""

from pathlib import Path

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory


def named_checkpoint(run: Path, epoch: int | None) -> Path:
    """Return the checkpoint that is meant.

    Args:
        run: the run's directory.
        epoch: number of completed epochs; None for the best one, as `best.json` names it.

    Raises:
        BadInputError: there is no such run, or no such checkpoint in it.
    """
    directory = RunDirectory.at(run)
    directory.refuse_if_no_run()
    return directory.checkpoint_of(directory.read_best()[0] if epoch is None else epoch, "--epoch")


def refuse_no_file(path: Path, option: str) -> None:
    """Return if a file that an option names is there.

    Raises:
        BadInputError: it is not.
    """
    if not path.is_file():
        raise BadInputError(
            f"{option} {path}: there is no such file\n  give the path of a file, or leave {option} out"
        )


def refuse_taken(*paths: Path) -> None:
    """Return if something can be written to each path.

    Raises:
        BadInputError: one is there already.
    """
    for path in paths:
        if path.exists():
            raise BadInputError(f"{path} is there already, and is not replaced\n  give another --out, or move it")
