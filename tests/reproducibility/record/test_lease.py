import errno
import fcntl
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fresh_process
from clip_hba_behavior.reproducibility.record import lease
from clip_hba_behavior.reproducibility.record.lease import Lease, LeaseLostError, hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError, StoppedError
from clip_hba_behavior.run.directory import RunDirectory

SIX_MINUTES = 360.0
NUM_RACERS = 8


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


def race(number: int, directory: str, scratch: str, kind: str) -> None:
    """One of several that find a dead holder at the same time; says how it went in a file's name."""

    def say(what: str) -> None:
        (Path(scratch) / f"{what}.{number}").touch()

    def all_said(*words: str) -> bool:
        return sum(len(list(Path(scratch).glob(f"{word}.*"))) for word in words) == NUM_RACERS

    own_read = Lease._read
    if kind != "one machine":
        be_another_machine(f"machine {number}")
        lease.try_flock = lambda descriptor: True  # a lock that no other machine sees
    if kind == "without claims":

        def all_find_it_dead(path: Path, content: bytes) -> None:
            say("found-dead")
            wait_for(lambda: all_said("found-dead"))

        lease.publish = all_find_it_dead
        found = own_read(Lease(Path(directory) / "run.lock", os.open(Path(directory) / "run.lock", os.O_RDWR)))
        Lease._read = lambda self: found
    say("ready")
    wait_for(lambda: all_said("ready"))
    try:
        with hold(Path(directory)) as held:
            say("won")
            wait_for(lambda: all_said("won", "refused"))
            Lease._read = own_read
            held.check()
            say("kept")
            wait_for(lambda: all_said("kept", "lost", "refused"))
    except BadInputError:
        say("refused")
    except LeaseLostError:
        say("lost")


def count_of_race(kind: str, directory: Path, scratch: Path) -> dict[str, int]:
    racers = [
        fresh_process.start(race, number, str(directory), str(scratch), kind, output=scratch / f"output{number}")
        for number in range(NUM_RACERS)
    ]
    for racer in racers:
        racer.join()
    output = "".join((scratch / f"output{number}").read_text() for number in range(NUM_RACERS))
    assert [racer.exitcode for racer in racers] == [0] * NUM_RACERS, output
    return {word: len(list(scratch.glob(f"{word}.*"))) for word in ("won", "refused", "kept", "lost")}


@pytest.mark.parametrize("kind", ["one machine", "many machines"])
@pytest.mark.parametrize("before", ["dead", "free"])
def test_of_many_who_find_a_directory_free_exactly_one_holds_it(
    before: str, kind: str, directory: Path, tmp_path: Path
) -> None:
    if before == "dead":
        write_record(directory, age=SIX_MINUTES, boot_id="another")
    (tmp_path / "said").mkdir()
    said = count_of_race(kind, directory, tmp_path / "said")
    assert said == {"won": 1, "refused": NUM_RACERS - 1, "kept": 1, "lost": 0}
    assert [each.name for each in directory.iterdir()] == ["run.lock"]


def test_without_claims_all_would_hold_it_and_the_check_stops_all_but_one(directory: Path, tmp_path: Path) -> None:
    write_record(directory, age=SIX_MINUTES, boot_id="another")
    (tmp_path / "said").mkdir()
    said = count_of_race("without claims", directory, tmp_path / "said")
    assert said == {"won": NUM_RACERS, "refused": 0, "kept": 1, "lost": NUM_RACERS - 1}


def test_one_that_comes_late_does_not_succeed_a_holder_that_was_succeeded(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, first = lease.publish, []

    def publish_late(path: Path, content: bytes) -> None:
        monkeypatch.setattr(lease, "publish", own)
        first.append(Lease.acquire(directory))  # meanwhile: its claim is already gone again
        own(path, content)

    monkeypatch.setattr(lease, "try_flock", lambda descriptor: True)
    monkeypatch.setattr(lease, "publish", publish_late)
    write_record(directory, age=SIX_MINUTES, boot_id="another")
    with pytest.raises(BadInputError, match="is in use"):
        Lease.acquire(directory)
    first[0].check()
    first[0].release()
    assert [each.name for each in directory.iterdir()] == ["run.lock"]


def test_while_one_takes_over_another_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, refusals = lease.publish, []

    def publish_and_be_slow(path: Path, content: bytes) -> None:
        monkeypatch.setattr(lease, "publish", own)
        own(path, content)
        with pytest.raises(BadInputError, match=f"by:      process {os.getpid()} ") as refusal:
            Lease.acquire(directory)
        refusals.append(refusal)

    monkeypatch.setattr(lease, "try_flock", lambda descriptor: True)
    monkeypatch.setattr(lease, "publish", publish_and_be_slow)
    write_record(directory, age=SIX_MINUTES, boot_id="another")
    with hold(directory) as held:
        held.check()
    assert len(refusals) == 1


def leave_in_a_forked_child(directory: str) -> None:
    with hold(Path(directory)) as held:
        child = os.fork()
        if child == 0:
            held.release()
            os._exit(0)
        os.waitpid(child, 0)
        held.check()
        print("still held")


def test_a_forked_child_that_ends_does_not_release_its_parents_directory(directory: Path, tmp_path: Path) -> None:
    outcome = fresh_process.call(leave_in_a_forked_child, str(directory), output=tmp_path / "output.txt")
    assert outcome == fresh_process.Outcome(0, "still held\n")


def die_while_taking_over(directory: str) -> None:
    os.pwrite = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
    Lease.acquire(Path(directory))


def test_one_that_died_while_taking_over_is_succeeded_too(directory: Path, tmp_path: Path) -> None:
    write_record(directory, age=SIX_MINUTES, boot_id="another")
    for num_claims in (1, 2):
        outcome = fresh_process.call(die_while_taking_over, str(directory), output=tmp_path / "output.txt")
        assert outcome.code == -signal.SIGKILL, outcome.output
        assert len(list(directory.iterdir())) == 1 + num_claims
    with hold(directory) as held:
        held.check()
    assert [each.name for each in directory.iterdir()] == ["run.lock"]


def test_a_file_system_without_such_locks_has_one_writer_too(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with another_process(directory, tmp_path) as first, pytest.raises(BadInputError, match=str(first.pid)):
        Lease.acquire(directory)
    with hold(directory) as held:
        held.check()


def test_without_proc_and_without_locks_a_holder_lives_as_long_as_its_heartbeat(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "this_boot", lambda: ("a network card", ""))
    monkeypatch.setattr(lease, "process_start", lambda process: None)
    monkeypatch.setattr(lease, "try_flock", lambda descriptor: None)
    write_record(directory, age=10)
    assert lease.holder_of(directory) == f"process {os.getpid()} on host elsewhere"
    with pytest.raises(BadInputError, match="is in use"):
        Lease.acquire(directory)
    stamp_heartbeat(directory / "run.lock", SIX_MINUTES)
    assert lease.holder_of(directory) is None
    with hold(directory) as held:
        held.check()


def test_without_proc_a_lock_tells_whether_a_holder_lives_and_no_heartbeat(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "this_boot", lambda: ("a network card", ""))
    monkeypatch.setattr(lease, "process_start", lambda process: None)
    write_record(directory, age=10)  # of one that was killed
    assert lease.holder_of(directory) is None
    with hold(directory):
        stamp_heartbeat(directory / "run.lock", SIX_MINUTES)  # of one that stands still
        assert lease.holder_of(directory) is not None
        with pytest.raises(BadInputError, match="is in use"):
            Lease.acquire(directory)
    assert lease.holder_of(directory) is None


def test_a_lock_file_that_is_removed_while_it_is_opened_is_not_held_in_vain(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, descriptors = lease.try_flock, []

    def removed_meanwhile(descriptor: int) -> bool:
        descriptors.append(descriptor)
        if len(descriptors) == 1:
            (directory / "run.lock").unlink()
        return own(descriptor)

    monkeypatch.setattr(lease, "try_flock", removed_meanwhile)
    with hold(directory) as held:
        held.check()
    assert len(descriptors) == 2


def test_holding_a_directory_draws_nothing_from_the_runs_random_streams(directory: Path) -> None:
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    write_record(directory, age=SIX_MINUTES, boot_id="another")
    with hold(directory) as held:
        held.check()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (str(np.random.get_state()), random.getstate()) == before[1:]


def test_a_run_directory_checks_its_lease_only_while_it_is_held(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "runs/run")
    directory.check_held()
    with directory.created():
        directory.check_held()
        assert (directory.path / "run.lock").stat().st_size > 0
    directory.check_held()
    assert not (tmp_path / "runs").exists()  # nothing was made


def test_a_start_that_lost_its_directory_takes_back_nothing_of_the_next_ones(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")

    def start_while_another_takes_over() -> None:
        with directory.created():
            write_record(directory.path)
            directory.config_file.write_text("another's")
            directory.check_held()

    with pytest.raises(LeaseLostError):
        start_while_another_takes_over()
    assert directory.config_file.read_text() == "another's"
    assert b"another's" in (directory.path / "run.lock").read_bytes()
