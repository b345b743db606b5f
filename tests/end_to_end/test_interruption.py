"""A run that is stopped within an epoch, by a signal or by a kill, ends as the one that was not."""

import dataclasses
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.config import make_config
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.record.protocol import StepDone, end_record, step_record
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints, list_step_checkpoints
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.advance import advance
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer
from fresh_process import Outcome
from run_tools import differences, finished, trained, write_config

ClipHba = Callable[..., Outcome]
RANDOM_EVERYWHERE = {
    "dora_dropout": 0.2,
    "augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"],
    "batch_size": 8,
}


def fresh_trainer(keys: dict[str, Any]) -> Trainer:
    config = resolve_config(make_config(keys))
    trainer, _ = build_trainer(config, Session(logging.getLogger("test")))
    return trainer


def rest_of_the_run(trainer: Trainer, states: list[TrainingState] | None = None) -> list[Any]:
    """Train to the end of epoch 2; return the ledger's records, and the state before each step if asked."""
    entries: list[Any] = []
    if states is not None:
        states.append(trainer.snapshot())
    for event in advance(trainer, 2):
        state = trainer.snapshot()
        if states is not None and state.epoch < 2:
            states.append(state)
        if isinstance(event, StepDone):
            entries.append(((event.epoch, event.step), step_record(event, trainer)))
        else:
            entries.append(((event.epoch, END_OF_EPOCH), end_record(event, state, trainer)))
    return entries


@pytest.mark.system
def test_restoring_the_state_before_any_step_gives_the_same_rest(small_config: dict[str, Any]) -> None:
    """Every step of two epochs, with dropout and augmentation, and other worker processes afterwards."""
    keys = small_config | RANDOM_EVERYWHERE
    trainer = fresh_trainer(keys)
    trainer.begin()
    states: list[TrainingState] = []
    entries = rest_of_the_run(trainer, states)
    assert len(states) == 2 * (trainer.num_steps() + 1) == 14

    again = fresh_trainer(keys)
    with_workers = fresh_trainer(keys | {"num_workers": 2})
    for number, state in enumerate(states):
        resumed = with_workers if number % 4 == 1 else again
        before = state.digest()
        torch.manual_seed(number)  # whatever was drawn in the meantime must not matter
        resumed.restore(state)
        rest = rest_of_the_run(resumed)
        assert rest == entries[len(entries) - len(rest) :]
        assert state.digest() == before  # the state itself was not written into


@pytest.mark.parametrize("piece", ["rng_state", "epoch_start_rng_state", "loss_sum", "optimizer_state", "step"])
def test_a_state_within_an_epoch_without_a_piece_gives_another_rest(
    piece: str, small_config: dict[str, Any]
) -> None:
    """The negative twin: each piece is needed."""
    keys = small_config | RANDOM_EVERYWHERE | {"augmentation": []}
    trainer = fresh_trainer(keys)
    trainer.begin()
    states: list[TrainingState] = []
    entries = rest_of_the_run(trainer, states)
    state = states[3]
    assert (state.epoch, state.step_in_epoch) == (0, 3)
    crippled = {
        "rng_state": lambda: dataclasses.replace(state, rng_state=capture_rng_state()),
        "epoch_start_rng_state": lambda: dataclasses.replace(state, epoch_start_rng_state=state.rng_state),
        "loss_sum": lambda: dataclasses.replace(state, loss_sum=0.0),
        "optimizer_state": lambda: dataclasses.replace(
            state, optimizer_state=state.optimizer_state | {"state": {}}
        ),
        "step": lambda: dataclasses.replace(state, step_in_epoch=2),
    }[piece]()
    trainer.restore(crippled)
    rest = rest_of_the_run(trainer)
    assert rest != entries[len(entries) - len(rest) :]


def start_training(config: Path, run: Path, output: Path) -> Any:
    arguments = ["train", str(config), "--run-dir", str(run)]
    return fresh_process.start(fresh_process.clip_hba, arguments, output=output)


def wait_for_line(run: Path, start: str) -> None:
    """Wait until the ledger has a line with this beginning."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ledger = run / "steps.jsonl"
        if ledger.exists() and any(line.startswith(start) for line in ledger.read_text().splitlines()):
            return
        time.sleep(0.005)
    raise TimeoutError(f"no line {start!r} in {run}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_the_state_within_the_epoch_and_resume_ends_the_same(
    number: signal.Signals, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    keys = small_config | {"dora_dropout": 0.1, "batch_size": 2, "epochs": 3}
    uninterrupted = finished(clip_hba, tmp_path, keys, "uninterrupted")
    config, run = write_config(tmp_path / "run.yaml", keys), tmp_path / "run"
    process = start_training(config, run, tmp_path / "output.txt")
    wait_for_line(run, '{"epoch": 2, "step": 3,')
    os.kill(process.pid, number)
    process.join(60)
    output = (tmp_path / "output.txt").read_text()
    assert process.exitcode == 75, output
    assert f"stopped by {number.name} after epoch 2" in output
    assert "Traceback" not in output
    assert len(list_step_checkpoints(run / "step_checkpoints")) == 1
    assert list(list_checkpoints(run / "dora_params")) == [0, 1]
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output
    assert "step " in outcome.output
    assert differences(uninterrupted, run) == []
    assert not list_step_checkpoints(run / "step_checkpoints")


def test_a_second_signal_leaves_at_once(tmp_path: Path) -> None:
    """The first waits for the step; in a step that takes for ever only the second helps."""
    output = tmp_path / "output.txt"
    process = fresh_process.start(stuck_in_a_step, output=output)
    deadline = time.monotonic() + 60
    while not (output.exists() and "in the step" in output.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(10)
    assert process.exitcode == 75


def stuck_in_a_step() -> None:
    from clip_hba_behavior.reproducibility.record.signals import stopping_on_signals

    with stopping_on_signals():
        print("in the step", flush=True)
        while True:
            time.sleep(0.01)


def test_step_checkpoints_every_k_steps_survive_a_kill(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    keys = small_config | {"dora_dropout": 0.1, "batch_size": 2, "epochs": 3, "checkpoint_every_steps": 4}
    uninterrupted = finished(clip_hba, tmp_path, keys, "uninterrupted")
    plain = trained(clip_hba, tmp_path, keys | {"checkpoint_every_steps": None}, "plain")
    assert differences(uninterrupted, plain) == []  # saving changes nothing
    config, run = write_config(tmp_path / "run.yaml", keys), tmp_path / "run"
    process = start_training(config, run, tmp_path / "output.txt")
    wait_for_line(run, '{"epoch": 2, "step": 11,')
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    saved = list_step_checkpoints(run / "step_checkpoints")
    assert saved
    assert all(step % 4 == 0 for _, step in saved)
    assert len(saved) <= 2
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output
    assert differences(uninterrupted, run) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "another state"])
def test_a_damaged_newest_checkpoint_is_quarantined_and_the_one_before_it_taken(
    damage: str, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config)
    newest = checkpoint_path(run / "dora_params", 4)
    good = newest.read_bytes()
    bad = {
        "truncated": good[: len(good) // 2],
        "flipped": good[:2000] + bytes([good[2000] ^ 1]) + good[2001:],
        "empty": b"",
        "another state": checkpoint_path(run / "dora_params", 3).read_bytes(),
    }[damage]
    newest.unlink()
    newest.write_bytes(bad)
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output
    assert "the original is quarantine/epoch4_dora_params.pth.1" in outcome.output
    assert "Resuming from the state after epoch 3" in outcome.output
    assert (run / "quarantine/epoch4_dora_params.pth.1").read_bytes() == bad
    assert newest.read_bytes() == good


def test_a_run_whose_checkpoints_are_all_damaged_says_so_and_keeps_them(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    for path in (run / "dora_params").iterdir():
        path.write_bytes(b"no")
    outcome = clip_hba("resume", run)
    assert outcome.code == 2
    assert "has no complete checkpoint to resume from" in outcome.output
    assert len(list((run / "dora_params").iterdir())) == 2


def test_a_start_that_was_killed_before_its_first_state_can_be_repeated(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    uninterrupted = finished(clip_hba, tmp_path, small_config, "uninterrupted")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("environment.json", "training_log.txt", "run.lock"):
        (run / name).write_bytes((uninterrupted / name).read_bytes())
    (run / "config.yaml").write_text(
        (uninterrupted / "config.yaml").read_text().replace(str(uninterrupted), str(run))
    )
    (run / ".config.yaml.x.tmp").write_text("torn")
    outcome = clip_hba("resume", run)
    assert outcome.code == 2
    assert "it never began" in outcome.output
    trained(clip_hba, tmp_path, small_config, "run")
    assert differences(uninterrupted, run) == []
    assert not list(run.glob(".*.tmp"))


def test_anothers_config_file_is_not_taken_for_ones_own(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    config = write_config(run / "config.yaml", small_config)
    before = config.read_bytes()
    outcome = clip_hba("train", config, "--run-dir", run)
    assert outcome.code == 2
    assert "is not empty" in outcome.output
    assert config.read_bytes() == before


POLICIES = {"all": [0, 1, 2, 3, 4, 5, 6], "last 2": [0, 5, 6], "every 3": [0, 3, 6], "best": [0, 6]}


@pytest.mark.system
@pytest.mark.parametrize("policy", POLICIES)
def test_the_policy_keeps_what_it_says_the_first_the_best_and_the_newest(
    policy: str, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=6, keep_checkpoints=policy)
    best = json.loads((run / "best.json").read_text())["epoch"]
    assert list(list_checkpoints(run / "dora_params")) == sorted({*POLICIES[policy], best})
    assert len((run / "training_res.csv").read_text().splitlines()) == 7
    for path in list_checkpoints(run / "dora_params").values():
        read_checkpoint(path).whole_state()
    if policy in ("all", "last 2"):
        assert clip_hba("verify", "checkpoints", run).code == 0


def test_a_checkpoint_that_a_fork_began_with_stays(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, "baseline", epochs=4)
    fork = {"training_run": 3, "baseline_dora_directory": str(run / "dora_params")}
    trained(clip_hba, tmp_path, small_config, "fork", **fork)
    outcome = clip_hba("resume", run, "--set", "epochs=5", "--set", "keep_checkpoints=last 1")
    assert outcome.code == 0, outcome.output
    assert {0, 2, 5} <= set(list_checkpoints(run / "dora_params"))
    assert 1 not in list_checkpoints(run / "dora_params")


def test_too_little_space_is_refused_before_the_run_starts(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=10**9)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 2, outcome.output
    assert "there is not enough space" in outcome.output
    assert "MB free" in outcome.output
    assert not (tmp_path / "run").exists()


DRIFTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "torch": lambda environment: environment["versions"].update(torch="1.0"),
    "device_model": lambda environment: environment["machine"].update(device_model="another"),
    "images": lambda environment: environment["digests"].update(images="0" * 64),
    "num_threads": lambda environment: environment["trajectory"].update(num_threads=7),
}


@pytest.mark.system
@pytest.mark.parametrize("key", DRIFTS)
def test_drift_is_refused_and_allowed_only_on_record(
    key: str, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=2)
    file = run / "environment.json"
    environment = json.loads(file.read_text())
    DRIFTS[key](environment)
    file.write_text(json.dumps(environment))
    before = {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.name not in ("training_log.txt", "run.lock") and path.is_file()
    }
    outcome = clip_hba("resume", run, "--set", "epochs=3")
    assert outcome.code == 2, outcome.output
    assert f"{key}\n    in the run: " in outcome.output
    assert f"--allow {key}" in outcome.output
    assert {path: path.read_bytes() for path in before} == before

    outcome = clip_hba("resume", run, "--set", "epochs=3", "--allow", key)
    assert outcome.code == 0, outcome.output
    assert json.loads(file.read_text())["drift"][0].startswith(f"{key} was ")
    assert read_checkpoint(checkpoint_path(run / "dora_params", 3)).provenance["drift"]
    assert clip_hba("resume", run, "--set", "epochs=4").code == 0  # it is on record now
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", "4")
    assert "claim level L2" in outcome.output
    assert f"because the run drifted: {key} was" in outcome.output


def test_what_cannot_matter_is_not_refused(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    file = run / "environment.json"
    environment = json.loads(file.read_text())
    environment["machine"] |= {"host": "another", "system": "another", "executable": "another"}
    environment["versions"] |= {"python": "3.0", "tokenizers": "0"}
    file.write_text(json.dumps(environment))
    outcome = clip_hba("resume", run, "--set", "epochs=2")
    assert outcome.code == 0, outcome.output
    assert "was another" not in outcome.output


def test_allow_takes_only_what_is_compared(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    outcome = clip_hba("resume", run, "--allow", "everything")
    assert outcome.code == 2
    assert "--allow everything: nothing of that name is compared" in outcome.output
