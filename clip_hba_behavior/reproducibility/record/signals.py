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


@contextmanager
def stopping_on_signals() -> Iterator[StopRequest]:
    """Turn the first signal into a request, which the run answers after its step; a second leaves at once.

    Outside the main thread Python cannot take signals; then nothing is changed.
    """
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.name is not None:
            os._exit(INTERRUPTED)
        request.name = signal.Signals(number).name
        # print could be interrupted within itself
        os.write(2, f"{request.name}: saving after this step; a second signal leaves at once\n".encode())

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
