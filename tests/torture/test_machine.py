"""Faults of the clock and of other processes, and what a long run takes of the machine."""

import functools
import itertools
import os
import socket
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from fresh_process import Outcome
from run_tools import write_config
from torture.faults import Fault, watched_clip_hba
from torture.runs import begin, must_end_as, watched

ClipHba = Callable[..., Outcome]


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
    memory, files = zip(*epochs[99::100], strict=True)
    print(f"epochs 100 to 500: {memory} kB, {files} files")
    growths = [after - before for before, after in itertools.pairwise(memory)]
    assert statistics.median(growths) < 1000  # a block that found no room comes once, a leak every time
    assert len(set(files)) == 1
