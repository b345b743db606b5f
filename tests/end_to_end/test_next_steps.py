"""Whoever is interrupted is given the command that goes on, to be copied as it stands."""

import os
import shlex
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior import ClipHbaError, InterruptedRunError, run_behavioral_training
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from fresh_process import Outcome
from run_tools import differences, finished, write_config
from sweep_tools import clip_hba_with_signal

ClipHba = Callable[..., Outcome]
WHILE_LOADING = "No backbone given"  # logged before anything is read


def command_in(output: str, label: str) -> list[str]:
    """The words after `clip-hba` of the one line that offers a command."""
    (line,) = [each.strip() for each in output.splitlines() if each.strip().startswith(f"{label}: clip-hba ")]
    return shlex.split(line.removeprefix(f"{label}: "))[1:]


def interrupted(arguments: list[object], line: str, number: int, output: Path) -> Outcome:
    words = [str(each) for each in arguments]
    return fresh_process.call(clip_hba_with_signal, words, line, number, output=output)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_start_that_is_interrupted_before_its_first_state_is_started_again(
    number: signal.Signals, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "my things.yaml", small_config)
    typed = ["train", str(config), "--run-dir", str(tmp_path / "läufe zu viel" / "run")]
    outcome = interrupted(list(typed), WHILE_LOADING, number, tmp_path / "output.txt")
    assert outcome.code == 75, outcome.output
    assert f"stopped by {number.name}; there was nothing to save yet" in outcome.output
    assert "resume" not in outcome.output
    assert not (tmp_path / "läufe zu viel").exists()
    assert command_in(outcome.output, "start it again with") == typed
    assert clip_hba(*command_in(outcome.output, "start it again with")).code == 0


def test_a_run_that_is_interrupted_is_resumed_with_its_path(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config, run = write_config(tmp_path / "config.yaml", small_config), tmp_path / "läufe zu viel" / "run"
    outcome = interrupted(["train", config, "--run-dir", run], "Epoch 2/4", signal.SIGINT, tmp_path / "output.txt")
    assert outcome.code == 75, outcome.output
    assert command_in(outcome.output, "go on with") == ["resume", str(run)]
    assert command_in((run / "training_log.txt").read_text(), "go on with") == ["resume", str(run)]
    assert clip_hba(*command_in(outcome.output, "go on with")).code == 0
    assert differences(finished(clip_hba, tmp_path, small_config, "whole"), run) == []


def test_a_resume_that_is_interrupted_before_its_settings_are_on_record_is_repeated_with_them(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    typed = ["resume", str(run), "--set", "epochs=3"]
    outcome = interrupted(list(typed), WHILE_LOADING, signal.SIGINT, tmp_path / "output.txt")
    assert outcome.code == 75, outcome.output
    assert command_in(outcome.output, "start it again with") == typed
    outcome = interrupted(list(typed), "Epoch 2/3", signal.SIGINT, tmp_path / "output.txt")
    assert outcome.code == 75, outcome.output
    assert command_in(outcome.output, "go on with") == ["resume", str(run)]
    assert clip_hba(*command_in(outcome.output, "go on with")).code == 0
    assert max(list_checkpoints(run / "dora_params")) == 3


def test_a_resume_elsewhere_and_a_fork_are_resumed_where_they_went(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config)
    for name, typed in (
        ("again", ["resume", run, "--from-epoch", 1]),
        ("fork", ["fork", run, "--at-epoch", 2, "--perturb", "none"]),
    ):
        new = tmp_path / name
        outcome = interrupted([*typed, "--run-dir", new], "Epoch 3/4", signal.SIGINT, tmp_path / "output.txt")
        assert outcome.code == 75, outcome.output
        assert command_in(outcome.output, "go on with") == ["resume", str(new)]
        assert clip_hba(*command_in(outcome.output, "go on with")).code == 0
        assert max(list_checkpoints(new / "dora_params")) == 4


def test_a_verification_that_is_interrupted_is_started_again(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config)
    outcome = interrupted(
        ["verify", "checkpoints", run], "✓ Restored RNG states", signal.SIGINT, tmp_path / "output.txt"
    )
    assert outcome.code == 75, outcome.output
    assert command_in(outcome.output, "start it again with") == ["verify", "checkpoints", str(run)]


def interrupt_while_importing(arguments: list[str]) -> None:
    import builtins
    import sys

    from clip_hba_behavior.cli import main

    plain = builtins.__import__

    def interrupting(name: str, *others: Any, **more: Any) -> Any:
        if name == "clip_hba_behavior.run.life":
            raise KeyboardInterrupt
        return plain(name, *others, **more)

    builtins.__import__ = interrupting
    sys.exit(main(arguments))


def test_ctrl_c_while_torch_is_imported_names_the_same_command(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    typed = [
        "train",
        str(write_config(tmp_path / "config.yaml", small_config)),
        "--run-dir",
        str(tmp_path / "run"),
    ]
    outcome = fresh_process.call(interrupt_while_importing, typed, output=tmp_path / "output.txt")
    assert outcome.code == 75, outcome.output
    assert command_in(outcome.output, "start it again with") == typed


def test_in_python_the_error_is_one_of_the_package_and_names_the_command(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    outcome = fresh_process.call(
        train_in_python, small_config | {"run_dir": str(tmp_path / "run")}, output=tmp_path / "output.txt"
    )
    assert outcome.code == 0, outcome.output
    assert f"{InterruptedRunError.__name__}: stopped by SIGTERM after epoch " in outcome.output
    assert command_in(outcome.output, "go on with") == ["resume", str(tmp_path / "run")]


def train_in_python(keys: dict[str, Any]) -> None:
    import threading

    def wait_and_ask_to_leave() -> None:
        while not Path(keys["run_dir"], "dora_params/epoch1_dora_params.pth").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait_and_ask_to_leave, daemon=True).start()
    try:
        run_behavioral_training(keys | {"epochs": 400, "early_stopping_patience": 400})
    except ClipHbaError as error:
        print(f"{type(error).__name__}: {error}")
