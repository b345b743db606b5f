"""Processes that read images, while this one computes: they get no signal, and end when the run does."""

import atexit
import multiprocessing
import os
import threading
import weakref
from collections.abc import Generator, Sequence
from functools import cache
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.data.things import DataError
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.reproducibility.state.process import blocked, ignore, keep_socket_paths_short, signals

# A scheduler sends these to every process of a job; only the main one may act, by saving and stopping.
_SIGNALS_OF_THE_RUN = signals("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")

_open_readers: weakref.WeakSet[Generator[Any, None, None]] = weakref.WeakSet()


def read_in_order(
    images: Dataset[Any], requests: Sequence[Any], num_workers: int, arithmetic: Arithmetic
) -> Generator[Any, None, None]:
    """Yield `images.__getitems__(request)` for each request, in their order.

    What is yielded does not depend on `num_workers`, and no global random generator is drawn from. Closing the
    generator early stops the workers. As always with processes that are not forked, a script that uses workers
    starts its work under `if __name__ == "__main__":`.

    Args:
        images: gives arrays, which travel through a pipe: tensors would need room in /dev/shm, of which
            containers have little. It returns a DataError, whose message the DataLoader would hide in a traceback.
        requests: what `__getitems__` takes.
        num_workers: processes that read; 0 reads in this one.
        arithmetic: that of the pixels.

    Raises:
        DataError: that `__getitems__` returned.
        StoppedError: one of the processes has ended.
    """
    loader: DataLoader[Any] = DataLoader(
        images,
        batch_sampler=requests,
        num_workers=num_workers,
        collate_fn=_unchanged,
        worker_init_fn=_live_and_die_with_the_run,
        # Every loader's iterator draws a base seed: from here, not from the global generator.
        generator=torch.Generator(),
        multiprocessing_context=_context(arithmetic) if num_workers else None,
    )
    found = _items_of(loader, len(requests))
    if num_workers:
        _open_readers.add(found)
    return found


def _items_of(loader: DataLoader[Any], number: int) -> Generator[Any, None, None]:
    if loader.num_workers:
        keep_socket_paths_short()
    if loader.num_workers and _has_fork_server():
        # Its start, which would otherwise come within the next lines, unblocks SIGINT and SIGTERM.
        resource_tracker.ensure_running()
    with blocked(_SIGNALS_OF_THE_RUN):  # children inherit it, and the fork server hands it on
        iterator: Any = iter(loader)
    is_over = threading.Event()
    if loader.num_workers:
        watched = (iterator._workers, iterator._worker_result_queue._writer, is_over)
        threading.Thread(target=_end_all_if_one_does, args=watched, daemon=True).start()
    try:
        for done, item in enumerate(iterator, start=1):
            if done == number:
                is_over.set()
            if isinstance(item, DataError):
                raise item
            yield item
    except RuntimeError as error:
        if loader.num_workers and "exited unexpectedly" in str(error):
            raise StoppedError(
                "a process that reads images was ended by the system or could not start; what was complete stays\n"
                "  is there enough memory? give fewer: num_workers\n"
                '  a script of your own must start its work under `if __name__ == "__main__":`'
            ) from None
        raise
    finally:
        is_over.set()
        # Its end stops the workers: now, not whenever a traceback that holds this frame goes.
        del iterator


def _end_all_if_one_does(workers: Sequence[BaseProcess], writer: Connection, is_over: threading.Event) -> None:
    """End the pipe that workers write to when one is killed: what it was in the midst of sending never ends."""
    sentinels = [each.sentinel for each in workers]
    wait(sentinels)
    if is_over.is_set():
        return
    ended = wait(sentinels, timeout=0)
    for each in workers:
        if each.sentinel not in ended:
            each.kill()
    writer.close()  # the last one, once they are gone


@cache
def _context(arithmetic: Arithmetic) -> multiprocessing.context.BaseContext:
    # A fork of a process with torch's threads can deadlock; the fork server has none. It imports torch once
    # (1.8 s), after which two workers start in 0.03 s, as fast as by fork; by spawn it is 1.2 s each time.
    context = multiprocessing.get_context("forkserver" if _has_fork_server() else "spawn")
    if _has_fork_server():
        # Resizing in portable arithmetic imports scipy.sparse, 0.15 s in each worker.
        preload = ["clip_hba_behavior.data.augmentation", *(["scipy.sparse"] if arithmetic == "portable" else [])]
        context.set_forkserver_preload(preload)
    # At its exit Python waits for workers; an iterator that nobody closed would keep them, and so it, for ever.
    atexit.register(_close_open_readers)
    return context


def _has_fork_server() -> bool:
    return "forkserver" in multiprocessing.get_all_start_methods()


def _close_open_readers() -> None:
    for items in list(_open_readers):
        items.close()


def _live_and_die_with_the_run(_worker: int) -> None:
    # Where someone else started the fork server, its children have inherited no mask.
    ignore(_SIGNALS_OF_THE_RUN)
    # The DataLoader's own watch is for a worker's parent, which is the fork server and outlives a killed run.
    threading.Thread(target=_end_after_the_run, daemon=True).start()


def _end_after_the_run() -> None:
    run = multiprocessing.parent_process()
    if run is not None:
        run.join()
        os._exit(1)


def _unchanged(item: Any) -> Any:
    return item  # __getitems__ made a batch of it already
