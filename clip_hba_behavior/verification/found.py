"""Which checkpoints there are to verify; they are not read yet, so torch is not needed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory


@dataclass(frozen=True)
class Found:
    """The checkpoints of a run, or of a bare directory.

    Attributes:
        run: the run's directory, or the checkpoints'.
        is_run: whether it is a run's, with records beside the checkpoints.
        files: by number of completed epochs, ascending; at least one.
    """

    run: RunDirectory
    is_run: bool
    files: dict[int, Path]


def find_checkpoints(path: Path) -> Found:
    """List the checkpoints of a run, or in a bare directory.

    Args:
        path: a run's directory, its `dora_params`, or a directory of checkpoints.

    Raises:
        BadInputError: there are none.
    """
    run = RunDirectory.at(path)
    path = run.path
    recorded = (run.config_file, run.ledger_file, run.environment_file)
    is_run = run.checkpoints.is_dir() and any(each.is_file() for each in recorded)
    files = list_checkpoints(run.checkpoints) or ({} if is_run else list_checkpoints(path))
    if not files:
        raise BadInputError(
            f"{path} holds no checkpoints\n  expected: a run's directory, or one with epochN_dora_params.pth"
        )
    return Found(run, is_run, files)


def refuse_absent(found: Found, epochs: Sequence[int]) -> None:
    """Return if there is a checkpoint of any of these epochs, or was until `keep_checkpoints` removed it.

    Raises:
        BadInputError: there is none.
    """
    if not set(epochs) & (found.files.keys() | found.run.removed_epochs()):
        raise BadInputError(
            f"{found.run.path} has no checkpoint of epoch {', '.join(map(str, epochs))}\n"
            f"  found:    epochs {', '.join(map(str, found.files))}\n  give --epochs some of those"
        )


def common_epochs(first: Found, second: Found) -> list[int]:
    """Return the epochs of which both have a checkpoint, ascending.

    Raises:
        BadInputError: there are none.
    """
    epochs = sorted(first.files.keys() & second.files.keys())
    if not epochs:
        raise BadInputError(
            "the two runs have no epoch in common\n"
            + "\n".join(
                f"  {name}: {each.run.path}, epochs {sorted(each.files)}"
                for name, each in (("A", first), ("B", second))
            )
        )
    return epochs
