"""Figures for a paper, drawn by a second process while this one goes on: half of a report's time is theirs."""

import gc
import pickle
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from clip_hba_behavior.report.figure import Figure
from clip_hba_behavior.reproducibility.state.process import usable_cores

Files = dict[str, bytes]
_WORTH_AN_IMPORT = 4  # figures that this process draws while it imports matplotlib and warms it up


class Drawer:
    """Draws each figure once, as soon as it is there.

    Called with a figure, it begins to draw it, and returns the figure. A drawing is a function of its figure, so
    it is the same in whichever process it was made.
    """

    def __init__(self, worker: "subprocess.Popen[bytes] | None" = None) -> None:
        """Draw in another process, or without one in this process."""
        self._worker = worker
        self._thread = ThreadPoolExecutor(1)
        self._begun: dict[str, Future[Files | None]] = {}

    def __call__(self, figure: Figure) -> Figure:
        """Begin to draw a figure, unless one of its name was begun before."""
        if self._worker is not None and figure.name not in self._begun:
            self._begun[figure.name] = self._thread.submit(self._ask, figure)
        return figure

    def files(self, figure: Figure) -> Files:
        """Return a figure's files, as `paper_files` does; drawn here if the other process has much to do."""
        begun = self._begun.get(figure.name)
        if begun is None:
            return _draw(figure)
        if self._num_waiting() > _WORTH_AN_IMPORT and begun.cancel():
            return _draw(figure)
        made = begun.result()
        return _draw(figure) if made is None else made

    def _num_waiting(self) -> int:
        return sum(not each.running() and not each.done() for each in self._begun.values())

    def close(self) -> None:
        """Let the other process end."""
        self._thread.shutdown(cancel_futures=True)
        if self._worker is not None:
            self._worker.communicate()

    def _ask(self, figure: Figure) -> Files | None:
        """Return a figure's files; None if the other process was killed: two threads must not draw at once."""
        assert self._worker is not None
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        try:
            pickle.dump(figure, self._worker.stdin)
            self._worker.stdin.flush()
            files: Files = pickle.load(self._worker.stdout)  # of a process of our own
            return files
        except (OSError, EOFError, pickle.UnpicklingError):
            return None


@contextmanager
def drawing() -> Iterator[Drawer]:
    """Give a drawer that has a process of its own where there is a core for it."""
    # with the modules of this process: `-m` would prefer files of the directory in which the user is
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import work; work()"
    command = [sys.executable, "-c", program]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    # a session of its own: Ctrl-C is for this process, whose end is the worker's too
    worker = subprocess.Popen(command, **pipes, start_new_session=True) if usable_cores() > 1 else None
    drawer = Drawer(worker)
    try:
        yield drawer
    finally:
        drawer.close()


def _draw(figure: Figure) -> Files:
    from clip_hba_behavior.report.paper import paper_files

    return paper_files(figure)


def work() -> None:
    """Draw what comes on standard input until it ends."""
    gc.disable()  # in between it would look through all of matplotlib again and again
    from clip_hba_behavior.report.paper import paper_files  # now, before the first figure is there

    gc.freeze()
    received, sent = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing but figures goes back
    while True:
        try:
            figure = pickle.load(received)
        except EOFError:
            return
        pickle.dump(paper_files(figure), sent)
        sent.flush()
        gc.collect()
