"""The states of a run on disk: which is the newest complete one, which stay, and what is kept apart."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from clip_hba_behavior.reproducibility.record.lines import Position
from clip_hba_behavior.reproducibility.record.quarantine import describe, keep_file
from clip_hba_behavior.reproducibility.state.errors import AnotherFormatError, BadInputError, UnreadableError

S = TypeVar("S")
Refused = Sequence[tuple[Path, BadInputError]]  # damaged files, and what is wrong with each


def newest_complete(files: Mapping[Position, Path], read: Callable[[Path], S]) -> tuple[S | None, Refused]:
    """Read the newest state that is complete; nothing is moved yet.

    Args:
        files: of states, by position.
        read: reads one; raises BadInputError where it is damaged or not complete.

    Returns:
        The state, None if there is none; and the newer files that are damaged: see `quarantine`.

    Raises:
        AnotherFormatError: a file of a later version of this package is in the way.
        UnreadableError: a file cannot be read just now, which does not make an older state the newest.
    """
    refused: list[tuple[Path, BadInputError]] = []
    for _, path in sorted(files.items(), reverse=True):
        try:
            return read(path), refused
        except (AnotherFormatError, UnreadableError):
            raise
        except BadInputError as error:
            if not path.exists():
                raise UnreadableError(
                    f"the state {path} cannot be found just now: is its storage there?\n"
                    "  nothing was moved; try again"
                ) from error
            refused.append((path, error))
    return None, refused


def quarantine(run: Path, refused: Refused, logger: logging.Logger) -> None:
    """Move damaged states of a run out of the way, and name them."""
    for path, why in refused:
        record = keep_file(run, path, {"why": f"not a complete state: {why}"})
        logger.warning("Quarantined %s", describe(record))


def epochs_to_keep(epochs: Sequence[int], policy: str, always: Collection[int] = ()) -> set[int]:
    """Return the epochs whose states stay.

    Args:
        epochs: of which there is a state, ascending.
        policy: `all`, `best`, `last N` or `every N`.
        always: stay under any policy, like the first and the newest.
    """
    word, _, number = policy.partition(" ")
    if word == "all" or len(epochs) < 3:
        return set(epochs)
    keep = {epochs[0], epochs[-1], *always}
    if word == "last":
        keep.update(epochs[-int(number) :])
    elif word == "every":
        keep.update(epoch for epoch in epochs if epoch % int(number) == 0)
    return keep
