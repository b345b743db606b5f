"""A reader that leaves and a terminal that hangs up: neither loses anything of a run."""

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
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from fresh_process import Outcome
from run_tools import write_config
from terminal_tools import clip_hba_on_terminal

pytestmark = pytest.mark.system

CLIP_HBA = [sys.executable, "-m", "clip_hba_behavior"]


@pytest.fixture
def slow(small_config: dict[str, Any], tmp_path: Path) -> Path:
    """A run that a signal finds at work."""
    return write_config(tmp_path / "slow.yaml", small_config, epochs=500, early_stopping_patience=500)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def piped(*words: object, **options: Any) -> subprocess.Popen[str]:
    """A command that writes into a pipe, as `clip-hba ... | head` does."""
    command = [*CLIP_HBA, *(str(each) for each in words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1, **options)


def test_a_closed_pipe_changes_nothing(small_config: dict[str, Any], tmp_path: Path) -> None:
    config, run = write_config(tmp_path / "config.yaml", small_config, epochs=3), tmp_path / "run"
    with piped("train", config, "--run-dir", run, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()  # head -1 has what it wants
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")
    assert max(list_checkpoints(run / "dora_params")) == 3
    log = (run / "training_log.txt").read_text()
    assert "Epoch 3/3: " in log
    assert "Finished at epoch 3" in log

    with piped("verify", "checkpoints", run, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 0


def test_a_closed_pipe_leaves_each_command_its_own_code(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("epochs: -1\n")
    reader, writer = os.pipe()
    os.close(reader)
    for words, code in ((["train", "wrong.yaml"], 2), (["--help"], 0), (["train", "wrong.yaml", "--dry-run"], 2)):
        done = subprocess.run([*CLIP_HBA, *words], cwd=tmp_path, stdout=writer, stderr=writer, check=False)
        assert done.returncode == code, words
    os.close(writer)


def test_a_run_without_standard_output_and_error_is_a_run(small_config: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=1)
    line = f"{sys.executable} -m clip_hba_behavior train {config} --run-dir {tmp_path / 'run'} >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], check=False).returncode == 0
    assert "Finished at epoch 1" in (tmp_path / "run/training_log.txt").read_text()


def test_a_terminal_that_hangs_up_saves_the_run(
    slow: Path, clip_hba: Callable[..., Outcome], tmp_path: Path
) -> None:
    """As when an ssh connection drops: SIGHUP comes, and no write to the terminal succeeds any more."""
    run = tmp_path / "run"
    ours, theirs = os.openpty()
    arguments = ["train", str(slow), "--run-dir", str(run)]
    output = tmp_path / "output.txt"
    process = fresh_process.start(clip_hba_on_terminal, os.ttyname(theirs), arguments, {}, output=output)
    while not (run / "dora_params/epoch1_dora_params.pth").exists():
        os.read(ours, 4096)
    os.close(theirs)
    os.close(ours)  # the kernel sends SIGHUP to the foreground processes
    process.join(60)
    assert process.exitcode == 75
    log = (run / "training_log.txt").read_text()
    assert "stopped by SIGHUP after epoch " in log
    assert f"go on with: clip-hba resume {run}" in log
    assert clip_hba("resume", run, "--set", "epochs=0").code == 2  # there is a state: epochs=0 is below it


def test_sighup_saves_and_leaves_with_75(slow: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    arguments = ["train", str(slow), "--run-dir", str(run)]
    process = fresh_process.start(fresh_process.clip_hba, arguments, output=tmp_path / "output.txt")
    wait_for(run / "dora_params/epoch1_dora_params.pth")
    os.kill(process.pid, signal.SIGHUP)
    process.join(60)
    said = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 75, said
    assert "stopped by SIGHUP after epoch " in said
    assert f"go on with: clip-hba resume {run}" in said


def test_nohup_outlives_a_sighup(small_config: dict[str, Any], tmp_path: Path) -> None:
    config, run = write_config(tmp_path / "config.yaml", small_config, epochs=30), tmp_path / "run"
    with subprocess.Popen(
        ["nohup", *CLIP_HBA, "train", str(config), "--run-dir", str(run)], stdout=subprocess.DEVNULL
    ) as process:
        wait_for(run / "dora_params/epoch1_dora_params.pth")
        process.send_signal(signal.SIGHUP)
        assert process.wait(120) == 0
    assert "SIGHUP" not in (run / "training_log.txt").read_text()
