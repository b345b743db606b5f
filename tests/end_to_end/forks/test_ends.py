"""Where a fork ends: with its baseline, by its own counters, or where it is told."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.config import DATA_KEYS
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from fork_tools import LAST, ClipHba, command, forked, later, parent_of, state_of
from run_tools import differences, write_config


@pytest.fixture(scope="module")
def stopped(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline that stops early: its test loss rises."""
    directory = tmp_path_factory.mktemp("stopped")
    more = {"lr": 0.3, "early_stopping_patience": 3, "epochs": 12, "lr_schedule": "constant"}
    outcome = command(directory)(
        "train", write_config(directory / "c.yaml", keys | more), "--run-dir", directory / "run"
    )
    assert outcome.code == 0, outcome.output
    assert 3 <= max(list_checkpoints(directory / "run/dora_params")) < 12
    return directory / "run"


@pytest.mark.system
def test_early_stopping_of_a_fork_is_off_inherited_or_fresh(
    stopped: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    last = max(list_checkpoints(stopped / "dora_params"))
    ends = {}
    for mode in ("off", "inherit", "fresh"):
        options = ["--perturb", "none", "--epochs", 12, "--early-stopping", mode]
        fork = forked(clip_hba, stopped, tmp_path / mode, last - 1, *options)
        ends[mode] = max(list_checkpoints(fork / "dora_params"))
        same = checkpoint_path(stopped / "dora_params", last - 2).read_bytes()
        assert checkpoint_path(fork / "dora_params", last - 2).read_bytes() == same
        assert parent_of(fork)["changed"].keys() == ({"fork_early_stopping"} if mode != "off" else set())
    assert ends["off"] == 12
    assert later(tmp_path / "off", last - 1)[2][: len(later(stopped, last - 1)[2])] == later(stopped, last - 1)[2]
    assert ends["inherit"] == last
    assert later(tmp_path / "inherit", last - 1) == later(stopped, last - 1)
    assert "Stopped early" in (tmp_path / "inherit/training_log.txt").read_text()

    fresh = tmp_path / "fresh"
    assert last < ends["fresh"] <= 12
    first = state_of(fresh, last - 1)
    counters = {"best_test_loss": first.metrics["test_loss"], "epochs_no_improve": 0}
    assert first.early_stopping_state == counters
    outcome = clip_hba("resume", fresh, "--from-epoch", last - 2, "--run-dir", tmp_path / "resumed")
    assert outcome.code == 0, outcome.output
    assert differences(fresh, tmp_path / "resumed") == []
    assert clip_hba("verify", "checkpoints", fresh).code == 0
    shutil.copytree(fresh / "dora_params", tmp_path / "bare")  # without config.yaml, the files tell
    data = write_config(
        tmp_path / "data.yaml", RunDirectory(fresh).read_config().model_dump(include=set(DATA_KEYS))
    )
    epochs = f"{last - 1}-{ends['fresh']}"
    outcome = clip_hba("verify", "checkpoints", tmp_path / "bare", "--config", data, "--epochs", epochs)
    assert outcome.code == 0, outcome.output


def test_fresh_counters_start_where_the_baselines_had_run_out(
    stopped: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    last = max(list_checkpoints(stopped / "dora_params"))
    options = ["--perturb", "none", "--epochs", last + 1, "--early-stopping"]
    fork = forked(clip_hba, stopped, tmp_path / "fresh", last + 1, *options, "fresh")
    assert max(list_checkpoints(fork / "dora_params")) == last + 1
    fork = forked(clip_hba, stopped, tmp_path / "inherit", last + 1, *options, "inherit")
    assert max(list_checkpoints(fork / "dora_params")) == last


def test_a_fork_ends_with_its_baseline_unless_epochs_says_otherwise(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    for epochs, end in ((3, 3), (LAST + 1, LAST + 1)):
        fork = forked(clip_hba, baseline, tmp_path / str(epochs), 3, "--perturb", "none", "--epochs", epochs)
        assert max(list_checkpoints(fork / "dora_params")) == end
    assert later(fork, 3)[2][: len(later(baseline, 3)[2])] == later(baseline, 3)[2]
