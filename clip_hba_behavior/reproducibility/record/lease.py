"""One writer a directory: a lock that the kernel keeps, and on shared file systems a lease with a heartbeat.

`run.lock` names its holder; its modification time is the holder's heartbeat. Where the file system
carries locks to every machine, that alone keeps a second process out. Where it does not, the content
decides, and of several who find a dead holder, the one whose claim file appears first takes over.
A holder of this machine is looked up in `/proc`; where there is none, by its lock.
"""

import errno
import hashlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError, StoppedError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.process import process_start, seconds_since_boot, this_boot
from clip_hba_behavior.reproducibility.state.system import (
    BINARY,
    READ_ONLY,
    lock_file,
    read_at,
    sync_file,
    touch,
    unlock_file,
    write_at,
)

LOCK_NAME = "run.lock"
HEARTBEAT_SECONDS = 30.0
DEAD_AFTER_SECONDS = 300.0


class LeaseLostError(StoppedError):
    """The directory may have another writer by now: nothing more is to be written to it."""


class Lease:
    """A directory held for this process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Prepare a lease on an open lock file; it is not held yet."""
        self.path = path
        self.record = describe_this_process() | {"token": secrets.token_hex(16)}
        # Always as long, so that it replaces another record by one write, with no moment of half a record.
        self._content = json.dumps(self.record).ljust(1000).encode() + b"\n"
        self._descriptor = descriptor
        self._renewed = seconds_since_boot()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="lease heartbeat", daemon=True)

    @classmethod
    def acquire(cls, directory: Path) -> "Lease":
        """Hold a directory until `release`, or the end of this process.

        Raises:
            BadInputError: another process holds it; names its host and process.
        """
        while True:
            descriptor = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | BINARY, 0o644)
            try:
                lease = cls(directory / LOCK_NAME, descriptor)
                if lease._take(try_flock(descriptor)):
                    lease._heart.start()
                    return lease
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def check(self) -> None:
        """Return if the directory is still this process's; to be asked before anything is published.

        Raises:
            LeaseLostError: another process holds it, or could have taken it.
        """
        silent = seconds_since_boot() - self._renewed
        if silent > DEAD_AFTER_SECONDS:
            raise self._lost(f"the lease was not renewed for {silent:.0f} s: the process or its disk stood still")
        content = self._read()
        if content is None:
            raise self._lost("its lock file was removed")
        if content != self._content:
            raise self._lost(f"it was taken over by {_in_words(_parse(content))}")

    def release(self) -> None:
        """Let go of the directory, so that the next holder need not wait."""
        if os.getpid() == self.record["process"]:  # a forked child must not give away what its parent holds
            self._ended.set()
            self._heart.join()
            with suppress(OSError):  # what cannot be emptied is found dead
                if self._read() == self._content:
                    os.ftruncate(self._descriptor, 0)
                unlock_file(self._descriptor)
        os.close(self._descriptor)

    def _take(self, is_free: bool | None) -> bool:
        """Become the holder; False if the lock file changed meanwhile and must be looked at again.

        Every holder's record has one successor: the process whose claim appears under its digest.
        A claim is as good as the process that made it, so a dead one is taken over in the same way.
        """
        found = self._read()
        if found is None:
            return False
        self._refuse_if_alive(found, os.fstat(self._descriptor).st_mtime, is_free)
        claims, last = [], found
        while True:
            claim = self.path.with_name(f".{LOCK_NAME}.{hashlib.sha256(last).hexdigest()[:16]}.tmp")
            try:
                try:
                    publish(claim, self._content)
                    break
                except FileExistsError:
                    last, heartbeat = claim.read_bytes(), claim.stat().st_mtime
            except FileNotFoundError:  # cleared away meanwhile by one that took over
                return False
            self._refuse_if_alive(last, heartbeat, is_free or None)
            claims.append(claim)
        try:
            if self._read() != found:
                return False  # someone took over from the same holder and had already removed its claim
            write_at(self._descriptor, self._content, 0)
            os.ftruncate(self._descriptor, len(self._content))
            sync_file(self._descriptor)
            touch(self._descriptor, self.path)
            for each in claims:
                each.unlink(missing_ok=True)
        finally:
            claim.unlink(missing_ok=True)
        return True

    def _read(self) -> bytes | None:
        """Return the lock file's content; None if another file, or none, stands in its place."""
        try:
            # Opening by name makes a network file system's client ask the server. The content is then
            # read where the lock is: some systems let nobody read a locked file through another handle.
            opened = os.open(self.path, READ_ONLY)
            try:
                is_same = os.path.samestat(os.fstat(opened), os.fstat(self._descriptor))
            finally:
                os.close(opened)
            return read_at(self._descriptor, 4096, 0) if is_same else None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                return None
            raise

    def _refuse_if_alive(self, content: bytes, heartbeat: float, is_free: bool | None) -> None:
        holder = _parse(content)
        age = server_clock(self.path.parent) - heartbeat
        is_alive = _is_alive(holder, self.record, len(content) > 0 and age < DEAD_AFTER_SECONDS, is_free)
        advice = f"; if it is gone, try again {DEAD_AFTER_SECONDS:.0f} s after its last heartbeat"
        if _is_of_this_machine(holder, self.record):
            advice = ""
        # Locked without a record: it is just beginning or ending, or an earlier version of this package.
        if is_alive or ("token" not in holder and is_free is False):
            raise BadInputError(
                f"the run directory {self.path.parent} is in use\n"
                f"  by:      {_in_words(holder)}, heartbeat {age:.0f} s ago\n"
                f"  this is: {_in_words(self.record)}\n"
                f"  wait for it to end, or give another directory{advice}"
            )

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            began = seconds_since_boot()
            try:
                self.check()  # another's lease, or one that was silent for too long, is never renewed
                touch(self._descriptor, self.path)  # to the server's own time
                self._renewed = began
            except LeaseLostError:
                return  # the run learns it from its own check
            except OSError:
                continue

    def _lost(self, why: str) -> LeaseLostError:
        return LeaseLostError(
            f"the run directory {self.path.parent} is no longer held by this process\n  {why}\n"
            "  what was complete stays; nothing more is written; see who else uses it, then resume"
        )


@contextmanager
def hold(directory: Path) -> Iterator[Lease]:
    """Hold a directory within a `with` block; raises as `Lease.acquire` does."""
    lease = Lease.acquire(directory)
    try:
        yield lease
    finally:
        lease.release()


def holder_of(directory: Path) -> str | None:
    """Return in words which process holds a directory; None if none does."""
    try:
        content, heartbeat = (directory / LOCK_NAME).read_bytes(), (directory / LOCK_NAME).stat().st_mtime
    except FileNotFoundError:
        return None
    holder = _parse(content)
    beats = len(content) > 0 and time.time() - heartbeat < DEAD_AFTER_SECONDS
    this = describe_this_process()
    is_free = None if this["started"] else _is_free(directory / LOCK_NAME)
    return _in_words(holder) if holder and _is_alive(holder, this, beats, is_free) else None


def is_released(directory: Path) -> bool:
    """Whether nobody holds a directory, and whoever held it let go of it: a killed process did not."""
    try:
        return (directory / LOCK_NAME).stat().st_size == 0
    except FileNotFoundError:
        return True


def _is_free(path: Path) -> bool | None:
    """Look whether a file is locked, by locking it for a moment; None if that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDWR | BINARY)
    except OSError:
        return None
    try:
        is_free = try_flock(descriptor)
        if is_free:
            unlock_file(descriptor)
        return is_free
    finally:
        os.close(descriptor)


def _is_of_this_machine(holder: dict[str, Any], this: dict[str, Any]) -> bool:
    return all(holder.get(key) == this[key] for key in ("boot_id", "pid_namespace"))


def _is_alive(holder: dict[str, Any], this: dict[str, Any], beats: bool, is_free: bool | None) -> bool:
    """Whether a holder lives: of this machine by its process, or its lock; of another by its heartbeat."""
    if _is_of_this_machine(holder, this):
        if this["started"] is not None:
            return bool(process_start(holder["process"]) == holder["started"])
        if is_free is not None:
            return not is_free
    return beats


def describe_this_process() -> dict[str, Any]:
    """Say which process this is, so that others can tell whether it still lives."""
    boot, namespace = this_boot()
    return {
        "host": socket.gethostname(),
        "boot_id": boot,
        "pid_namespace": namespace,
        "process": os.getpid(),
        "started": process_start(os.getpid()),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def server_clock(directory: Path) -> float:
    """Return the time by the clock that stamps a directory's files, in seconds."""
    with tempfile.TemporaryFile(dir=directory) as file:
        if os.utime in os.supports_fd:  # elsewhere that it is new must do
            os.utime(file.fileno())
        return os.fstat(file.fileno()).st_mtime


def try_flock(descriptor: int) -> bool | None:
    """Lock a file if it is free, and return whether it was; None if its file system has no locks."""
    try:
        return lock_file(descriptor)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        return None


def _parse(content: bytes) -> dict[str, Any]:
    """Read a holder's record; empty if there is none, or it is torn."""
    try:
        return dict(json.loads(content))
    except (ValueError, TypeError):
        return {}


def _in_words(holder: dict[str, Any]) -> str:
    job = f", SLURM job {holder['slurm_job']}" if holder.get("slurm_job") else ""
    return f"process {holder.get('process', 'unknown')} on host {holder.get('host', 'unknown')}{job}"
