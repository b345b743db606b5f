"""What the keys of a fork and of a perturbation do where they have no effect or no place."""

import json
from pathlib import Path
from typing import Any

import pytest

from fork_tools import ClipHba, forked
from run_tools import differences, write_config


def test_the_log_says_that_a_window_in_a_configuration_is_cut(
    keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    window = {"perturb_type": "label_shuffle", "perturb_epoch": 2, "perturb_length": 3, "epochs": 2}
    config = write_config(tmp_path / "c.yaml", keys, **window)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.output
    assert "Perturbed by label_shuffle: epoch 2; 2 more would be beyond the last epoch, 2" in outcome.output


def test_a_key_without_effect_is_left_out_with_one_line_in_the_log(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    plain = forked(clip_hba, baseline, tmp_path / "plain", 3, "--perturb", "uniform_images")
    options = ["--perturb", "uniform_images", "--perturb-seed", 11, "--perturb-distribution", "target"]
    fork = forked(clip_hba, baseline, tmp_path / "fork", 3, *options)
    line = "No effect with perturb_type uniform_images, so left out: perturb_seed 11, perturb_distribution target"
    assert (fork / "training_log.txt").read_text().count(line) == 1
    assert differences(plain, fork) == []
    assert (fork / "config.yaml").read_text() == (plain / "config.yaml").read_text().replace("/plain", "/fork")
    found, expected = (
        json.loads((each / "environment.json").read_text().replace(str(each), "RUN")) for each in (fork, plain)
    )
    assert found == expected  # the provenance too
    outcome = clip_hba("resume", fork)
    assert outcome.code == 0, outcome.output
    assert "No effect" not in outcome.output
    outcome = clip_hba("resume", fork, "--set", "perturb_seed=5")
    assert outcome.code == 0, outcome.output
    assert "left out: perturb_seed 5" in outcome.output
    outcome = clip_hba("verify", "checkpoints", fork, "--epochs", 3, "--set", "perturb_seed=11")
    assert outcome.code == 0, outcome.output


@pytest.mark.parametrize("key", ["fork_early_stopping=inherit", "fork_reseed=3"])
def test_keys_of_a_fork_are_refused_where_there_is_none(
    key: str, keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba(
        "train", write_config(tmp_path / "c.yaml", keys), "--set", key, "--run-dir", tmp_path / "run"
    )
    assert outcome.code == 2
    assert f"{key.partition('=')[0]}: only for a fork" in outcome.output
