"""How this process was started: alone, or by torchrun as one of several that share each batch of a run."""

import os
from dataclasses import dataclass

from clip_hba_behavior.config import Config
from clip_hba_behavior.reproducibility.state.errors import BadInputError


@dataclass(frozen=True)
class Launch:
    """The place of this process among those of its run.

    Attributes:
        rank: its number; the first process, 0, lives the run's life and alone writes.
        size: how many there are.
        local_rank: its number among those of this machine.
        local_size: how many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def launched() -> Launch:
    """Return what torchrun says of this process in the environment; alone without torchrun."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = [os.environ.get(name, "") for name in names]
    if not all(value.isdecimal() for value in values) or int(values[1]) < 2:
        return Launch()
    return Launch(*map(int, values))


def refuse_other_command(command: str | None) -> None:
    """Return if a command may be given to several processes.

    Raises:
        BadInputError: it is not one that trains one run.
    """
    size = launched().size
    if size > 1 and command not in ("train", "resume", "fork"):
        raise BadInputError(
            f"clip-hba {command} works in one process\n  found:    {size} processes, started by torchrun\n"
            "  expected: one, or one of the commands train, resume and fork\n  start it without torchrun"
        )


def refuse_several(config: Config) -> None:
    """Return if this process may begin the run of a configuration, with the others that were started with it.

    Raises:
        BadInputError: the run's bits would depend on how many processes there are, or this is not the first.
    """
    launch = launched()
    if launch.size > 1 and not config.is_portable():
        raise BadInputError(
            "native arithmetic cannot share a batch among processes: its sums depend on how it is split,\n"
            "so the run would have other bits than in one process\n"
            f"  found:    {launch.size} processes, arithmetic: {config.arithmetic}\n"
            "  expected: 1 process, or arithmetic: portable\n"
            "  start it without torchrun, or start a new run with --set arithmetic=portable"
        )
    if launch.rank > 0:
        raise BadInputError(
            "only the first of several processes begins a run\n"
            f"  found:    process {launch.rank} of {launch.size}, counted from 0\n"
            "  expected: process 0, which the others follow\n"
            "  use `clip-hba train`, or in a script: sys.exit(clip_hba_behavior.cli.exit_code_of(main))"
        )
