"""Signals that ask a run to save and leave."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

from clip_hba_behavior.reproducibility.state.errors import InterruptedRunError
from clip_hba_behavior.reproducibility.state.process import signals

SIGNALS = signals("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGBREAK")  # BREAK is Windows'
INTERRUPTED = 75


class StopRequest:
    """Whether a signal has asked the run to stop.

    Attributes:
        name: the signal's name; None while none has come.
    """

    name: str | None = None

    def check(self) -> None:
        """Leave where there is nothing to save yet.

        Raises:
            InterruptedRunError: a signal has come.
        """
        if self.name is not None:
            raise InterruptedRunError(f"stopped by {self.name}; there was nothing to save yet")


Second = Literal["leaves", "changes nothing", "is not ours"]


@dataclass
class _Answering:
    """That this process answers signals.

    Attributes:
        request: the one request of the process.
        num_contexts: which share it; the last one to end puts the handlers back.
        before: the handlers as they were.
    """

    request: StopRequest
    num_contexts: int
    before: dict[signal.Signals, Any]


_answering: _Answering | None = None


@contextmanager
def stopping_on_signals(second: Second = "leaves") -> Iterator[StopRequest]:
    """Turn the first signal into a request, which the run answers after its step.

    A process has one request: a context within another gives the outer one's. So whoever does several runs
    learns of a signal that came when one of them was at its end and had no need to answer.
    Outside the main thread Python cannot take signals; then nothing is changed.

    Args:
        second: a second signal `leaves`, which ends the process at once; `changes nothing`; or `is not ours`: then
            whoever took signals before is given it.
    """
    global _answering
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    if _answering is None:
        request = StopRequest()
        _answering = _Answering(request, 0, _answer_with(request, second))
    _answering.num_contexts += 1
    try:
        yield _answering.request
    finally:
        _end_context()


def _end_context() -> None:
    """Leave a context; after the last one the handlers are put back, where this thread may do that."""
    global _answering
    if _answering is None:  # in a forked child
        return
    _answering.num_contexts -= 1
    if _answering.num_contexts == 0:
        before, _answering = _answering.before, None
        # elsewhere, such as where another thread closes a run, they stay and hand on what comes
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _end_in_child() -> None:
    """Let a forked child be terminated by SIGTERM. It goes on ignoring what a terminal sends to all processes."""
    global _answering
    if _answering is not None:
        before, _answering = _answering.before[signal.SIGTERM], None
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_in_child)


def _hand_on(number: int, frame: FrameType | None, handler: Any) -> None:
    """Do with a signal what was done with it before this module took it."""
    if callable(handler):
        handler(number, frame)
    elif handler != signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _answer_with(request: StopRequest, second: Second) -> dict[signal.Signals, Any]:
    """Take the signals; return the handlers as they were."""
    process = os.getpid()
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a loader's worker process: it lives until its parent has saved
            return
        if _answering is None or _answering.request is not request:  # the runs that it was for have ended
            _hand_on(number, frame, before[signal.Signals(number)])
        elif request.name is None:
            request.name = signal.Signals(number).name
            # print could be interrupted within itself
            also = "; a second signal leaves at once" if second != "changes nothing" else ""
            with suppress(OSError):  # the terminal may be gone: SIGHUP says just that
                os.write(2, f"{request.name}: saving after this step{also}\n".encode())
        elif second == "leaves":
            os._exit(INTERRUPTED)
        elif second == "is not ours":
            if before[signal.Signals(number)] == signal.SIG_DFL:
                os._exit(INTERRUPTED)
            _hand_on(number, frame, before[signal.Signals(number)])

    # under nohup a process is to outlive its terminal
    ignored = {each for each in signals("SIGHUP") if signal.getsignal(each) is signal.SIG_IGN}
    before |= {number: signal.signal(number, handle) for number in SIGNALS if number not in ignored}
    return before
