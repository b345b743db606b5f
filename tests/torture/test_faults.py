"""The fault table: one fault of disk, clock or machine a test. The run ends clearly, and then as it should."""

import errno
import functools
import logging
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.data.standin import write_standin_dataset
from clip_hba_behavior.reproducibility.record.states import quarantine
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes, to_content
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.states import newest_state
from clip_hba_behavior.training.state import TrainingState
from fresh_process import Outcome
from run_tools import data_keys, differences, write_config
from torture.faults import Fault, watched_clip_hba

ClipHba = Callable[..., Outcome]
LOGGER = logging.getLogger("test")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of half a second."""
    data = tmp_path_factory.mktemp("data")
    write_standin_dataset(data, num_images=20)
    return {
        **data_keys(data),
        "epochs": 3,
        "batch_size": 4,
        "num_threads": 1,
        "rank": 2,
        "lr": 1e-3,
        "dora_dropout": 0.2,
        "checkpoint_every_steps": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def uninterrupted(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that met no fault; to be read only."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    config = write_config(directory / "config.yaml", keys)
    arguments = ["train", str(config), "--run-dir", str(directory / "run")]
    outcome = fresh_process.call(fresh_process.clip_hba, arguments, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return directory / "run"


@pytest.fixture
def run(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the uninterrupted run, to be damaged."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount, or mount again with other options, a file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options: str) -> Path:
        if path.is_mount():
            options += ",remount"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        return path

    yield mount
    if path.is_mount():
        subprocess.run(["umount", str(path)], check=True)


def begin(keys: dict[str, Any], run: Path, tmp_path: Path, **watching: Any) -> Outcome:
    """Train, watched, with a fault."""
    config = write_config(tmp_path / "config.yaml", keys)
    return watched(["train", str(config), "--run-dir", str(run)], tmp_path, **watching)


def watched(arguments: list[str], tmp_path: Path, timeout: float = 240, **watching: Any) -> Outcome:
    work = functools.partial(watched_clip_hba, **watching)
    output = tmp_path / "watched.txt"
    return fresh_process.call(work, arguments, str(tmp_path / "trace"), output=output, timeout=timeout)


def start_or_resume(clip_hba: ClipHba, run: Path, tmp_path: Path) -> Outcome:
    """Start again if the run never began, else resume."""
    if list_checkpoints(run / "dora_params"):
        return clip_hba("resume", run)
    return clip_hba("train", tmp_path / "config.yaml", "--run-dir", run)


def must_end_as(uninterrupted: Path, outcome: Outcome, run: Path) -> None:
    assert outcome.code == 0, outcome.output
    assert differences(uninterrupted, run) == []
    left = [
        path.name for path in run.rglob("*") if path.suffix in (".tmp", ".pending") or path.name == "quarantine"
    ]
    assert left == []
    for path in (uninterrupted / "dora_params").iterdir():
        assert (run / "dora_params" / path.name).read_bytes() == path.read_bytes()


# --- the disk is full, fails, or cannot be written -----------------------------------------------------


@pytest.mark.parametrize("room", [0, 1_000, 8_000, 40_000, 100_000, 180_000, 230_000])
def test_a_disk_that_gets_full_ends_the_run_with_74_and_with_space_again_it_ends_the_same(
    room: int, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    outcome = begin(keys, tmp_path / "run", tmp_path, room=room)
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 28] No space left on device" in outcome.output
    assert "make space, then go on by `clip-hba resume`" in outcome.output
    for path in list_checkpoints(tmp_path / "run" / "dora_params").values():
        assert path.read_bytes() == (uninterrupted / "dora_params" / path.name).read_bytes()
    must_end_as(uninterrupted, start_or_resume(clip_hba, tmp_path / "run", tmp_path), tmp_path / "run")


def fill_the_disk(directory: str, leave: int) -> None:
    """From the second epoch's end on, the disk has so few bytes left."""
    from clip_hba_behavior.training.trainer import Trainer

    real = Trainer.finish_epoch

    def finish_epoch(self: Trainer) -> dict[str, Any]:
        if self.epoch == 1:
            free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
            descriptor = os.open(f"{directory}/filler", os.O_WRONLY | os.O_CREAT)
            os.posix_fallocate(descriptor, 0, free - leave)
            os.close(descriptor)
        return real(self)

    Trainer.finish_epoch = finish_epoch


@pytest.mark.parametrize("leave", [0, 4096, 32768])
def test_a_small_file_system_that_gets_full_does_so_too(
    leave: int,
    clip_hba: ClipHba,
    keys: dict[str, Any],
    uninterrupted: Path,
    small_disk: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    disk = small_disk("size=8m")
    outcome = begin(keys, disk / "run", tmp_path, defect=functools.partial(fill_the_disk, str(disk), leave))
    assert outcome.code == 74, outcome.output
    assert "No space left on device" in outcome.output
    assert "Traceback" not in outcome.output
    assert list(list_checkpoints(disk / "run" / "dora_params")) == [0, 1]
    (disk / "filler").unlink()
    must_end_as(uninterrupted, start_or_resume(clip_hba, disk / "run", tmp_path), disk / "run")


def test_a_disk_too_small_for_the_feature_cache_is_said_and_a_larger_one_goes_on(
    clip_hba: ClipHba,
    keys: dict[str, Any],
    uninterrupted: Path,
    small_disk: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    disk = small_disk("size=1m")
    outcome = begin(keys | {"cache_dir": str(disk)}, tmp_path / "run", tmp_path)
    assert outcome.code == 74, outcome.output
    assert "No space left on device" in outcome.output
    assert not (tmp_path / "run").exists()
    small_disk("size=32m")
    must_end_as(uninterrupted, start_or_resume(clip_hba, tmp_path / "run", tmp_path), tmp_path / "run")


FAILING = {
    "the second sync": Fault(2, "fsync", error=errno.EIO),
    "the ledger's second sync": Fault(2, "fsync", "ledger", error=errno.EIO),
    "a checkpoint's sync": Fault(3, "fsync", "checkpoint", error=errno.EIO),
    "the sync of a checkpoint's name": Fault(4, "fsync", "checkpoint", error=errno.EIO),
    "a step checkpoint's link": Fault(1, "link", "step checkpoint", error=errno.EIO),
    "the renaming of best.json": Fault(2, "replace", "best.json", error=errno.EIO),
    "the removal of a step checkpoint": Fault(3, "unlink", "step checkpoint", error=errno.EIO),
}


@pytest.mark.parametrize("what", FAILING)
def test_a_disk_that_fails_ends_the_run_with_74_and_then_it_ends_the_same(
    what: str, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    outcome = begin(keys, tmp_path / "run", tmp_path, fault=FAILING[what])
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 5]" in outcome.output
    must_end_as(uninterrupted, start_or_resume(clip_hba, tmp_path / "run", tmp_path), tmp_path / "run")


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("call", "place"), [("link", "checkpoint"), ("replace", "best.json")])
def test_a_kill_beside_the_call_that_makes_a_file_visible_leaves_it_whole_or_absent(
    call: str, place: str, when: Any, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = begin(keys, run, tmp_path, fault=Fault(2, call, place, when))
    assert outcome.code == -9, outcome.output
    assert (1 in list_checkpoints(run / "dora_params")) == (when == "after" or place == "best.json")
    must_end_as(uninterrupted, start_or_resume(clip_hba, run, tmp_path), run)


def test_a_run_directory_that_cannot_be_written_is_said_and_nothing_is_lost(
    clip_hba: ClipHba, run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    checkpoint_path(run / "dora_params", 3).unlink()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    fault = Fault(1, error=errno.EROFS, lasting=True)
    outcome = watched(["resume", str(run)], tmp_path, fault=fault)
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 30] Read-only file system" in outcome.output
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    must_end_as(uninterrupted, clip_hba("resume", run), run)


def test_a_file_system_that_is_mounted_read_only_is_said_and_nothing_is_lost(
    clip_hba: ClipHba, run: Path, uninterrupted: Path, small_disk: Callable[[str], Path], tmp_path: Path
) -> None:
    disk = small_disk("size=8m")
    moved = Path(shutil.move(run, disk / "run"))
    checkpoint_path(moved / "dora_params", 3).unlink()
    small_disk("ro")
    outcome = clip_hba("resume", moved)
    assert outcome.code == 74, outcome.output
    assert "input/output error: [Errno 30] Read-only file system" in outcome.output
    small_disk("rw")
    must_end_as(uninterrupted, clip_hba("resume", moved), moved)


@pytest.mark.parametrize(
    "fault",
    [Fault(1, "link", "checkpoint"), Fault(1, "link", "CSV"), Fault(2, "write", "checkpoint", error=errno.ENOSPC)],
    ids=["killed before its first checkpoint", "killed before its results", "the disk is full"],
)
def test_a_continuation_elsewhere_that_broke_off_while_it_copied_can_be_repeated_or_resumed(
    fault: Fault, clip_hba: ClipHba, run: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    arguments = ["resume", str(run), "--from-epoch", "2", "--run-dir", str(tmp_path / "new")]
    outcome = watched(arguments, tmp_path, fault=fault)
    assert outcome.code == (74 if fault.error else -9), outcome.output
    if list_checkpoints(tmp_path / "new" / "dora_params"):
        arguments = ["resume", str(tmp_path / "new")]
    must_end_as(uninterrupted, clip_hba(*arguments), tmp_path / "new")


def test_a_full_disk_while_a_history_is_copied_leaves_nothing(run: Path, tmp_path: Path) -> None:
    arguments = ["resume", str(run), "--from-epoch", "2", "--run-dir", str(tmp_path / "new")]
    outcome = watched(arguments, tmp_path, fault=Fault(1, "write", "CSV", error=errno.ENOSPC))
    assert outcome.code == 74, outcome.output
    assert not (tmp_path / "new").exists()


def test_a_run_whose_checkpoints_were_taken_away_is_not_started_over(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    assert clip_hba("train", config, "--run-dir", tmp_path / "own").code == 0
    shutil.move(tmp_path / "own" / "dora_params", tmp_path / "elsewhere")
    ledger = (tmp_path / "own" / "steps.jsonl").read_bytes()
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "own")
    assert outcome.code == 2, outcome.output
    assert "is not empty: it holds a run" in outcome.output
    assert (tmp_path / "own" / "steps.jsonl").read_bytes() == ledger


# --- checkpoints are damaged or missing ----------------------------------------------------------------


def test_a_newest_checkpoint_cut_at_any_length_is_quarantined_and_never_half_taken(run: Path) -> None:
    newest = checkpoint_path(run / "dora_params", 3)
    content = newest.read_bytes()
    for hundredth in range(100):
        newest.write_bytes(content[: len(content) * hundredth // 100])
        taken, refused = newest_state(RunDirectory(run), LOGGER)
        assert taken.whole_state().epoch == 2, f"cut at {hundredth} %"
        quarantine(run, refused, LOGGER)
        (run / "quarantine" / f"{newest.name}.1").rename(newest)
        (run / "quarantine" / f"{newest.name}.1.json").unlink()


@pytest.mark.parametrize("hundredth", [1, 50, 99])
def test_after_a_newest_checkpoint_that_was_cut_the_run_ends_the_same(
    hundredth: int, clip_hba: ClipHba, run: Path, uninterrupted: Path
) -> None:
    newest = checkpoint_path(run / "dora_params", 3)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) * hundredth // 100])
    outcome = clip_hba("resume", run)
    shutil.rmtree(run / "quarantine")
    must_end_as(uninterrupted, outcome, run)


def flip_bits(path: Path, num_flips: int) -> None:
    """Flip one bit at each of many random indices: the file is refused, or its state is the one that was saved."""
    content = path.read_bytes()
    wanted = read_checkpoint(path).state_digest
    damaged = path.with_name("damaged.pth")
    damaged.write_bytes(content)
    places = random.Random(0)
    num_slack = 0
    with damaged.open("r+b", buffering=0) as file:
        for _ in range(num_flips):
            position, bit = places.randrange(len(content)), places.randrange(8)
            os.pwrite(file.fileno(), bytes([content[position] ^ 1 << bit]), position)
            try:
                taken = read_checkpoint(damaged)
            except BadInputError:
                pass
            else:
                assert taken.whole_state().digest() == taken.state_digest == wanted, f"byte {position}, bit {bit}"
                num_slack += 1
            os.pwrite(file.fileno(), content[position : position + 1], position)
    num_refused = num_flips - num_slack
    print(f"{len(content):,} bytes: {num_refused} flips refused, {num_slack} in slack: the state unchanged")
    assert num_slack < num_flips // 2


def test_a_flipped_bit_in_a_small_checkpoint_is_refused_or_changes_nothing(run: Path) -> None:
    flip_bits(checkpoint_path(run / "dora_params", 3), 1000)


@pytest.mark.system
def test_a_flipped_bit_in_a_checkpoint_of_vit_l_14_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "epoch1_dora_params.pth"
    path.write_bytes(to_bytes(to_content(state_of_vit_l_14(), {"config": {"rank": 32}})))
    assert 2_000_000 < path.stat().st_size < 2_500_000
    flip_bits(path, 1000)


def state_of_vit_l_14() -> TrainingState:
    """A state with the tensors of ViT-L/14 at rank 32: two visual blocks of width 1024, a text block of 768."""
    parameters = {}
    for block, width in (("visual.transformer.resblocks.22", 1024), ("visual.transformer.resblocks.23", 1024)):
        parameters |= dora_parameters(f"clip_model.{block}", width)
    parameters |= dora_parameters("clip_model.transformer.resblocks.11", 768)
    optimizer = torch.optim.AdamW(parameters.values(), fused=True)
    sum(each.square().sum() for each in parameters.values()).backward()
    optimizer.step()
    return TrainingState(
        parameters=snapshot(parameters),
        optimizer_state=snapshot(optimizer.state_dict()),
        rng_state=snapshot(capture_rng_state()),
        early_stopping_state={"best_test_loss": 0.1, "epochs_no_improve": 0},
        epoch=1,
        metrics={"epoch": 1, "test_loss": 0.1},
    )


def dora_parameters(block: str, width: int) -> dict[str, torch.nn.Parameter]:
    shapes = {"m": (width,), "delta_D_A": (32, width), "delta_D_B": (width, 32)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {f"{block}.attn.out_proj.{name}": torch.nn.Parameter(value) for name, value in values.items()}


def test_a_newest_file_that_claims_a_tensor_of_a_terabyte_is_quarantined(
    clip_hba: ClipHba, run: Path, uninterrupted: Path
) -> None:
    newest = checkpoint_path(run / "dora_params", 3)
    torch.save({"a": torch.zeros(1).expand(2**40)}, newest)  # one element on the disk
    assert newest.stat().st_size < 4000
    outcome = clip_hba("resume", run)
    assert "claims more than the file holds" in outcome.output
    shutil.rmtree(run / "quarantine")
    must_end_as(uninterrupted, outcome, run)


def test_without_its_newest_checkpoint_a_run_goes_on_from_the_one_before(
    clip_hba: ClipHba, run: Path, uninterrupted: Path
) -> None:
    checkpoint_path(run / "dora_params", 3).unlink()
    outcome = clip_hba("resume", run)
    assert "Resuming from the state after epoch 2 " in outcome.output
    must_end_as(uninterrupted, outcome, run)


def test_a_kill_before_an_old_checkpoint_is_removed_leaves_none_too_many(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fault = Fault(6, "unlink", "checkpoint")  # after four temporary files and epoch 1: epoch 2, at the end
    outcome = begin(keys | {"keep_checkpoints": "last 1"}, run, tmp_path, fault=fault)
    assert outcome.code == -9, outcome.output
    assert list(list_checkpoints(run / "dora_params")) == [0, 2, 3]
    assert clip_hba("resume", run).code == 0
    assert list(list_checkpoints(run / "dora_params")) == [0, 3]


def test_a_torn_note_of_a_fork_does_not_corrupt_the_next(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.note_fork(7, tmp_path / "fork")
    with directory.forks_file.open("ab") as file:
        file.write("1 /tmp/f\N{GREEK SMALL LETTER PHI}".encode()[:-1])
    directory.note_fork(12, tmp_path / "fork")
    assert directory.forked_epochs() == {7, 1, 12}


# --- the feature cache is damaged or missing -----------------------------------------------------------


def lose_the_cache(cache: Path) -> None:
    shutil.rmtree(cache)


def change(name: str, change_content: Callable[[bytes], bytes], cache: Path) -> None:
    for path in cache.rglob(name):
        path.write_bytes(change_content(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[Path], None]] = {
    "lost": lose_the_cache,
    "rows cut off": functools.partial(change, "features.bin", lambda content: content[: len(content) // 3]),
    "rows emptied": functools.partial(change, "features.bin", lambda content: b""),
    "a bit of the rows": functools.partial(change, "features.bin", flipped),
    "index cut off": functools.partial(change, "index.json", lambda content: content[:-20]),
    "a bit of the index": functools.partial(change, "index.json", flipped),
}


def contents(cache: Path) -> dict[Path, bytes]:
    return {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_feature_cache_that_is_damaged_or_lost_is_made_whole_with_the_same_bytes(
    what: str, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    outcome = begin(keys | {"cache_dir": str(cache)}, run, tmp_path, fault=Fault(3, "link", "checkpoint"))
    assert outcome.code == -9, outcome.output
    before = contents(cache)
    DAMAGE[what](cache)
    assert contents(cache) != before
    must_end_as(uninterrupted, clip_hba("resume", run), run)
    assert contents(cache) == before


JOURNAL_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda content: b"\xff\n" + content,
    "a flipped bit": flipped,
    "zeros": lambda content: content[:-30] + bytes(29) + b"\n",
}


@pytest.mark.parametrize("damage", JOURNAL_DAMAGE)
def test_a_damaged_journal_of_an_interrupted_filling_is_not_believed(
    damage: str, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    with_cache = keys | {"cache_dir": str(cache), "chunk_size": 16}
    fault = Fault(5, "msync", "feature cache")  # the last chunk of the images
    outcome = begin(with_cache, run, tmp_path, fault=fault)
    assert outcome.code == -9, outcome.output
    change("filling.jsonl", JOURNAL_DAMAGE[damage], cache)
    outcome = start_or_resume(clip_hba, run, tmp_path)
    undamaged = begin(with_cache | {"cache_dir": str(tmp_path / "another")}, tmp_path / "undamaged", tmp_path)
    assert undamaged.code == 0, undamaged.output
    must_end_as(tmp_path / "undamaged", outcome, run)
    assert contents(cache) == contents(tmp_path / "another")


def test_two_processes_that_fill_one_feature_cache_at_once_both_run(
    keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys, cache_dir=str(tmp_path / "cache"))
    processes = {
        run: fresh_process.start(
            fresh_process.clip_hba,
            ["train", str(config), "--run-dir", str(run)],
            output=run.with_suffix(".txt"),
        )
        for run in (tmp_path / "first", tmp_path / "second")
    }
    for run, process in processes.items():
        process.join(120)
        must_end_as(uninterrupted, Outcome(process.exitcode, run.with_suffix(".txt").read_text()), run)


# --- the clock and other processes ---------------------------------------------------------------------


def set_the_clock_back() -> None:
    """This process's clock stands in 2001 and runs backwards; so do the times that it gives to files."""
    now = 10.0**9
    real_utime = os.utime

    def backwards() -> float:
        nonlocal now
        now -= 1
        return now

    def utime(path: Any, times: Any = None, **named: Any) -> None:
        real_utime(path, times or (now, now), **named)

    time.time = backwards
    time.time_ns = lambda: int(backwards() * 10**9)
    os.utime = utime


def test_a_clock_that_is_set_back_changes_nothing(
    keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    outcome = begin(keys, run, tmp_path, fault=Fault(3, "link", "checkpoint"))
    assert outcome.code == -9, outcome.output
    in_2040 = 2_208_988_800
    for number, path in enumerate(sorted(run.rglob("*"), reverse=True)):
        os.utime(path, (in_2040 + number, in_2040 + number))
    must_end_as(uninterrupted, watched(["resume", str(run)], tmp_path, defect=set_the_clock_back), run)


def wait_in_the_first_epoch(go: str) -> None:
    from clip_hba_behavior.training.trainer import Trainer

    real = Trainer.finish_epoch

    def finish_epoch(self: Trainer) -> dict[str, Any]:
        while not Path(go).exists():
            time.sleep(0.01)
        return real(self)

    Trainer.finish_epoch = finish_epoch


def test_a_second_writer_is_refused_with_the_first_ones_host_and_process(
    clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", write_config(tmp_path / "config.yaml", keys)
    work = functools.partial(
        watched_clip_hba, defect=functools.partial(wait_in_the_first_epoch, str(tmp_path / "go"))
    )
    arguments = ["train", str(config), "--run-dir", str(run)]
    first = fresh_process.start(work, arguments, str(tmp_path / "trace"), output=tmp_path / "first.txt")
    deadline = time.monotonic() + 60
    while not list_checkpoints(run / "dora_params") and time.monotonic() < deadline:
        time.sleep(0.01)
    second = clip_hba("resume", run)
    assert second.code == 2, second.output
    assert f"by:      process {first.pid} on host {socket.gethostname()}" in second.output
    assert clip_hba("train", config, "--run-dir", run).code == 2
    (tmp_path / "go").touch()
    first.join(60)
    must_end_as(uninterrupted, Outcome(first.exitcode, (tmp_path / "first.txt").read_text()), run)


# --- long runs -----------------------------------------------------------------------------------------


def note_memory_and_files(log: str) -> None:
    """Note memory in kB and the number of open files at each epoch's end."""
    from clip_hba_behavior.training.trainer import Trainer

    real = Trainer.finish_epoch

    def finish_epoch(self: Trainer) -> dict[str, Any]:
        metrics = real(self)
        status = Path("/proc/self/status").read_text()
        memory = status.partition("VmRSS:")[2].split()[0]
        with Path(log).open("a") as file:
            file.write(f"{memory} {len(list(Path('/proc/self/fd').iterdir()))}\n")
        return metrics

    Trainer.finish_epoch = finish_epoch


@pytest.mark.system
@pytest.mark.timeout(900)
def test_memory_and_open_files_stay_as_they_are_over_500_epochs(keys: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    changes = {"epochs": 500, "early_stopping_patience": 1000}
    noting = functools.partial(note_memory_and_files, str(log))
    outcome = begin(keys | changes, tmp_path / "run", tmp_path, timeout=800, defect=noting)
    assert outcome.code == 0, outcome.output
    epochs = [[int(each) for each in line.split()] for line in log.read_text().splitlines()]
    assert len(epochs) == 500
    (memory, files), (later_memory, later_files) = epochs[99], epochs[499]
    print(f"epoch 100: {memory} kB, {files} files; epoch 500: {later_memory} kB, {later_files} files")
    assert later_memory - memory < 5000
    assert later_files == files
