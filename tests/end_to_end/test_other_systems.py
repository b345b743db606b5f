"""What a run needs of Linux has something that stands in for it: without it the bits are the same.

The processes here are real ones, of a Python that lacks what Windows and macOS lack: `tests/other_system`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from run_tools import differences, write_config

OTHER_SYSTEM = Path(__file__).parents[1] / "other_system"
REPOSITORY = Path(__file__).parents[2]
KEYS = {"epochs": 3, "batch_size": 4, "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}
# Commands, a line of JSON each, done one after the other: the imports are paid once.
SHELL = """
import json, sys
from clip_hba_behavior.cli import main
print("ready", flush=True)
for line in sys.stdin:
    print("exit code", main(json.loads(line)), flush=True)
"""


def environment(**variables: str) -> dict[str, str]:
    path = os.pathsep.join([str(OTHER_SYSTEM), str(REPOSITORY)])
    # the console of a Windows in western Europe, which has no ✓
    return os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "cp1252"} | variables


def start(*words: object, output: Path, **variables: str) -> "subprocess.Popen[bytes]":
    """Start `clip-hba` there; it writes both streams to a file."""
    command = [sys.executable, "-m", "clip_hba_behavior", *(str(each) for each in words)]
    with output.open("wb") as file:
        return subprocess.Popen(command, env=environment(**variables), stdout=file, stderr=file)


def outcome_of(process: "subprocess.Popen[bytes]", output: Path) -> tuple[int, str]:
    code = process.wait(240)
    return code, output.read_text(encoding="cp1252")


@contextmanager
def shell() -> Iterator[Callable[..., tuple[int, str]]]:
    """Give a function that does `clip-hba` command lines in one process there."""
    process = subprocess.Popen(
        [sys.executable, "-c", SHELL],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="cp1252",
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run(*words: object) -> tuple[int, str]:
        print(json.dumps([str(each) for each in words]), file=process.stdin, flush=True)
        lines: list[str] = []
        for line in process.stdout:
            if line.startswith("exit code "):
                return int(line.split()[2]), "".join(lines)
            lines.append(line)
        raise AssertionError("".join(lines))

    try:
        yield run
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def baseline(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as it is on this system; its configuration is beside it."""
    directory = tmp_path_factory.mktemp("ordinary")
    config = write_config(directory / "config.yaml", {**data_keys(standin_data), **KEYS})
    words = ["train", str(config), "--run-dir", str(directory / "run")]
    outcome = fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return directory / "run"


def wait_for_epoch(run: Path, epoch: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while epoch not in list_checkpoints(run / "dora_params"):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)


@pytest.mark.system
def test_without_what_linux_has_a_killed_run_is_resumed_verified_and_the_same(
    baseline: Path, tmp_path: Path
) -> None:
    run, output = tmp_path / "run", tmp_path / "output.txt"
    first = start("train", baseline.with_name("config.yaml"), "--run-dir", run, output=output)
    with shell() as clip_hba:
        try:
            wait_for_epoch(run, 1, first)
            first.send_signal(signal.SIGSTOP)
            code, said = clip_hba("resume", run)
            assert code == 2, said
            assert f"error: the run directory {run} is in use\n  by:      process {first.pid} on host" in said
            code, said = clip_hba("runs", tmp_path)
            assert (code, "under way" in said) == (0, True), said
        finally:
            first.send_signal(signal.SIGKILL)
        first.wait()
        code, said = clip_hba("runs", tmp_path)
        assert (code, "under way" in said) == (0, False), said

        code, said = clip_hba("resume", run)
        assert code == 0, said
        assert "\\u2713 Restored RNG states from checkpoint for reproducible shuffle order" in said
        assert differences(baseline, run) == []
        assert (run / "run.lock").read_bytes() == b""
        assert b"\r" not in (run / "training_log.txt").read_bytes()

        code, said = clip_hba("verify", "checkpoints", run, "--epochs", "2")
        assert (code, "1 of 1 epochs repeat to the last bit" in said) == (0, True), said
        assert " ----------" in said  # a table's line
        code, said = clip_hba("diff", baseline, run)
        assert (code, "equal: 0 bits differ in 4 states" in said) == (0, True), said


def test_a_start_that_fails_leaves_nothing_where_open_files_cannot_be_removed(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", KEYS | {"csv_file": str(tmp_path / "none.csv")})
    output = tmp_path / "output.txt"
    code, said = outcome_of(start("train", config, "--run-dir", tmp_path / "runs/run", output=output), output)
    assert code == 2, said
    assert not (tmp_path / "runs").exists()


def test_a_python_without_file_locks_is_refused(tmp_path: Path) -> None:
    hold = """
import sys
from pathlib import Path
from clip_hba_behavior.cli import exit_code_of
from clip_hba_behavior.reproducibility.record.lease import Lease
sys.exit(exit_code_of(lambda: Lease.acquire(Path(sys.argv[1]))))
"""
    done = subprocess.run(
        [sys.executable, "-c", hold, str(tmp_path)],
        env=environment(WITHOUT_ANY_LOCKS="1"),
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        "error: this Python cannot lock files, so nothing would keep a second process out\n"
        "  found:    neither the module fcntl nor msvcrt\n  expected: one of them\n"
        "  use a Python for Linux, macOS or Windows, such as one of python.org\n"
    )


def test_a_sweep_says_that_it_cannot_run_there(baseline: Path, tmp_path: Path) -> None:
    keys = {
        "baseline": str(baseline),
        "directory": str(tmp_path / "sweep"),
        "epochs": [2],
        "kinds": ["image_noise"],
    }
    sweep, output = tmp_path / "sweep.yaml", tmp_path / "output.txt"
    sweep.write_text(json.dumps(keys))
    code, said = outcome_of(start("sweep", "run", sweep, output=output), output)
    assert (code, said) == (2, "error: a sweep needs Linux or macOS: this system cannot fork its workers\n")
    assert not (tmp_path / "sweep").exists()


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_demo_and_the_quick_test_succeed_there(tmp_path: Path) -> None:
    output = tmp_path / "output.txt"
    code, said = outcome_of(start("demo", "--run-dir", tmp_path / "demo", output=output), output)
    assert code == 0, said
    assert "0 of 29 tensors differ; ledger and results the same bytes" in said
    code, said = outcome_of(start("verify", "quick", output=output, TMPDIR=str(tmp_path)), output)
    assert code == 0, said
    assert "reproducible: continued in a new process, not one bit differs" in said
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("clip-hba-quick")] == []


@pytest.mark.system
def test_augmented_images_are_read_by_workers_there(
    baseline: Path, clip_hba: Callable[..., Any], tmp_path: Path
) -> None:
    config, output = baseline.with_name("config.yaml"), tmp_path / "output.txt"
    augmented = ["--set", "augmentation=[horizontal_flip]", "--set", "epochs=1", "--set", "num_workers=2"]
    for name in ("ordinary", "other"):
        words = ["train", config, *augmented, "--run-dir", tmp_path / name]
        code, said = (
            outcome_of(start(*words, output=output), output)
            if name == "other"
            else (lambda each: (each.code, each.output))(clip_hba(*words))
        )
        assert code == 0, said
    assert differences(tmp_path / "ordinary", tmp_path / "other") == []


@pytest.mark.system
def test_caches_are_removed_there(tmp_path: Path) -> None:
    output, caches = tmp_path / "output.txt", tmp_path / "caches"
    config = write_config(tmp_path / "config.yaml", KEYS | {"epochs": 1, "cache_dir": str(caches)})
    code, said = outcome_of(start("train", config, "--run-dir", tmp_path / "run", output=output), output)
    assert code == 0, said
    assert len(list(caches.glob("*/fill.lock"))) == 2
    code, said = outcome_of(start("cache", "clean", "--all", "--cache-dir", caches, output=output), output)
    assert code == 0, said
    assert said.startswith("removed\n")
    assert list(caches.glob("*/features.bin")) == list(caches.glob("*/fill.lock")) == []
