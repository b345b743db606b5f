"""Processes that share a command's work: forked with their imports done, and never left behind."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from clip_hba_behavior.reproducibility.record.signals import SIGNALS
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.process import blocked, keep_socket_paths_short
from clip_hba_behavior.run.log import silent

SECONDS_BETWEEN_LOOKS = 0.5
# what training imports only where it needs it: each worker would
_SLOW_IMPORTS = ("scipy.io", "scipy.special", "torch._inductor.config")


def refuse_no_fork_server(what: str) -> None:
    """Return if this system can fork workers from a process that has imported what they need.

    Args:
        what: needs it; the message begins with it.

    Raises:
        BadInputError: it cannot, as Windows.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        raise BadInputError(f"{what} needs Linux or macOS: this system cannot fork its workers")


@contextmanager
def workers(
    number: int, module: str, begin: Callable[..., None], arguments: Sequence[Any] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Give a pool of processes; where the work within ends by an error or a signal, they are asked to leave.

    They print nothing, and get no signal of the terminal's: who waits for them answers it. SIGTERM asks one to
    leave. They end with this process, even by SIGKILL.

    Args:
        number: of processes.
        module: what they need, imported once, in the process that they are forked from.
        begin: called in each, once.
        arguments: its arguments.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, *_SLOW_IMPORTS])
    _start_fork_server()
    with ProcessPoolExecutor(number, context, _begin, (begin, arguments)) as pool:
        try:
            yield pool
        except BaseException:
            _end_workers(pool)
            raise


def _start_fork_server() -> None:
    """Start the process that the workers are forked from, deaf to what a terminal or a job sends to all.

    If it died of a signal, no worker could be waited for any more, and none would save.
    """
    from multiprocessing import forkserver, resource_tracker

    keep_socket_paths_short()
    with blocked(SIGNALS):  # its own, which it ends: it unblocks SIGTERM
        resource_tracker.ensure_running()
    with blocked(SIGNALS):
        forkserver.ensure_running()


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """Let every worker save and leave. Cancelling is not enough: the pool has handed out work in advance."""
    processes = list((pool._processes or {}).values())
    while alive := [each for each in processes if each.is_alive()]:
        for each in alive:
            each.terminate()
        alive[0].join(SECONDS_BETWEEN_LOOKS)
    # One that ended in the midst of sending a result left the pool reading; now it learns that nothing comes.
    pool._result_queue._writer.close()  # type: ignore[attr-defined]
    pool.shutdown(cancel_futures=True)


def check_workers(pool: ProcessPoolExecutor) -> None:
    """Return if no worker has ended. To be asked again and again while results are waited for.

    The pool finds out by itself, but for one that was killed in the midst of sending a result: it reads on.

    Raises:
        BrokenProcessPool: one has.
    """
    if not all(each.is_alive() for each in (pool._processes or {}).values()):
        raise BrokenProcessPool("a worker has ended")


def _begin(begin: Callable[..., None], arguments: Sequence[Any]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # the terminal's reach the parent, which tells us
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    silent()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    begin(*arguments)


def _end_with_the_parent() -> None:
    """End when the parent does, even by SIGKILL: else what it works on would stay held by an orphan."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
