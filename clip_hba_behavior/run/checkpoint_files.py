"""Where the checkpoints of a run are: their names, and what of them a directory holds. Nothing is read."""

import re
from collections.abc import Iterable
from pathlib import Path

_FILE_NAME = re.compile(r"epoch(\d+)_dora_params\.pth")
_STEP_FILE_NAME = re.compile(r"epoch(\d+)_step(\d+)\.pth")


def checkpoint_path(directory: Path, epoch: int) -> Path:
    """Return the path of the checkpoint after `epoch` completed epochs."""
    return directory / f"epoch{epoch}_dora_params.pth"


def list_checkpoints(directory: Path) -> dict[int, Path]:
    """Return the epoch checkpoints in a directory by their number of completed epochs, ascending."""
    found = {}
    for path in directory.iterdir() if directory.is_dir() else []:
        match = _FILE_NAME.fullmatch(path.name)
        if match:
            found[int(match[1])] = path
    return dict(sorted(found.items()))


def name_epochs(epochs: Iterable[int]) -> str:
    """Return the numbers of epochs for a person: `epochs 0 to 3, 5`, or `none`."""
    stretches: list[list[int]] = []
    for epoch in sorted(epochs):
        if stretches and epoch == stretches[-1][-1] + 1:
            stretches[-1].append(epoch)
        else:
            stretches.append([epoch])
    parts = [f"{each[0]} to {each[-1]}" if len(each) > 1 else str(each[0]) for each in stretches]
    if not parts:
        return "none"
    return f"epoch{'s' if sum(map(len, stretches)) > 1 else ''} {', '.join(parts)}"


def step_checkpoint_path(directory: Path, epoch: int, step: int) -> Path:
    """Return the path of the checkpoint within `epoch` (counted from 1) after `step` of its steps."""
    return directory / f"epoch{epoch}_step{step}.pth"


def list_step_checkpoints(directory: Path) -> dict[tuple[int, int], Path]:
    """Return the checkpoints within an epoch by (completed epochs, steps done of the next), ascending."""
    found = {}
    for path in directory.iterdir() if directory.is_dir() else []:
        match = _STEP_FILE_NAME.fullmatch(path.name)
        if match:
            found[int(match[1]) - 1, int(match[2])] = path
    return dict(sorted(found.items()))


def position_in_name(name: str) -> tuple[int, int]:
    """Return how far the state is that a checkpoint's name tells: completed epochs, steps done of the next.

    Raises:
        ValueError: it is no checkpoint's name.
    """
    if match := _FILE_NAME.fullmatch(name):
        return int(match[1]), 0
    if match := _STEP_FILE_NAME.fullmatch(name):
        return int(match[1]) - 1, int(match[2])
    raise ValueError(f"{name} is not a checkpoint's name")
