"""Commands that only look, and the demo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_hba_behavior.config import make_config
from clip_hba_behavior.verification.demo import EXPECTED
from fresh_process import Outcome
from run_tools import write_config

ClipHba = Callable[..., Outcome]


def test_dry_run_prints_the_resolved_configuration_and_writes_nothing(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config)
    outcome = clip_hba("train", config, "--set", "epochs=7", "--run-dir", tmp_path / "run", "--dry-run")
    assert outcome.code == 0, outcome.output
    resolved = make_config(yaml.safe_load(outcome.output))
    assert (resolved.epochs, resolved.lr_schedule_epochs, resolved.device) == (7, 7, "cpu")
    assert resolved.run_dir == str(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_inspect_shows_a_checkpoint(clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=1)
    assert clip_hba("train", config, "--run-dir", tmp_path / "run").code == 0
    outcome = clip_hba("inspect", tmp_path / "run/dora_params/epoch1_dora_params.pth")
    assert outcome.code == 0
    for words in ("the complete training state", "1 completed, 0 steps", "resblocks.3.attn.out_proj.m", "weights"):
        assert words in outcome.output


def test_a_changed_picture_of_the_synthetic_data_set_is_drawn_again_and_named(
    clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", {"cache_dir": str(tmp_path / "cache")})
    first = clip_hba("data", "check", config)
    assert first.code == 0, first.output
    assert "changed" not in first.output
    picture = tmp_path / "cache/standin/images/drawn_0007.png"
    before = picture.read_bytes()
    picture.write_bytes(b"edited")
    second = clip_hba("data", "check", config)
    assert second.code == 0, second.output
    assert "standin had been changed; as drawn again: images/drawn_0007.png" in second.output
    assert picture.read_bytes() == before
    assert clip_hba("data", "check", config).output == first.output


def test_progress_lines_stay_out_of_a_log_without_a_terminal(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=1)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert "Epoch 1/1: train loss " in outcome.output
    assert "\x1b" not in outcome.output
    assert "\r" not in outcome.output
    assert "Epoch 1/1: train loss " in (tmp_path / "run/training_log.txt").read_text()


@pytest.mark.system
def test_the_demo_learns_and_its_resumed_half_is_the_same_bits(clip_hba: ClipHba, tmp_path: Path) -> None:
    outcome = clip_hba("demo", "--run-dir", tmp_path / "demo")
    assert outcome.code == 0, outcome.output
    assert "0 of 29 tensors differ; ledger and results the same bytes" in outcome.output
    assert f"the same bits on every machine: expected {EXPECTED}, found {EXPECTED}" in outcome.output
