"""A directory that is found free or dead: of many who take it over one holds it, with locks and without."""

import errno
import fcntl
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import fresh_process
from clip_hba_behavior.reproducibility.record import lease
from clip_hba_behavior.reproducibility.record.lease import Lease, LeaseLostError, hold
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory
from lease_tools import another_process, be_another_machine, stamp_heartbeat, wait_for, write_record

SIX_MINUTES = 360.0
NUM_RACERS = 8


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


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
