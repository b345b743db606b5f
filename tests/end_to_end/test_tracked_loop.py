"""The example `digits.py` as its user runs it: killed, stopped by signals, gone on with, verified."""

import difflib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility import diff
from clip_hba_behavior.reproducibility.record.tracked import TrackedFiles
from fresh_process import call, start

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).parents[2] / "examples"
EPOCHS = 3


def run_digits(directory: Path, epochs: int, workers: int) -> None:
    # As a script's on Linux: workers of a fork server would outlive a kill, since their parent does not die.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(directory)
    sys.path.insert(0, str(EXAMPLES))
    import digits

    digits.main(epochs, workers)


def run_ignite(directory: Path, epochs: int) -> None:
    os.chdir(directory)
    sys.path.insert(0, str(EXAMPLES))
    import ignite_engine

    ignite_engine.main(epochs)


def test_ignites_engine_killed_twice_is_the_uninterrupted_run(tmp_path: Path) -> None:
    """A loop that nobody here wrote."""
    killed, complete = tmp_path / "killed", tmp_path / "complete"
    for directory in (killed, complete):
        directory.mkdir()
    for least in (10, 40):
        process = start(run_ignite, killed, 3, output=tmp_path / "output.txt")
        wait_for_lines(killed / "runs/ignite/steps.jsonl", least)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    for directory in (killed, complete):
        outcome = call(run_ignite, directory, 3, output=tmp_path / "output.txt")
        assert outcome.code == 0, outcome.output
    assert diff(killed / "runs/ignite", complete / "runs/ignite").equal()
    ledgers = [(each / "runs/ignite/steps.jsonl").read_bytes() for each in (killed, complete)]
    assert ledgers[0] == ledgers[1]


def wait_for_lines(ledger: Path, least: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not ledger.exists() or ledger.read_bytes().count(b"\n") < least):
        time.sleep(0.001)


def states(directory: Path) -> list[str]:
    files = TrackedFiles(directory / "runs/digits")
    return [state.digest() for epoch in files.epochs() if (state := files.state(epoch)) is not None]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    outcome = call(run_digits, path, EPOCHS, 0, output=path / "output.txt")
    assert outcome.code == 0, outcome.output
    return path


def assert_same(found: Path, expected: Path) -> None:
    assert states(found) == states(expected)
    ledgers = [each / "runs/digits/steps.jsonl" for each in (found, expected)]
    assert ledgers[0].read_bytes() == ledgers[1].read_bytes()
    assert diff(found / "runs/digits", expected / "runs/digits").equal()


def test_the_example_costs_six_lines() -> None:
    plain, tracked = (
        (EXAMPLES / name).read_text().split('"""', 2)[2].splitlines() for name in ("digits_plain.py", "digits.py")
    )
    changed = [line for line in difflib.ndiff(plain, tracked) if line.startswith("+ ") and line.strip("+ ")]
    assert len(changed) == 6, changed
    assert sum("import" in line for line in changed) == 1


def test_a_signal_saves_and_ends_with_75(uninterrupted: Path, tmp_path: Path) -> None:
    for number, stop in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1), start=1):
        process = start(run_digits, tmp_path, EPOCHS, 0, output=tmp_path / "output.txt")
        ledger = tmp_path / "runs/digits/steps.jsonl"
        deadline = time.monotonic() + 60
        lines = ledger.read_bytes().count(b"\n") if ledger.exists() else 0
        while time.monotonic() < deadline and (
            not ledger.exists() or ledger.read_bytes().count(b"\n") <= lines + 3
        ):
            time.sleep(0.001)
        os.kill(process.pid, stop)
        process.join(60)
        output = (tmp_path / "output.txt").read_text()
        if process.exitcode == 0:
            break
        assert process.exitcode == 75, output
        assert f"stopped by {stop.name} after epoch" in output, (number, output)
    assert call(run_digits, tmp_path, EPOCHS, 0, output=tmp_path / "output.txt").code == 0
    assert_same(tmp_path, uninterrupted)


def kill_until_it_ends(directory: Path, num_kills: int, seed: int) -> int:
    """Kill the example at random instants, so often, with 0 or 2 workers in turn; then let it end."""
    rng = random.Random(seed)
    killed = 0
    while killed < num_kills:
        process = start(run_digits, directory, EPOCHS, killed % 2 * 2, output=directory / "output.txt")
        process.join(rng.uniform(0.2, 2.5))
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
        else:
            assert process.exitcode == 0, (directory / "output.txt").read_text()
            return killed
    outcome = call(run_digits, directory, EPOCHS, 2, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return killed


def test_killed_at_a_few_instants_the_run_is_the_uninterrupted_one(uninterrupted: Path, tmp_path: Path) -> None:
    assert kill_until_it_ends(tmp_path, 3, seed=1) > 0
    assert_same(tmp_path, uninterrupted)


@pytest.mark.timeout(1200)
def test_killed_at_fifty_random_instants_the_run_is_the_uninterrupted_one(
    uninterrupted: Path, tmp_path: Path
) -> None:
    killed = number = 0
    while killed < 50:
        number += 1
        directory = tmp_path / str(number)
        directory.mkdir()
        killed += kill_until_it_ends(directory, 10, seed=number)
        assert_same(directory, uninterrupted)


def test_the_documented_command_verifies_the_example(uninterrupted: Path) -> None:
    outcome = subprocess.run(
        [
            sys.executable,
            "-m",
            "clip_hba_behavior",
            "verify",
            "checkpoints",
            "runs/digits",
            "--loop",
            "digits:main",
        ],
        cwd=uninterrupted,
        env=os.environ | {"PYTHONPATH": f"{EXAMPLES}:{EXAMPLES.parent}", "OMP_NUM_THREADS": "1"},  # as the run had
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert "runs/digits: reproducible (L0)" in outcome.stdout
