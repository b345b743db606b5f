"""One run in several processes: the first lives its life, the others train along with it and write nothing.

The first process sends the others what to train, and in the end its exit code, with which they end too. Where it
fails within a step, they see that it is gone.
"""

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

import torch

from clip_hba_behavior.config import make_config
from clip_hba_behavior.reproducibility.record.protocol import EpochDone
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.record.signals import INTERRUPTED, StopRequest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.tree import to_bytes
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.launch import Launch, launched
from clip_hba_behavior.run.log import session, silent
from clip_hba_behavior.training.advance import advance, is_at_end
from clip_hba_behavior.training.processes import (
    ALONE,
    PATIENCE,
    LostProcessError,
    Processes,
    UnequalProcessesError,
)
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import NonFiniteLossError, Trainer

_STOPPED = 1
# Where nobody else was started, as in a shell that has torchrun's variables, a command must end all the same.
_PATIENCE_AT_THE_END = timedelta(seconds=60)


@dataclass(frozen=True)
class Work:
    """What the first process hands out.

    Attributes:
        config: the run's, resolved by the first process.
        state: to train on from, as `torch.save` writes its fields.
        stop_early: whether early stopping may end the run.
        environment: the first process's, of which data and sources must be the same.
    """

    config: dict[str, Any]
    state: bytes
    stop_early: bool
    environment: dict[str, Any]


_joined: Processes | None = None


def join(asked: StopRequest, patience: timedelta = PATIENCE) -> Processes:
    """Return the processes that were started with this one; wait until all are there.

    Args:
        asked: whether this process was asked to stop.
        patience: how long to wait for them.

    Raises:
        LostProcessError: they cannot be reached.
    """
    global _joined
    launch = launched()
    if launch.size == 1:
        return ALONE
    if _joined is None:
        _joined = Processes.join(launch.rank, launch.size, launch.local_size, asked, patience)
    _joined.asked = asked
    return _joined


def hand_out(processes: Processes, trainer: Trainer, stop_early: bool, environment: Mapping[str, Any]) -> None:
    """Let the other processes train along from where the trainer is.

    Raises:
        LostProcessError: one of them has ended.
    """
    if processes.size == 1:
        return
    state = to_bytes(trainer.snapshot().as_dict())
    processes.tell(Work(trainer.config.model_dump(), state, stop_early, _comparable(environment)))
    processes.are_listening = False
    trainer.share(processes)


def tell_end(code: int) -> None:
    """Let the other processes end with the first one's exit code, unless they wait for it within a step."""
    with suppress(LostProcessError):  # they have ended
        processes = join(StopRequest(), _PATIENCE_AT_THE_END)
        if processes.are_listening:
            processes.tell(code)


def follow() -> NoReturn:
    """Do as the first process says until it ends.

    Raises:
        SystemExit: the first process's exit code, or 1 or 75 where it is gone.
        BadInputError: this process cannot do its part.
    """
    silent()
    processes = join(StopRequest())  # before signals are answered: one may end this process while it waits
    with session() as here:
        processes.asked = here.stop
        try:
            while isinstance(heard := processes.hear(), Work):
                with suppress(NonFiniteLossError, UnequalProcessesError):  # of which the first process tells
                    _train_along(heard, processes, here)
        except LostProcessError:
            raise SystemExit(_STOPPED if here.stop.name is None else INTERRUPTED) from None
        raise SystemExit(heard)


def _train_along(work: Work, processes: Processes, here: Session) -> None:
    launch = launched()
    config = make_config(work.config | {"device": _device_beside(work.config["device"], launch)})
    # A signal is answered together, once all train: so building is not left on one.
    trainer, environment = build_trainer(config, Session(here.logger))
    for key, value in _comparable(environment).items():
        if value != work.environment[key]:
            raise BadInputError(
                f"process {launch.rank} of {launch.size} cannot train along: its {key} are others\n"
                f"  in process 0: {work.environment[key]}\n  here:         {value}\n"
                "  let all processes read the same files and use one version of this package"
            )
    trainer.restore(TrainingState(**torch.load(io.BytesIO(work.state), weights_only=True)))
    trainer.share(processes)
    for event in advance(trainer, config.epochs, stop_early=work.stop_early):
        is_last = isinstance(event, EpochDone) and is_at_end(trainer, config.epochs, work.stop_early)
        if processes.agreed.name is not None and not is_last:
            return


def _comparable(environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same in all processes of a run."""
    return {**environment["digests"], "sources of this package": environment["package"]["sources"]}


def _device_beside(first: str, launch: Launch) -> str:
    """Return this process's device: the processes of a machine take its GPUs in order from the first one's."""
    kind, _, index = first.partition(":")
    return first if kind == "cpu" else f"{kind}:{int(index or 0) + launch.local_rank}"
