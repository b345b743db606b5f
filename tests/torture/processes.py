"""Processes that are killed: forks of this one, which has done the slow imports and nothing else."""

import importlib
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import fresh_process

for _each in fresh_process.SLOW_IMPORTS:  # each fork begins with them
    importlib.import_module(_each)


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


def has_ended(process: int, seconds: float) -> bool:
    """Wait for a process of ours, so many seconds at most; its exit code is left to `wait`."""
    descriptor = os.pidfd_open(process)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    ended = bool(poll.poll(seconds * 1000))
    os.close(descriptor)
    return ended


def wait(process: int, seconds: float | None, limit: float = 120) -> int:
    """Wait for a process, and kill it after some seconds. Returns its exit code, -9 if it was killed."""
    if not has_ended(process, limit if seconds is None else seconds):
        os.kill(process, signal.SIGKILL)
        if seconds is None:
            os.waitpid(process, 0)
            raise TimeoutError(f"process {process} did not end")
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def members(session: int) -> dict[int, int]:
    """Return the living processes of a session, each with its parent."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, its_session, *_ = each.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(its_session) == session and state != "Z":
            found[int(each.parent.name)] = int(parent)
    return found


def workers_of(command: int) -> list[int]:
    """Return the workers of a command that leads its session: the children of the server that it started."""
    found = members(command)
    return [each for each, parent in found.items() if found.get(parent) == command]
