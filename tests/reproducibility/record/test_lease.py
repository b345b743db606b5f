"""A directory is held by one process; its end, its silence and a lost lease are noticed."""

import errno
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.reproducibility.record import lease
from clip_hba_behavior.reproducibility.record.lease import Lease, LeaseLostError, hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError, StoppedError
from lease_tools import another_process, stamp_heartbeat, wait_for, write_record

SIX_MINUTES = 360.0


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_a_second_process_is_refused_with_the_first_ones_host_and_process(directory: Path, tmp_path: Path) -> None:
    with another_process(directory, tmp_path) as first, pytest.raises(BadInputError) as refusal:
        Lease.acquire(directory)
    host = lease.describe_this_process()["host"]
    assert f"the run directory {directory} is in use\n  by:      process {first.pid} on host {host}" in str(
        refusal.value
    )
    assert f"process {os.getpid()} on host {host}\n" in str(refusal.value)


def test_a_killed_process_on_this_machine_is_succeeded_at_once(directory: Path, tmp_path: Path) -> None:
    with another_process(directory, tmp_path) as first:
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: lease.process_start(first.pid) is None)
        with hold(directory) as held:
            held.check()


def test_a_killed_process_that_its_parent_does_not_reap_is_dead_too(directory: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        write_record(directory, process=process.pid, started=lease.process_start(process.pid))
        with pytest.raises(BadInputError, match=f"process {process.pid} on host elsewhere"):
            Lease.acquire(directory)
        process.kill()
        wait_for(lambda: lease.process_start(process.pid) is None)
        assert Path(f"/proc/{process.pid}").exists()
        Lease.acquire(directory).release()


def test_a_normal_end_leaves_nothing_to_wait_for(directory: Path, tmp_path: Path) -> None:
    with another_process(directory, tmp_path, machine="far away") as first:
        (tmp_path / "asked").touch()
        first.join()
    assert (tmp_path / "output.txt").read_text() == "still held\n"
    assert (directory / "run.lock").read_bytes() == b""
    with hold(directory):
        pass
    assert [each.name for each in directory.iterdir()] == ["run.lock"]


@pytest.mark.parametrize(
    "where", [{"boot_id": "another"}, {"pid_namespace": "pid:[1]"}], ids=["another machine", "another container"]
)
def test_a_holder_that_cannot_be_seen_lives_as_long_as_its_heartbeat(
    where: dict[str, str], directory: Path
) -> None:
    before = write_record(directory, age=10, slurm_job="4711", **where)
    with pytest.raises(BadInputError, match=r"is in use\n.*on host elsewhere, SLURM job 4711, heartbeat 10 s ago"):
        Lease.acquire(directory)
    assert (directory / "run.lock").read_bytes() == before
    assert [each.name for each in directory.iterdir()] == ["run.lock"]

    write_record(directory, age=SIX_MINUTES, **where)
    with hold(directory) as held:
        held.check()


def test_a_holder_that_can_be_seen_needs_no_heartbeat(directory: Path) -> None:
    write_record(directory, age=SIX_MINUTES)
    with pytest.raises(BadInputError, match="is in use"):
        Lease.acquire(directory)


def test_another_process_under_the_same_number_is_not_the_holder(directory: Path) -> None:
    write_record(directory, started="1")
    with hold(directory) as held:
        held.check()


@pytest.mark.parametrize("content", [b'{"host": "here", "proc' * 99, b'{"host": "here", "process": 1}', b"[]"])
def test_a_record_that_says_too_little_lives_as_long_as_its_heartbeat(content: bytes, directory: Path) -> None:
    path = directory / "run.lock"
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="is in use"):
        Lease.acquire(directory)
    stamp_heartbeat(path, SIX_MINUTES)
    with hold(directory) as held:
        held.check()


@pytest.mark.parametrize("server_is_ahead", [-1e9, 1e9])
def test_a_heartbeats_age_is_measured_by_the_servers_clock_and_not_by_this_machines(
    server_is_ahead: float, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = lease.server_clock
    monkeypatch.setattr(lease, "server_clock", lambda directory: own(directory) + server_is_ahead)
    write_record(directory, age=10 - server_is_ahead, boot_id="another")
    with pytest.raises(BadInputError, match="heartbeat 10 s ago"):
        Lease.acquire(directory)
    write_record(directory, age=SIX_MINUTES - server_is_ahead, boot_id="another")
    Lease.acquire(directory).release()


def test_a_silent_holder_elsewhere_is_succeeded_though_its_lock_stays_and_then_notices(
    directory: Path, tmp_path: Path
) -> None:
    with another_process(directory, tmp_path, machine="far away") as first:
        stamp_heartbeat(directory / "run.lock", SIX_MINUTES)
        with hold(directory) as held:
            (tmp_path / "asked").touch()
            first.join()
            held.check()  # the first one's end did not empty it
    said = (tmp_path / "output.txt").read_text()
    assert "no longer held by this process" in said
    assert f"it was taken over by process {os.getpid()} on host" in said


def test_a_lease_that_is_lost_is_noticed_and_left_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    with hold(directory) as held:
        held.check()
        others = write_record(directory, age=SIX_MINUTES, process=77)
        with pytest.raises(LeaseLostError, match="taken over by process 77 on host elsewhere"):
            held.check()
        assert issubclass(LeaseLostError, StoppedError)
        wait_for(lambda: not held._heart.is_alive())
        stamp_heartbeat(directory / "run.lock", SIX_MINUTES)
        silent_since = (directory / "run.lock").stat().st_mtime
        time.sleep(0.1)
        assert (directory / "run.lock").stat().st_mtime == silent_since
    assert (directory / "run.lock").read_bytes() == others


@pytest.mark.parametrize("instead", [False, True], ids=["removed", "another file instead of it"])
def test_a_lock_file_that_is_gone_is_noticed(instead: bool, directory: Path) -> None:
    with hold(directory) as held:
        content = (directory / "run.lock").read_bytes()
        (directory / "run.lock").unlink()
        if instead:
            (directory / "run.lock").write_bytes(content)
        with pytest.raises(LeaseLostError, match="its lock file was removed"):
            held.check()


def test_the_heartbeat_goes_on_until_the_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    path = directory / "run.lock"
    with hold(directory) as held:
        for _ in range(3):
            os.utime(path, (0, 0))
            wait_for(lambda: path.stat().st_mtime > 0)
        assert held._heart.is_alive()
    assert not held._heart.is_alive()
    os.utime(path, (0, 0))
    time.sleep(0.2)
    assert path.stat().st_mtime == 0


def test_a_heartbeat_that_cannot_be_written_stops_the_run_only_if_it_lasts(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, is_away, own = 1000.0, False, os.utime

    def utime(*arguments: Any) -> None:
        if is_away:
            raise OSError(errno.EIO, "the server is away")
        own(*arguments)

    monkeypatch.setattr(lease, "seconds_since_boot", lambda: now)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(os, "utime", utime)
    with hold(directory) as held:
        is_away = True
        now += 299
        held.check()
        is_away = False
        wait_for(lambda: held._renewed == now)
        is_away = True
        now += 299
        held.check()
        now += 2
        with pytest.raises(LeaseLostError, match="not renewed for 301 s"):
            held.check()
        is_away = False
        time.sleep(0.1)
        with pytest.raises(LeaseLostError):  # that it could be renewed now does not help
            held.check()


def check_until(directory: str, finish: str) -> None:
    lease.HEARTBEAT_SECONDS, lease.DEAD_AFTER_SECONDS = 0.1, 2.0
    with hold(Path(directory)) as held:
        Path(f"{finish}.held").touch()
        try:
            while not Path(finish).exists():
                held.check()
                time.sleep(0.01)
            print("still held")
        except LeaseLostError as error:
            print(error)


@pytest.mark.parametrize(("seconds", "said"), [(3.0, "was not renewed for"), (0.3, "still held")])
def test_a_process_that_stood_still_for_too_long_publishes_nothing_more(
    seconds: float, said: str, directory: Path, tmp_path: Path
) -> None:
    finish = tmp_path / "finish"
    process = fresh_process.start(check_until, str(directory), str(finish), output=tmp_path / "output.txt")
    wait_for((tmp_path / "finish.held").exists)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(0.3)
    finish.touch()
    process.join()
    assert said in (tmp_path / "output.txt").read_text()
