"""Processes that are killed: forks of this one, which has done the slow imports and nothing else."""

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def fork(work: Callable[[], None], output: Path) -> int:
    """Do some work in a process of its own; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        work()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int, seconds: float | None) -> int:
    """Wait for a process, and kill it after some seconds. Returns its exit code, -9 if it was killed."""
    descriptor = os.pidfd_open(process)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(120_000 if seconds is None else seconds * 1000):
        os.kill(process, signal.SIGKILL)
        if seconds is None:
            os.waitpid(process, 0)
            raise TimeoutError(f"process {process} did not end")
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
