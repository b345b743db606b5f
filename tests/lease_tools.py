"""Tools of the tests of leases: other processes and machines that hold a directory, or left it."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fresh_process
from clip_hba_behavior.reproducibility.record import lease
from clip_hba_behavior.reproducibility.record.lease import LeaseLostError, hold


def wait_for(what: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def write_record(directory: Path, age: float = 0, **changes: Any) -> bytes:
    """Leave the lease of some other process, whose last heartbeat was `age` seconds ago."""
    record = lease.describe_this_process() | {"token": "another's", "host": "elsewhere"} | changes
    path = directory / "run.lock"
    path.write_text(json.dumps(record))
    stamp_heartbeat(path, age)
    return path.read_bytes()


def stamp_heartbeat(path: Path, age: float) -> None:
    os.utime(path)
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def be_another_machine(name: str) -> None:
    """From now on this process has another boot id; for the rest of its life."""
    own = lease.describe_this_process()
    lease.describe_this_process = lambda: own | {"host": name, "boot_id": name}


def hold_until(directory: str, machine: str, asked: str) -> None:
    """Hold a directory; when asked, say whether it is still held."""
    if machine:
        be_another_machine(machine)
    with hold(Path(directory)) as held:
        Path(f"{asked}.held").touch()
        wait_for(Path(asked).exists)
        try:
            held.check()
            print("still held")
        except LeaseLostError as error:
            print(error)


@contextmanager
def another_process(directory: Path, scratch: Path, machine: str = "") -> Iterator[Any]:
    process = fresh_process.start(
        hold_until, str(directory), machine, str(scratch / "asked"), output=scratch / "output.txt"
    )
    try:
        wait_for((scratch / "asked.held").exists)
        yield process
    finally:
        process.kill()
        process.join()
