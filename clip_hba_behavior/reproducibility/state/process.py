"""What operating systems do differently with processes, and what stands in for it where it is missing.

macOS has no `/proc` and no affinity of a process. Windows also lacks signal masks and half of the signals.
"""

import ctypes
import os
import platform
import random
import shlex
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import util
from pathlib import Path

from clip_hba_behavior.reproducibility.state.system import IS_WINDOWS

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's mallopt
_LONGEST_SOCKET_PATH = 103  # bytes on macOS; Linux has 107


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def keep_freed_memory() -> bool:
    """Keep from now on what is freed for what is allocated next, and do not give it back to the system.

    glibc gives blocks of more than 32 MB back at once. A training step frees such blocks and asks for equal ones a
    moment later, and the system fetches and zeroes them page by page: 13 % of the time of a step.

    Returns:
        Whether this C library can.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # Windows has no such handle, other libraries no such function
        return False
    return bool(set_option(_MMAP_MAX, 0)) and bool(set_option(_TRIM_THRESHOLD, -1))


@cache
def keep_socket_paths_short() -> None:
    """Let multiprocessing keep its sockets in `/tmp` where TMPDIR's path is too long for one.

    To be called before the first process is started: this one and its children keep the directory chosen then.
    """
    socket_path = Path(tempfile.gettempdir(), "pymp-12345678", "listener-12345678")
    if not IS_WINDOWS and len(os.fsencode(socket_path)) > _LONGEST_SOCKET_PATH:
        given, tempfile.tempdir = tempfile.tempdir, "/tmp"
        try:
            util.get_temp_dir()
        finally:
            tempfile.tempdir = given


def this_boot() -> tuple[str, str]:
    """Name the machine since it was switched on, and what its process numbers are counted in.

    Without `/proc`, the machine is named by its network card, or by its name where it has none.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return _network_card() or socket.gethostname(), ""


@cache
def _network_card() -> str | None:
    state = random.getstate()
    try:
        node = uuid.getnode()  # where there is none it draws from the global generator
    finally:
        random.setstate(state)
    return None if node >> 40 & 1 else f"{node:012x}"


def process_start(process: int) -> str | None:
    """Return when a process started, in ticks since boot; None if it has ended, or there is no `/proc`."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # from the third on: the second, a name, may hold anything
    return None if fields[0] in "ZX" else fields[19]


def seconds_since_boot() -> float:
    """Return a clock that nobody sets and that goes on while the machine sleeps."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    # macOS's monotonic() stands still while it sleeps; this clock of its does not. Windows' goes on.
    return time.clock_gettime(time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic()


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """Return those of some signals that this system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


@contextmanager
def blocked(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Let signals come later, for this thread and for the processes that it starts, where a system can."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(numbers: Iterable[signal.Signals]) -> None:
    """Be deaf to signals from now on; to be called in a process's main thread."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        return
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def join_command(words: Iterable[str]) -> str:
    """Return a command to be copied, its words quoted as the system's shells take them."""
    return subprocess.list2cmdline(list(words)) if IS_WINDOWS else shlex.join(words)


@cache
def processor_name() -> str:
    """Return the model of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":  # where platform says `arm` of every one
        asked = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        try:
            return subprocess.run(asked, capture_output=True, encoding="utf-8", check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            pass
    return platform.processor() or platform.machine()
