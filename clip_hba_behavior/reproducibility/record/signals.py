"""Signals that ask a run to save and leave."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from clip_hba_behavior.reproducibility.state.errors import InterruptedRunError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
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
            raise InterruptedRunError(f"stopped by {self.name} before training went on; nothing is lost")


_current: StopRequest | None = None  # of this process, while it answers signals


@contextmanager
def stopping_on_signals(second_leaves: bool = True) -> Iterator[StopRequest]:
    """Turn the first signal into a request, which the run answers after its step.

    A process has one request: a context within another gives the outer one's. So whoever does several runs
    learns of a signal that came when one of them was at its end and had no need to answer.
    Outside the main thread Python cannot take signals; then nothing is changed.

    Args:
        second_leaves: a second signal ends the process at once; otherwise it changes nothing.
    """
    global _current
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    if _current is not None:
        yield _current
        return
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.name is not None:
            if second_leaves:
                os._exit(INTERRUPTED)
            return
        request.name = signal.Signals(number).name
        # print could be interrupted within itself
        also = "; a second signal leaves at once" if second_leaves else ""
        os.write(2, f"{request.name}: saving after this step{also}\n".encode())

    _current = request
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        _current = None
        for number, handler in before.items():
            signal.signal(number, handler)
