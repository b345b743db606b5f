"""A worker that dies in the midst of sending a result, of which the pool then waits for the rest."""

import os
import signal
import sys
import time
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool

import pytest

from clip_hba_behavior.run.workers import check_workers, workers


def begin() -> None:
    pass


def die_while_sending() -> None:
    """Announce a result of 1,000 bytes to the pool, send none of them, and die."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        assert frame.f_back is not None
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), (1000).to_bytes(4, "big"))
    os.kill(os.getpid(), signal.SIGKILL)


def ask_until_it_is_told() -> None:
    with workers(2, __name__, begin) as pool:
        pool.submit(time.sleep, 0)
        future = pool.submit(die_while_sending)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert not wait([future], 0.1).done  # the pool itself does not notice
            check_workers(pool)


@pytest.mark.timeout(120)
def test_the_pool_ends_and_is_told_broken() -> None:
    with pytest.raises(BrokenProcessPool, match="a worker has ended"):
        ask_until_it_is_told()
