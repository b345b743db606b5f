"""Losses that are read some steps late, as on a GPU: here the CPU's are, and every byte written is the same."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.reproducibility.record.recorder import Recorder
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import InterruptedRunError
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.life import resume, start
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training import pending
from clip_hba_behavior.training.pending import PendingStep
from clip_hba_behavior.training.trainer import NonFiniteLossError, Trainer
from conftest import REPOSITORY

LATE = 3
STEPS = 12  # of an epoch


@pytest.fixture(scope="module")
def keys(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    keys = data_keys(standin_data) | {"epochs": 2, "batch_size": 4, "num_threads": 1, "rank": 4, "lr": 1e-3}
    return keys | {"device": "cpu", "dora_dropout": 0.1, "cache_dir": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def expected(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run writes whose losses are read at once."""
    return written(start(make_config(keys | {"run_dir": str(tmp_path_factory.mktemp("expected") / "run")})))


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pending.STEPS_LATE, "cpu", LATE)


def written(run: Path) -> dict[str, bytes]:
    files = [*(run / "dora_params").iterdir(), run / "steps.jsonl", run / "training_res.csv", run / "best.json"]
    return {path.name: path.read_bytes() for path in files}


def after_step(monkeypatch: pytest.MonkeyPatch, number: int, do: Callable[[Trainer], None]) -> None:
    """Do something once, when the device has been given so many steps."""
    given, step = [0], Trainer._step

    def counting(trainer: Trainer, batch: Any) -> PendingStep:
        found = step(trainer, batch)
        given[0] += 1
        if given[0] == number:
            do(trainer)
        return found

    monkeypatch.setattr(Trainer, "_step", counting)


def ask_to_stop(trainer: Trainer) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def fail(trainer: Trainer) -> None:
    raise KeyError("in between")


def spoil(trainer: Trainer) -> None:
    next(iter(trainer.parameters.values())).data.fill_(float("nan"))


@pytest.mark.usefixtures("late")
def test_a_run_writes_the_same_bytes_and_is_ahead_of_what_is_recorded(
    keys: dict[str, Any], expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, record = [], Recorder.record

    def recording(recorder: Recorder, event: Any) -> None:
        if hasattr(event, "step"):
            ahead.append(recorder._live.step_in_epoch - event.step)  # type: ignore[attr-defined]
            assert event.has_state == (ahead[-1] == 0)
        record(recorder, event)

    monkeypatch.setattr(Recorder, "record", recording)
    run = start(make_config(keys | {"run_dir": str(tmp_path / "run")}))
    assert written(run) == expected
    assert ahead == 2 * [*[LATE] * (STEPS - LATE), 2, 1, 0]


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize(
    "step", [1, 7, pytest.param(11, marks=pytest.mark.system), pytest.param(12, marks=pytest.mark.system)]
)
def test_a_signal_saves_the_state_of_the_last_step_that_is_recorded(
    step: int, keys: dict[str, Any], expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    after_step(monkeypatch, step, ask_to_stop)
    with pytest.raises(InterruptedRunError, match=f"after epoch 1, step {step}; the state is saved"):
        start(make_config(keys | {"run_dir": str(run)}))
    assert len((run / "steps.jsonl").read_text().splitlines()) == step
    assert [path.name for path in (run / "step_checkpoints").iterdir()] == [f"epoch1_step{step}.pth"]
    assert written(resume(run)) == expected


@pytest.mark.usefixtures("late")
def test_a_checkpoint_within_an_epoch_has_the_state_of_its_step(
    keys: dict[str, Any], expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    after_step(monkeypatch, 8, fail)
    with pytest.raises(KeyError, match="in between"):
        start(make_config(keys | {"run_dir": str(run), "checkpoint_every_steps": 5}))
    assert [path.name for path in (run / "step_checkpoints").iterdir()] == ["epoch1_step5.pth"]
    assert written(resume(run)) == expected


@pytest.mark.usefixtures("late")
def test_a_state_that_is_taken_while_steps_are_pending_would_be_noticed(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Trainer._read
    monkeypatch.setattr(Trainer, "_read", lambda trainer, step, has_state: read(trainer, step, True))
    after_step(monkeypatch, 7, ask_to_stop)
    run = tmp_path / "run"
    with pytest.raises(InterruptedRunError, match="after epoch 1, step 4"):
        start(make_config(keys | {"run_dir": str(run)}))
    assert [path.name for path in (run / "step_checkpoints").iterdir()] == ["epoch1_step7.pth"]


def test_a_loss_that_is_no_number_is_named_by_its_step_and_nothing_is_written_of_it(
    keys: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, messages = [], []
    for name, num_late in (("at once", 0), ("late", LATE)):
        monkeypatch.setitem(pending.STEPS_LATE, "cpu", num_late)
        with monkeypatch.context() as patch:
            after_step(patch, 5, spoil)
            with pytest.raises(
                NonFiniteLossError, match="the loss is nan in epoch 1, step 6\n  images: "
            ) as raised:
                start(make_config(keys | {"run_dir": str(tmp_path / name)}))
        messages.append(str(raised.value))
        files.append({path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.[jp][st]*")})
    assert messages[0] == messages[1]
    assert len(files[0]["steps.jsonl"].splitlines()) == 5
    assert files[0]["steps.jsonl"] == files[1]["steps.jsonl"]
    assert files[0].keys() == files[1].keys()
    assert {name for name in files[1] if name.endswith(".pth")} == {"epoch0_dora_params.pth"}


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_no_step_waits_for_the_gpu(precision: str, keys: dict[str, Any]) -> None:
    on_a_gpu = make_config(keys | {"device": "cuda:0", "precision": precision})
    trainer, _ = build_trainer(resolve_config(on_a_gpu), Session(logging.getLogger("test")))
    trainer.begin()
    steps = trainer.steps(lambda step: False)
    next(steps)  # the first ones prepare kernels and the optimizer's state
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert [next(steps).step for _ in range(4)] == [2, 3, 4, 5]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert [each.step for each in steps] == list(range(6, STEPS + 1))


@pytest.mark.system
def test_runs_that_are_killed_anywhere_end_as_the_uninterrupted_ones(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom clip_hba_behavior.training import pending\nfrom torture import torture\n"
        "torture.DEFECTS['none'] = lambda: pending.STEPS_LATE.update(cpu=3)\nsys.exit(torture.main())"
    )
    command = [sys.executable, "-c", program, "--no-strace", "--kills", "24", "--seed", "1", "--workers", "1"]
    command += ["--variants", "plain", "dropout", "--defect", "none"]
    environment = os.environ | {
        "PYTHONPATH": f"{REPOSITORY / 'tests'}{os.pathsep}{REPOSITORY}",
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 mismatches" in done.stdout
