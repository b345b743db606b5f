"""`verify checkpoints --processes N`: what one process says, to the letter; nothing is left of it when it ends."""

import io
import json
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.reproducibility.state.process import process_start
from clip_hba_behavior.verification import parallel
from clip_hba_behavior.verification.replays import NoStartError
from fresh_process import Outcome
from run_tools import finished, recorded_run_keys, write_config
from verification import sabotage

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


@pytest.fixture(scope="module", autouse=True)
def _workers_without_slow_imports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(fresh_process.SERVER_IN_ADVANCE, "1")
        yield


def verified(clip_hba: ClipHba, folder: Path, processes: int, *arguments: object) -> tuple[int, str, Any]:
    """Return a verification's exit code, output less what tells of the time, and certificate less the same."""
    certificate = folder / f"{processes}.json"
    outcome = clip_hba("verify", *arguments, "--json", certificate, "--processes", processes)
    output = re.sub(
        r"^(epochs replayed|replaying epoch|Computed the features).*\n", "", outcome.output, flags=re.MULTILINE
    )
    content = json.loads(certificate.read_text()) if certificate.exists() else {}
    return outcome.code, output, {key: content[key] for key in content if key not in ("seconds", "date")}


def assert_the_same(clip_hba: ClipHba, folder: Path, code: int, *arguments: object) -> str:
    """Assert that three processes say what one does; return it."""
    alone, together = (verified(clip_hba, folder, number, *arguments) for number in (1, 3))
    for number in (1, 3):
        (folder / f"{number}.json").unlink()
    assert together == alone
    assert alone[0] == code, alone[1]
    return alone[1]


def test_the_outcome_of_a_reproducible_run_is_that_of_one_process(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=12)  # more than are trained ahead
    output = assert_the_same(clip_hba, tmp_path, 0, "checkpoints", run)
    assert output.splitlines()[-1].startswith("reproducible: 12 of 12 epochs repeat to the last bit")
    assert [int(each) for each in re.findall(r"EPOCH (\d+) PASSED", output)] == list(range(1, 13))


@pytest.mark.parametrize("steps", [(), ("--steps", 2)])
def test_damaged_and_forged_epochs_are_named_as_by_one_process(
    steps: tuple[object, ...], clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=6)
    sabotage.damage(run, 2, partial(sabotage.with_one_bit_flipped, bit=22))
    sabotage.change_loss_in_ledger(run, 5, 1)
    (run / "dora_params/epoch6_dora_params.pth").write_bytes(b"no checkpoint")
    output = assert_the_same(clip_hba, tmp_path, 1, "checkpoints", run, *steps)
    assert "EPOCH 1 PASSED" in output
    assert "EPOCH 3 could not be tested" in output
    assert "EPOCH 5 FAILED" in output
    assert "EPOCH 6 could not be tested" in output


def test_an_image_is_suspected_from_all_epochs_before_as_by_one_process(
    clip_hba: ClipHba, small_config: dict[str, Any], standin_data: Path, tmp_path: Path
) -> None:
    altered = Path(shutil.copytree(standin_data, tmp_path / "altered"))
    sabotage.alter_image(altered, "drawn_0007.png")
    other = finished(clip_hba, tmp_path, sabotage.data_of(small_config, altered), "other")
    run = finished(clip_hba, tmp_path, small_config)
    sabotage.edit_config(run, **sabotage.data_of({}, altered))
    sabotage.forge_data_of(run, other)
    output = assert_the_same(clip_hba, tmp_path, 1, "checkpoints", run)
    assert "in batches of the same rows: drawn_0007.png\n" in output


def test_epochs_without_a_kept_state_between_them_are_trained_in_a_row(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=8, keep_checkpoints="best")
    assert len(list((run / "dora_params").iterdir())) < 8
    output = assert_the_same(clip_hba, tmp_path, 0, "checkpoints", run)
    assert "reproducible: 8 of 8 epochs" in output
    ledger = run / "steps.jsonl"
    ledger.write_text(
        re.sub(r'("epoch": 3, "step": "end".*"state_digest": ")....', r"\g<1>0000", ledger.read_text())
    )
    output = assert_the_same(clip_hba, tmp_path, 1, "checkpoints", run)
    assert "the replay did not reach the state after epoch 3" in output


def test_old_checkpoints_are_completed_from_the_seed_as_by_one_process(
    reference: Path, things: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", recorded_run_keys(reference, things))
    results, directory = reference / "run" / "training_res.csv", reference / "run" / "old_no_rng"
    given = ("results", results, "--checkpoints", directory, "--config", config, "--epochs", "1-3")
    output = assert_the_same(clip_hba, tmp_path, 3, *given)
    assert output.count("Batch order: reconstructed from seed 1") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_it_and_leaves_no_process(
    number: signal.Signals, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=12, batch_size=1)
    arguments = ["verify", "checkpoints", str(run), "--processes", "2", "--json", str(tmp_path / "c.json")]
    process = fresh_process.start(fresh_process.clip_hba, arguments, output=tmp_path / "output.txt")
    wait_for(lambda: "EPOCH 1 PASSED" in read(tmp_path / "output.txt"))
    left = descendants_of(process.pid)
    assert len(left) >= 2
    os.kill(process.pid, number)
    process.join(60)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == (75 if number != signal.SIGKILL else -number), output
    if number != signal.SIGKILL:
        assert (
            f"stopped by {number.name}; there was nothing to save yet\n  start it again with: clip-hba " in output
        )
        assert "Traceback" not in output
    wait_for(lambda: all(process_start(each) != started for each, started in left.items()))
    assert not (tmp_path / "c.json").exists()


def test_a_worker_that_the_system_ends_is_told(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=12, batch_size=1)
    arguments = ["verify", "checkpoints", str(run), "--processes", "2"]
    process = fresh_process.start(fresh_process.clip_hba, arguments, output=tmp_path / "output.txt")
    wait_for(lambda: "EPOCH 1 PASSED" in read(tmp_path / "output.txt"))
    os.kill(max(descendants_of(process.pid)), signal.SIGKILL)
    process.join(60)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 1, output
    assert "error: a process that trained epochs again was ended by the system; is there enough memory?" in output


def test_a_loop_of_ones_own_is_trained_by_one_process(clip_hba: ClipHba, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    outcome = clip_hba("verify", "checkpoints", tmp_path, "--processes", 2)
    assert outcome.code == 2, outcome.output
    assert "is the run of a training loop of your own: give --loop and --epochs alone" in outcome.output


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def descendants_of(process: int) -> dict[int, str | None]:
    """Return the processes that a process started, and those that they did, each with the time of its start."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended
    found = {process}
    while more := {each for each, parent in parents.items() if parent in found} - found:
        found |= more
    return {each: process_start(each) for each in found - {process}}


class PoolOfNone:
    """A pool whose processes cannot be started, as where their server was killed; or that do one task alone."""

    def __init__(self, can_start: bool) -> None:
        self.can_start, self.futures = can_start, list[Future[bytes]]()

    def submit(self, *_: object) -> Future[bytes]:
        if not self.can_start:
            raise EOFError
        self.futures.append(Future())
        if len(self.futures) == 1:
            with io.BytesIO() as sent:
                torch.save({1: NoStartError("none")}, sent)
                self.futures[0].set_result(sent.getvalue())
        return self.futures[-1]


@pytest.fixture
def trained_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[PoolOfNone], AbstractContextManager[parallel.Train]]:
    """Train three epochs in a pool."""

    def begin(pool: PoolOfNone) -> AbstractContextManager[parallel.Train]:
        monkeypatch.setattr(parallel, "workers", lambda *_: nullcontext(pool))
        files: Any = SimpleNamespace(is_left_out=lambda epoch: False)
        what = parallel.Replayed(Path("run"), {}, None, None, None)
        return parallel.trained_by(2, what, files, [1, 2, 3], Session(logging.getLogger("trained")))

    return begin


def test_a_process_that_cannot_be_started_is_told(
    trained_by: Callable[[PoolOfNone], AbstractContextManager[parallel.Train]],
) -> None:
    with (
        trained_by(PoolOfNone(can_start=False)) as train,
        pytest.raises(StoppedError, match="ended by the system"),
    ):
        train(1)


def test_epochs_that_nobody_asked_for_are_not_waited_for(
    trained_by: Callable[[PoolOfNone], AbstractContextManager[parallel.Train]],
) -> None:
    pool = PoolOfNone(can_start=True)
    with trained_by(pool) as train, pytest.raises(NoStartError):
        train(1)
    assert [future.cancelled() for future in pool.futures] == [False, True, True]
