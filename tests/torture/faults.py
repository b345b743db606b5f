"""Watch every call with which a process writes to the disk, and let one of them kill it, or fail.

To be installed in a process of its own: it replaces functions of `os`, `io` and NumPy for good. Each
call is noted in a trace before and after it is made, so the trace tells where a process died.
"""

import errno
import io
import os
import re
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

import fresh_process

# What a path belongs to; the first that matches. A temporary file's name holds that of the file to be.
_PLACES = {
    name: re.compile(pattern)
    for name, pattern in {
        "baseline's checkpoint": r"/baseline/dora_params",
        "step checkpoint": r"/step_checkpoints|_step\d+\.pth",
        "checkpoint": r"/dora_params$|_dora_params\.pth",
        "ledger": r"steps\.jsonl",
        "CSV": r"training_res\.csv",
        "best.json": r"best\.json",
        "configuration": r"config\.yaml|environment\.json",
        "lock": r"run\.lock",
        "table": r"/\.?sweep(\.yaml|\.csv|\.parquet|_effects\.csv|_columns\.json)",
        "finished": r"/finished(/|$)",
        "forks.txt": r"forks\.txt",
        "feature cache": r"features\.bin|index\.json|key\.json|filling\.jsonl|fill\.lock",
    }.items()
}
# Of each call, which argument names the file: a path or a descriptor.
_CALLS = {
    "fsync": 0,
    "link": 1,
    "rename": 1,
    "replace": 1,
    "unlink": 0,
    "truncate": 0,
    "ftruncate": 0,
    "posix_fallocate": 0,
    "pwrite": 0,
    "utime": 0,
    "chmod": 0,
    "mkdir": 0,
    "rmdir": 0,
}
# before any is replaced
_open, _write_to_descriptor, _stat_of, _readlink = os.open, os.write, os.fstat, os.readlink


@dataclass(frozen=True)
class Fault:
    """What happens at one of the calls.

    Attributes:
        number: which one, from 1, of those that match.
        call: its name, such as fsync or write; any if empty.
        place: what it writes, such as ledger; any if empty.
        when: before the call, after it, or in the middle: half of the bytes written.
        error: the call fails with this error number; 0 kills the process.
        lasting: every later call that matches fails too.
        target: whom it kills: the process that makes the call, the command's own, or its whole group.
        once: a file to be made by the first process of several that strikes; the others let the call pass.
    """

    number: int
    call: str = ""
    place: str = ""
    when: Literal["before", "half", "after"] = "before"
    error: int = 0
    lasting: bool = False
    target: Literal["caller", "command", "group"] = "caller"
    once: Path | None = None


def watched_clip_hba(
    arguments: list[str],
    trace: str,
    fault: Fault | None = None,
    defect: Callable[[], None] | None = None,
    room: int | None = None,
    wait_for_tracer: bool = False,
    has_workers: bool = False,
) -> None:
    """Run a `clip-hba` command line as this process, watched.

    Args:
        arguments: of the command line.
        trace: where to note what happens.
        fault: what is to happen at one of the calls.
        defect: called first: puts a defect into the program.
        room: so many bytes can be written, then the disk is full.
        wait_for_tracer: do not begin before strace holds this process.
        has_workers: fork the server of the command's workers in advance, so that they are watched too.
    """
    from clip_hba_behavior.run import life
    from clip_hba_behavior.training.trainer import Trainer

    watch = _Watch(trace, fault, room)
    for owner, name, phase in (
        (life, "build_trainer", "reading the inputs"),
        (life, "train_model", "resuming the run"),
        (Trainer, "begin", "in the first evaluation"),
        (Trainer, "_step", "in a step"),
        (Trainer, "finish_epoch", "in an evaluation"),
    ):
        watch.name_phase(owner, name, phase)
    watch.install()
    if defect is not None:
        defect()
    if has_workers:
        fresh_process.fork_a_server_in_advance()
    while wait_for_tracer and "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        time.sleep(0.001)
    fresh_process.clip_hba(arguments)


class _Watch:
    def __init__(self, trace: str, fault: Fault | None, room: int | None) -> None:
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._fault = fault
        self._left = fault.number if fault else 0
        self._command = os.getpid()  # another than the caller's where workers were forked since
        self._room = room
        self._place = ""
        self._synced: dict[str, int] = {}

    def install(self) -> None:
        for name, position in _CALLS.items():
            setattr(os, name, self._watched(name, getattr(os, name), position))
        real_open, real_io_open, real_flush = os.open, io.open, np.memmap.flush

        def open_descriptor(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if not flags & os.O_CREAT:
                return real_open(path, flags, *rest, **named)
            return self._around("create", path, lambda: real_open(path, flags, *rest, **named))

        def open_file(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if _place_of(_path_of(file)) is None or not set(mode) & set("wax+"):
                return real_io_open(file, mode, *rest, **named)
            path = _path_of(file)
            if not isinstance(file, int) and not os.path.lexists(path):
                self._note("synced", "0", path)
            opened = self._around("open", path, lambda: real_io_open(file, mode, *rest, **named))
            return _WatchedFile(opened, path, self)

        def flush(mapped: Any) -> None:
            # what the disk holds if the machine stops before all pages are written back
            def half() -> None:
                mapped.reshape(-1)[mapped.size // 2 :] = 0

            self._around("msync", mapped.filename, lambda: real_flush(mapped), half)

        os.open, io.open, np.memmap.flush = open_descriptor, open_file, flush

    def name_phase(self, owner: Any, name: str, phase: str) -> None:
        real = getattr(owner, name)

        def named(*arguments: Any, **keywords: Any) -> Any:
            self._note("phase", phase)
            return real(*arguments, **keywords)

        setattr(owner, name, named)

    def write(self, file: Any, path: str, data: Any) -> Any:
        def half() -> None:
            file.write(data[: len(data) // 2])
            file.flush()

        def real() -> Any:
            if self._room is None:
                return file.write(data)
            fits, self._room = self._room, max(0, self._room - len(data))
            if len(data) <= fits:
                return file.write(data)
            file.write(data[:fits])
            file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        return self._around("write", path, real, half)

    def _watched(self, name: str, real: Callable[..., Any], position: int) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            return self._around(name, arguments[position], lambda: real(*arguments, **keywords), None, arguments)

        return call

    def _around(
        self,
        call: str,
        file: Any,
        real: Callable[[], Any],
        half: Callable[[], None] | None = None,
        arguments: tuple[Any, ...] = (),
    ) -> Any:
        path = _path_of(file)
        place = _place_of(path)
        if place is None and call == "fsync":  # the run's directory, after a name in it changed
            place = self._place
        if not place:
            return real()
        self._place = place
        self._note("call", call, place)
        fault = self._strikes_at(call, place)
        if fault and fault.when != "after":
            if fault.when == "half" and half is not None:
                half()
            self._strike(fault, path)
        result = real()
        self._note_sync(call, path, arguments)
        if fault:
            self._strike(fault, path)
        self._note("done")
        return result

    def _strikes_at(self, call: str, place: str) -> Fault | None:
        fault = self._fault
        if fault is None or fault.call not in ("", call) or fault.place not in ("", place):
            return None
        self._left -= 1
        is_due = self._left == 0 or (self._left < 0 and fault.lasting)
        return fault if is_due and self._is_first(fault.once, place) else None

    def _is_first(self, once: Path | None, place: str) -> bool:
        if once is None:
            return True
        try:
            descriptor = _open(once, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        _write_to_descriptor(descriptor, place.encode())
        os.close(descriptor)
        return True

    def _strike(self, fault: Fault, path: str) -> None:
        if fault.error:
            raise OSError(fault.error, os.strerror(fault.error), path)
        if fault.target == "group":
            os.killpg(0, signal.SIGKILL)
        os.kill(self._command if fault.target == "command" else os.getpid(), signal.SIGKILL)

    def _note_sync(self, call: str, path: str, arguments: tuple[Any, ...]) -> None:
        if call == "fsync":
            status = _stat_of(arguments[0])
            if stat.S_ISDIR(status.st_mode):
                self._note("directory synced", path)
            else:
                self._synced[path] = status.st_size
                self._note("synced", str(status.st_size), path)
        elif call == "link":
            self._note("linked", path)
        elif call in ("rename", "replace") and (size := self._synced.get(_path_of(arguments[0]))) is not None:
            self._note("synced", str(size), path)

    def _note(self, *words: str) -> None:
        _write_to_descriptor(self._trace, ("\t".join(words) + "\n").encode())


class _WatchedFile:
    """A file open for writing, whose writes are watched."""

    def __init__(self, file: Any, path: str, watch: _Watch) -> None:
        self._file, self._path, self._watch = file, path, watch

    def write(self, data: Any) -> Any:
        return self._watch.write(self._file, self._path, data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __enter__(self) -> "_WatchedFile":
        return self

    def __exit__(self, *raised: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _path_of(file: Any) -> str:
    if isinstance(file, int):
        return _readlink(f"/proc/self/fd/{file}")
    return os.fspath(file)


def _place_of(path: str) -> str | None:
    return next((name for name, pattern in _PLACES.items() if pattern.search(path)), None)
