"""Whoever asks for what cannot be is told what can, with a command that works as it stands."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from fresh_process import Outcome
from run_tools import finished, offered, trained, write_config

ClipHba = Callable[..., Outcome]


def newest(run: Path) -> int:
    return max(list_checkpoints(run / "dora_params"))


def test_resume_of_a_finished_run_names_the_command_that_trains_further(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, "my run", epochs=1)
    outcome = clip_hba("resume", run / "dora_params")
    assert outcome.code == 0, outcome.output
    assert "Nothing was left to train" in outcome.output
    further = offered(outcome.output, "to train further:")
    assert further == ["resume", str(run), "--set", "epochs=2"]
    outcome = clip_hba(*further)
    assert (outcome.code, newest(run)) == (0, 2)
    assert "Nothing was left" not in outcome.output


def test_resume_of_a_run_that_stopped_early_names_the_patience(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, lr=0.3, early_stopping_patience=1, epochs=9)
    stopped = newest(run)
    assert stopped < 9
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output
    further = offered(outcome.output, "to train further:")
    assert further == ["resume", str(run), "--set", "early_stopping_patience=2"]
    assert clip_hba(*further).code == 0
    assert newest(run) > stopped


def test_a_directory_that_is_no_place_for_a_run_is_refused_with_one_that_is(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=0)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/todo.txt").write_text("mine")
    (tmp_path / "notes/config.yaml").write_text("of: another program")
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "notes")
    assert outcome.code == 2, outcome.output
    assert "is not empty, and holds no run: found config.yaml, todo.txt" in outcome.output
    assert f"give another --run-dir, such as {tmp_path / 'notes-2'}" in outcome.output
    assert "resume" not in outcome.output
    for path in ("notes/todo.txt", "notes/todo.txt/run"):
        outcome = clip_hba("train", config, "--run-dir", tmp_path / path)
        assert outcome.code == 2, outcome.output
        assert f"cannot be: {tmp_path / 'notes/todo.txt'} is a file" in outcome.output
        assert f"give another --run-dir, such as {tmp_path / 'notes/todo.txt-2'}" in outcome.output
    assert sorted(each.name for each in (tmp_path / "notes").iterdir()) == ["config.yaml", "todo.txt"]


def test_a_directory_that_holds_a_run_is_refused_with_the_command_that_goes_on(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = trained(clip_hba, tmp_path, small_config, "my run", epochs=0)
    outcome = clip_hba("train", tmp_path / "my run.yaml", "--run-dir", run)
    assert outcome.code == 2, outcome.output
    assert f"such as '{tmp_path / 'my run-2'}'" in outcome.output
    assert clip_hba(*offered(outcome.output, "go on with:")).code == 0


@pytest.mark.parametrize(
    "arguments", [["resume", "RUN"], ["fork", "RUN", "--at-epoch", "1", "--perturb", "none", "--run-dir", "new"]]
)
def test_the_run_of_a_loop_of_ones_own_is_sent_to_its_script(
    arguments: list[str], clip_hba: ClipHba, tmp_path: Path
) -> None:
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/run.json").write_text("{}")
    outcome = clip_hba(*(str(tmp_path / "loop") if each == "RUN" else each for each in arguments))
    assert outcome.code == 2, outcome.output
    assert f"{tmp_path / 'loop'} is the run of a training loop of your own" in outcome.output
    assert "start your script again" in outcome.output
    assert f"import fork; fork('{tmp_path / 'loop'}', EPOCH, NEW)" in outcome.output
