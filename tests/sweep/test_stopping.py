"""A sweep that is asked to stop: nothing begins after it, and no signal is lost between two runs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.reproducibility.record.signals import SIGNALS
from fresh_process import Outcome
from run_tools import write_config
from sweep_tools import clip_hba_with_signal, epochs_on_disk, write_sweep

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]
CHAIN = {"epochs": [2], "kinds": ["random_target"], "controls": False}


def run_task(sweep: Path, tmp_path: Path, line: str, number: int) -> Outcome:
    """Run the first task of a submitted sweep, with a signal at a line of its log."""
    arguments = ["sweep", "task", str(tmp_path / sweep.stem / "slurm/1"), "--index", "0"]
    return fresh_process.call(clip_hba_with_signal, arguments, line, number, output=tmp_path / "task.txt")


def test_after_a_signal_no_further_run_begins(slow_baseline: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, slow_baseline, kinds=["random_target", "label_shuffle"], processes=1)
    process = fresh_process.start(
        fresh_process.clip_hba, ["sweep", "run", str(sweep)], output=tmp_path / "sweep.txt"
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "sweep/runs").glob("*/steps.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    output = (tmp_path / "sweep.txt").read_text()
    assert process.exitcode == 75, output
    assert (
        f"the sweep was stopped by SIGTERM; its runs are saved\n  go on with: clip-hba sweep resume {sweep}\n"
        in output
    )
    begun = epochs_on_disk(tmp_path / "sweep")
    assert list(begun) == ["e002_none"]  # the first; the pool had handed out more
    assert max(begun["e002_none"]) < 12


def test_a_terminal_that_hangs_up_saves_every_run(slow_baseline: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    """SIGHUP comes to all processes of the terminal: the sweep, its workers, and those that serve them."""
    sweep = write_sweep(tmp_path, slow_baseline, epochs=[9], kinds=["random_target"], lengths=[1])
    command = [sys.executable, "-m", "clip_hba_behavior", "sweep", "run", str(sweep)]
    with (tmp_path / "sweep.txt").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "sweep/runs").glob("*/steps.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGHUP)
    said = f"process {process.pid} ended with {process.wait(60)}:\n" + (tmp_path / "sweep.txt").read_text()
    assert process.returncode == 75, said
    assert (
        f"the sweep was stopped by SIGHUP; its runs are saved\n  go on with: clip-hba sweep resume {sweep}\n"
        in said
    )
    for run in (tmp_path / "sweep/runs").iterdir():
        assert "stopped by SIGHUP" not in (run / "training_log.txt").read_text()  # the parent's word: SIGTERM
        assert "the state is saved" in (run / "training_log.txt").read_text()
    assert clip_hba("sweep", "resume", sweep).code == 0


def start_the_server_of_workers() -> None:
    """Print which signals the process that workers are forked from blocks, as a number of bits."""
    from multiprocessing import forkserver

    from clip_hba_behavior.run.workers import _start_fork_server

    _start_fork_server()
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    status = Path(f"/proc/{server}/status").read_text()
    print(int(status.split("SigBlk:")[1].split()[0], 16))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells which signals a process blocks")
def test_the_server_of_workers_is_deaf_to_what_is_sent_to_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(fresh_process.SERVER_IN_ADVANCE)
    outcome = fresh_process.call(start_the_server_of_workers, output=tmp_path / "output.txt")
    assert outcome.code == 0, outcome.output
    is_blocked = {number: bool(int(outcome.output) >> number - 1 & 1) for number in SIGNALS}
    assert is_blocked == dict.fromkeys(SIGNALS, True)


def test_a_worker_that_alone_is_asked_to_leave_saves_and_is_replaced(slow_baseline: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, slow_baseline, epochs=[9], kinds=["uniform_images"], lengths=[1], processes=1)
    process = fresh_process.start(
        fresh_process.clip_hba, ["sweep", "run", str(sweep)], output=tmp_path / "sweep.txt"
    )
    deadline, lock = time.monotonic() + 120, tmp_path / "sweep/runs/e009_none/run.lock"
    while not list((tmp_path / "sweep/runs").glob("*/steps.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for _ in range(3):  # as when the whole process group is asked: more signals than one
        os.kill(int(lock.read_text().split('"process": ')[1].split(",")[0]), signal.SIGTERM)
    process.join(120)
    output = (tmp_path / "sweep.txt").read_text()
    assert process.exitcode == 0, output
    assert "2 of 2 runs are done" in output
    log = (tmp_path / "sweep/runs/e009_none/training_log.txt").read_text()
    assert "Resuming from the state after epoch " in log


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGUSR2, "requeue 7_0\n"), (signal.SIGTERM, "")])
def test_a_signal_at_a_runs_very_end_stops_the_chain(
    number: signal.Signals, asked: str, baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    """The run is complete and need not answer; the chain must."""
    sweep = write_sweep(tmp_path, baseline, **CHAIN)
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    outcome = run_task(sweep, tmp_path, "Epoch 4/4", number)
    assert outcome.code == 75, outcome.output
    assert epochs_on_disk(tmp_path / "sweep") == {"e002_random_target_l1_s0": [1, 2, 3, 4]}
    assert requeued.read_text() == asked
    next_step = (
        f"go on with: clip-hba sweep resume {tmp_path / 'sweep/sweep.yaml'} --engine slurm"
        if number == signal.SIGTERM
        else "it is in SLURM's queue again, and goes on by itself"
    )
    assert next_step in outcome.output
    outcome = clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", 0)
    assert outcome.code == 0, outcome.output
    assert epochs_on_disk(tmp_path / "sweep")["e002_random_target_l2_s0"] == [2, 3, 4]


def test_a_signal_within_a_run_stops_and_requeues_the_task(
    baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, **CHAIN)
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    outcome = run_task(sweep, tmp_path, "Epoch 3/4", signal.SIGUSR2)
    assert outcome.code == 75, outcome.output
    assert epochs_on_disk(tmp_path / "sweep") == {"e002_random_target_l1_s0": [1, 2, 3]}
    assert requeued.read_text() == "requeue 7_0\n"


def test_a_signal_at_the_end_of_all_work_changes_nothing(
    baseline: Path, clip_hba: ClipHba, requeued: Path, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, **CHAIN | {"lengths": [1]})
    assert clip_hba("sweep", "run", sweep, "--engine", "slurm").code == 0
    outcome = run_task(sweep, tmp_path, "Epoch 4/4", signal.SIGUSR2)
    assert outcome.code == 0, outcome.output
    assert requeued.read_text() == ""
    outcome = clip_hba("sweep", "table", sweep)
    assert outcome.code == 0, outcome.output


def test_a_single_run_that_gets_a_signal_at_its_very_end_is_complete(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config)
    arguments = ["train", str(config), "--run-dir", str(tmp_path / "run")]
    outcome = fresh_process.call(
        clip_hba_with_signal, arguments, "Epoch 4/4", signal.SIGUSR2, output=tmp_path / "train.txt"
    )
    assert outcome.code == 0, outcome.output
    assert "Finished at epoch 4" in outcome.output
