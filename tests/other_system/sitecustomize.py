"""Makes a Python on Linux do without what Windows and macOS lack, once its directory is on PYTHONPATH.

It is no Windows: only what this package could stumble over is as there. Names are gone, an open file cannot be
renamed or removed, a directory cannot be opened, and rename refuses to replace. Files that the package opens must
say that they are binary, or which encoding and line ends they have.
"""

import builtins
import fcntl
import io
import multiprocessing
import multiprocessing.context
import os
import platform
import shutil
import signal
import struct
import subprocess  # before msvcrt is there, by which it knows Windows
import sys
import time
import types
from pathlib import Path
from typing import Any

PACKAGE = f"{os.sep}clip_hba_behavior{os.sep}"
O_BINARY = 0o100000  # here it is O_LARGEFILE, and changes nothing

_open, _os_open, _stat, _lstat, _readlink = io.open, os.open, os.stat, os.lstat, os.readlink
_rename, _replace, _unlink, _listdir = os.rename, os.replace, os.unlink, os.listdir
_utime, _kill, _statvfs, _processor = os.utime, os.kill, os.statvfs, platform.processor


def is_from_the_package() -> bool:
    """Whether a call comes from the package, by way of the standard library or not."""
    frame, near = sys._getframe(2), 0
    while frame is not None and near < 5:
        if PACKAGE in frame.f_code.co_filename:
            return True
        frame, near = frame.f_back, near + 1
    return False


def refuse_proc(path: Any) -> None:
    if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", os.fsdecode(path))


def refuse_open_files(*paths: Any) -> None:
    """What Windows says of a file that this process has open, or mapped."""
    descriptors = [f"/proc/self/fd/{each}" for each in _listdir("/proc/self/fd")]
    opened = set()
    for each in descriptors:
        try:
            opened.add(_readlink(each))
        except OSError:
            continue
    with _open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        opened |= {line.rstrip("\n").split(maxsplit=5)[-1] for line in file}
    for path in paths:
        if str(Path(os.fsdecode(path)).absolute()) in opened:
            raise PermissionError(13, "The process cannot access the file", os.fsdecode(path))


def open_file(file: Any, mode: str = "r", *others: Any, **named: Any) -> Any:
    refuse_proc(file)
    if is_from_the_package() and "b" not in mode:
        encoding = named.get("encoding") or (others[1] if len(others) > 1 else None)
        assert encoding not in (None, "locale"), f"{file}: opened as text without an encoding"
        newline = named.get("newline") or (others[3] if len(others) > 3 else None)
        assert mode == "r" or newline == "\n", f"{file}: written as text with the system's line ends"
    return _open(file, mode, *others, **named)


def os_open(path: Any, flags: int, *others: Any, **named: Any) -> int:
    refuse_proc(path)
    if Path(os.fsdecode(path)).is_dir():
        raise PermissionError(13, "Permission denied", os.fsdecode(path))
    assert flags & O_BINARY or path == os.devnull or not is_from_the_package(), f"{path}: opened without O_BINARY"
    return _os_open(path, flags, *others, **named)


def stat(path: Any, *others: Any, **named: Any) -> os.stat_result:
    refuse_proc(path)
    return _stat(path, *others, **named)


def lstat(path: Any, *others: Any, **named: Any) -> os.stat_result:
    refuse_proc(path)
    return _lstat(path, *others, **named)


def readlink(path: Any, *others: Any, **named: Any) -> str:
    refuse_proc(path)
    return _readlink(path, *others, **named)


def rename(source: Any, target: Any, **named: Any) -> None:
    refuse_open_files(source)
    if os.path.lexists(target):
        raise FileExistsError(17, "File exists", os.fsdecode(target))
    _rename(source, target, **named)


def replace(source: Any, target: Any, **named: Any) -> None:
    refuse_open_files(source, target)
    _replace(source, target, **named)


def unlink(path: Any, **named: Any) -> None:
    refuse_open_files(path)
    _unlink(path, **named)


def utime(path: Any, *others: Any, **named: Any) -> None:
    if isinstance(path, int):
        raise TypeError("utime: path should be string, bytes or os.PathLike, not int")
    _utime(path, *others, **named)


def kill(process: int, number: int) -> None:
    assert not is_from_the_package(), "os.kill ends a process on Windows, whatever the signal"
    _kill(process, number)


_register_at_fork = os.register_at_fork


def attribute_of_os(name: str) -> Any:
    """Let torch, which is built for Linux, have what it calls there."""
    if name == "register_at_fork" and PACKAGE not in sys._getframe(1).f_code.co_filename:
        return _register_at_fork
    raise AttributeError(f"module 'os' has no attribute {name!r}")


def locking(descriptor: int, mode: int, num_bytes: int) -> None:
    """Lock bytes from where the file stands, as `msvcrt.locking` does; by Linux' locks of open files."""
    at = os.lseek(descriptor, 0, os.SEEK_CUR)
    kind = fcntl.F_UNLCK if mode == msvcrt.LK_UNLCK else fcntl.F_WRLCK
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, at, num_bytes, 0))
    except BlockingIOError:
        raise PermissionError(13, "Permission denied") from None


class Missing:
    """Finds nothing where a module would be that the other system lacks."""

    names = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "multiprocessing.forkserver")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


msvcrt: Any = types.ModuleType("msvcrt")
msvcrt.LK_UNLCK, msvcrt.LK_LOCK, msvcrt.LK_NBLCK, msvcrt.locking = 0, 1, 2, locking
if not os.environ.get("WITHOUT_ANY_LOCKS"):
    sys.modules["msvcrt"] = msvcrt
sys.meta_path.insert(0, Missing())
for name in Missing.names:
    sys.modules.pop(name, None)

builtins.open = io.open = open_file
for function in (stat, lstat, readlink, rename, replace, unlink, utime, kill):
    setattr(os, function.__name__, function)
os.__getattr__ = attribute_of_os  # type: ignore[attr-defined]
os.open, os.remove, os.O_BINARY = os_open, unlink, O_BINARY
os.supports_fd = os.supports_fd - {_utime}
for name in (
    *("sched_getaffinity", "link", "posix_fallocate", "pidfd_open", "statvfs", "getuid", "geteuid", "fchmod"),
    *("pread", "pwrite", "fork", "forkpty", "register_at_fork", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK"),
    *("O_CLOEXEC", "O_NOCTTY", "O_TMPFILE", "mkfifo", "killpg", "setsid"),
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "pthread_sigmask", "pthread_kill"):
    delattr(signal, name)
for name in ("clock_gettime", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC"):
    delattr(time, name)

subprocess.Popen.kill = subprocess.Popen.terminate  # type: ignore[method-assign]
platform.processor = lambda: "another system's name of it"


def disk_usage(path: Any) -> Any:
    found = _statvfs(path)
    return types.SimpleNamespace(free=found.f_bavail * found.f_frsize)


shutil.disk_usage = disk_usage
shutil._use_fd_functions = False

import tempfile  # noqa: E402  # with O_BINARY, as there

tempfile.TemporaryFile = tempfile.NamedTemporaryFile

contexts = multiprocessing.context._concrete_contexts
for name in ("fork", "forkserver"):
    del contexts[name]
multiprocessing.context.DefaultContext.get_all_start_methods = lambda self: ["spawn"]  # type: ignore[method-assign]
_default = multiprocessing.context.DefaultContext(contexts["spawn"])
for name in dir(_default):
    if not name.startswith("_") and name in vars(multiprocessing):
        setattr(multiprocessing, name, getattr(_default, name))
multiprocessing.context._default_context = _default
assert Path(__file__).exists()
