"""Epochs of a run trained again by several processes at once; each begins with a recorded state, so none waits."""

import io
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.reproducibility.record.epoch import Epoch
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.run.log import logging_to
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.run.workers import SECONDS_BETWEEN_LOOKS, check_workers, workers
from clip_hba_behavior.training.trainer import NonFiniteLossError
from clip_hba_behavior.verification.files import RunFiles
from clip_hba_behavior.verification.replays import NoStartError, ReplayHistory, recorded_config

Train = Callable[[int], Epoch]
_GROUPS_AHEAD = 4  # for each process: what was trained again waits in memory until it is compared


@dataclass(frozen=True)
class Replayed:
    """What is trained again, as a worker is told it.

    Attributes:
        path: the run.
        given: keys of a configuration: where data and backbone are now.
        states: the epochs whose states there are, if others were left out on purpose; see `RunFiles`.
        steps: only so many of each epoch.
        derive_to: derive what the seed implies up to this epoch; None where no file needs it.
    """

    path: Path
    given: Mapping[str, Any]
    states: Collection[int] | None
    steps: int | None
    derive_to: int | None


@contextmanager
def trained_by(
    processes: int, what: Replayed, files: RunFiles, epochs: Sequence[int], session: Session
) -> Iterator[Train]:
    """Give a function that returns epochs as `ReplayHistory.epoch` does; it must be asked in their order.

    Args:
        processes: how many train.
        what: the run.
        files: the same run's.
        epochs: those that may be asked for, ascending.
        session: told of the progress, and asked whether to stop.
    """
    groups = deque(_groups(files, epochs))
    with workers(min(processes, len(groups)), __name__, _begin, (what,)) as pool:
        ahead: deque[Future[bytes]] = deque()
        found: dict[int, Epoch | Exception] = {}

        def train(number: int) -> Epoch:
            try:
                while number not in found:
                    while groups and len(ahead) < _GROUPS_AHEAD * processes:
                        ahead.append(pool.submit(_train, groups.popleft()))
                    found.clear()  # of epochs that nobody asked for
                    sent = io.BytesIO(_result(ahead.popleft(), pool, session))
                    found.update(torch.load(sent, weights_only=False))  # our own process's
            except (BrokenProcessPool, EOFError, ConnectionError):  # a process, or the server of all, was killed
                raise StoppedError(
                    "a process that trained epochs again was ended by the system; is there enough memory?\n"
                    "  give fewer: --processes"
                ) from None
            epoch = found.pop(number)
            session.report("epochs replayed", epochs.index(number) + 1, len(epochs))
            if isinstance(epoch, Exception):
                raise epoch
            return epoch

        yield train
        for future in ahead:  # of epochs that nobody asked for, such as those whose files are damaged
            future.cancel()


def _result(future: Future[bytes], pool: ProcessPoolExecutor, session: Session) -> bytes:
    while True:
        session.stop.check()
        if wait([future], SECONDS_BETWEEN_LOOKS).done:
            return future.result()
        check_workers(pool)


def _groups(files: RunFiles, epochs: Sequence[int]) -> list[list[int]]:
    """Bring epochs together of which each but the first begins with a state that only a replay reaches."""
    groups: list[list[int]] = []
    for epoch in epochs:
        if groups and groups[-1][-1] == epoch - 1 and files.is_left_out(epoch - 1):
            groups[-1].append(epoch)
        else:
            groups.append([epoch])
    return groups


# --- in a worker ------------------------------------------------------------------------------------

_what: Replayed | None = None
_replays: ReplayHistory | None = None


def _begin(what: Replayed) -> None:
    global _what
    _what = what


def _train(epochs: Sequence[int]) -> bytes:
    """Train epochs again; return each, or why it could not be, as bytes: tensors would be sent as open files."""
    global _replays
    assert _what is not None  # a worker begins with it
    if _replays is None:
        with logging_to(None) as logger:
            files = RunFiles(_what.path, states=_what.states)
            _replays = ReplayHistory(
                files, Replayer(recorded_config(files, _what.given), Session(logger)), _what.steps
            )
            if _what.derive_to is not None:
                _replays.derive(_what.derive_to)
    found: dict[int, Epoch | Exception] = {}
    for epoch in epochs:
        try:
            found[epoch] = _replays.epoch(epoch)
        except (NoStartError, NonFiniteLossError) as error:
            found[epoch] = error
    sent = io.BytesIO()
    torch.save(found, sent)
    return sent.getvalue()
