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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
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
        _answering.num_contexts -= 1
        if _answering.num_contexts == 0:
            before, _answering = _answering.before, None
            for number, handler in before.items():
                signal.signal(number, handler)


def _answer_with(request: StopRequest, second: Second) -> dict[signal.Signals, Any]:
    """Take the signals; return the handlers as they were."""
    process = os.getpid()
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a loader's worker process: it lives until its parent has saved
            return
        if request.name is None:
            request.name = signal.Signals(number).name
            # print could be interrupted within itself
            also = "; a second signal leaves at once" if second != "changes nothing" else ""
            with suppress(OSError):  # the terminal may be gone: SIGHUP says just that
                os.write(2, f"{request.name}: saving after this step{also}\n".encode())
        elif second == "leaves":
            os._exit(INTERRUPTED)
        elif second == "is not ours":
            handler = before[signal.Signals(number)]
            if callable(handler):
                handler(number, frame)
            elif handler == signal.SIG_DFL:
                os._exit(INTERRUPTED)

    # under nohup a process is to outlive its terminal
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before |= {number: signal.signal(number, handle) for number in SIGNALS if number not in ignored}
    return before
