"""A run that starts with another run's state: training_run and baseline_dora_directory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_hba_behavior.run.checkpoint import parameters_digest, read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from fresh_process import Outcome
from run_tools import write_config

ClipHba = Callable[..., Outcome]


@pytest.fixture
def baseline(clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path) -> Path:
    keys = {"lr_schedule": "cosine", "dora_dropout": 0.1, "random_seed": 5}
    config = write_config(tmp_path / "baseline.yaml", small_config, **keys)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "baseline")
    assert outcome.code == 0, outcome.output
    return tmp_path / "baseline"


def fork(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, checkpoints: Path, **changes: Any
) -> tuple[Outcome, Path]:
    """Start a fork whose config names the data and little else."""
    keys = {
        key: value for key, value in small_config.items() if key not in ("num_threads", "lr", "rank", "batch_size")
    }
    keys |= {"training_run": 3, "baseline_dora_directory": str(checkpoints), "epochs": 500}
    config = write_config(tmp_path / "fork.yaml", keys | changes)
    return clip_hba("train", config, "--run-dir", tmp_path / "fork"), tmp_path / "fork"


def test_an_unperturbed_fork_is_its_baseline(
    baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    outcome, forked = fork(clip_hba, small_config, tmp_path, baseline / "dora_params")
    assert outcome.code == 0, outcome.output
    assert "Restored RNG states from checkpoint" in outcome.output

    theirs, mine = (list_checkpoints(run / "dora_params") for run in (baseline, forked))
    assert list(mine) == [2, 3, 4]  # it ends where its baseline ended
    assert mine[2].read_bytes() == theirs[2].read_bytes()
    for epoch in mine:
        assert read_checkpoint(mine[epoch]).state_digest == read_checkpoint(theirs[epoch]).state_digest
    rows, their_rows = ((run / "training_res.csv").read_text().splitlines() for run in (forked, baseline))
    assert rows == [their_rows[0], *their_rows[3:]]
    lines = (baseline / "steps.jsonl").read_text().splitlines()
    assert (forked / "steps.jsonl").read_text().splitlines() == [
        line for line in lines if json.loads(line)["epoch"] >= 3
    ]
    parent = json.loads((forked / "environment.json").read_text())["parent"]
    assert parent["state_digest"] == read_checkpoint(theirs[2]).state_digest


def test_a_fork_is_resumed_like_any_run(
    baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    _, forked = fork(clip_hba, small_config, tmp_path, baseline / "dora_params", lr=0.01)
    newest = checkpoint_path(forked / "dora_params", 4)
    before = newest.read_bytes()
    for epoch in (3, 4):
        checkpoint_path(forked / "dora_params", epoch).unlink()
    outcome = clip_hba("resume", forked)
    assert outcome.code == 0, outcome.output
    assert newest.read_bytes() == before
    assert read_checkpoint(newest).state_digest != (
        read_checkpoint(checkpoint_path(baseline / "dora_params", 4)).state_digest
    )


def test_a_fork_of_another_seed_is_refused(
    baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    outcome, forked = fork(clip_hba, small_config, tmp_path, baseline / "dora_params", random_seed=6)
    assert outcome.code == 2
    assert "of another random_seed" in outcome.output
    assert "in checkpoint: 5\n  in the config: 6" in outcome.output
    assert not forked.exists()


def test_a_fork_on_other_data_is_refused(
    baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text(Path(str(small_config["prompts_file"])).read_text().replace("red", "ruby"))
    outcome, forked = fork(clip_hba, small_config, tmp_path, baseline / "dora_params", prompts_file=str(prompts))
    assert outcome.code == 2
    assert "the digest of the prompts\n    in parent:  " in outcome.output
    assert not forked.exists()


def test_a_forks_own_weight_decay_takes_the_place_of_its_parents(
    baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    outcome, forked = fork(clip_hba, small_config, tmp_path, baseline / "dora_params", weight_decay=0.5, epochs=3)
    assert outcome.code == 0, outcome.output
    theirs, mine = (
        read_checkpoint(checkpoint_path(run / "dora_params", 3)).whole_state() for run in (baseline, forked)
    )
    assert [group["weight_decay"] for group in mine.optimizer_state["param_groups"]] == [0.5]
    assert parameters_digest(mine.parameters) != parameters_digest(theirs.parameters)


def test_a_fork_of_another_rank_is_refused(
    baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    outcome, forked = fork(clip_hba, small_config, tmp_path, baseline / "dora_params", rank=8)
    assert outcome.code == 2
    assert "the checkpoint does not fit the model" in outcome.output
    assert "in checkpoint: ((4, 128), torch.float32)\n    in model:      ((8, 128)" in outcome.output
    assert not forked.exists()


@pytest.mark.parametrize("with_random_state", [True, False], ids=["with random state", "without"])
def test_an_old_checkpoint_starts_a_fork_with_a_warning(
    with_random_state: bool, baseline: Path, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    new = torch.load(checkpoint_path(baseline / "dora_params", 2))
    old = {key: value for key, value in new.items() if key.startswith("clip_model.")}
    if with_random_state:
        old["rng_state"] = new["rng_state"]
    directory = tmp_path / "old"
    directory.mkdir()
    torch.save(old, directory / "epoch2_dora_params.pth")
    keys = {key: small_config[key] for key in ("rank", "lr", "num_threads", "batch_size")}
    outcome, forked = fork(clip_hba, small_config, tmp_path, directory, epochs=3, random_seed=5, **keys)
    assert outcome.code == 0, outcome.output
    assert "results move by about 1-5 %" in outcome.output
    warned = "WARNING: No RNG states in checkpoint. Batch order will differ." in outcome.output
    assert warned == (not with_random_state)
    assert list(list_checkpoints(forked / "dora_params")) == [2, 3]

    first = read_checkpoint(checkpoint_path(forked / "dora_params", 2))
    assert first.provenance["parent"]["whole"] is False
    complete = read_checkpoint(checkpoint_path(baseline / "dora_params", 2))
    for name, value in complete.parameters.items():
        assert first.parameters[name].numpy().tobytes() == value.numpy().tobytes()
    batches = [
        [
            json.loads(line).get("batch")
            for line in (run / "steps.jsonl").read_text().splitlines()
            if '"epoch": 3' in line
        ]
        for run in (baseline, forked)
    ]
    assert (batches[0] == batches[1]) == with_random_state


def test_the_guides_entry_points_train_and_continue(
    small_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, as a notebook would: the dict, then training_run = 2."""
    from clip_hba_behavior import load_and_restore_rng_state, run_behavioral_training

    keys = small_config | {"epochs": 2}
    first = run_behavioral_training(keys | {"run_dir": tmp_path / "first"})
    second = run_behavioral_training(
        keys
        | {"run_dir": tmp_path / "second", "training_run": 2, "baseline_dora_directory": first / "dora_params"}
    )
    states = [read_checkpoint(checkpoint_path(run / "dora_params", 2)).state_digest for run in (first, second)]
    assert states[0] == states[1]
    output = capsys.readouterr().out
    assert "Saved RNG states for reproducibility" in output
    assert "Restored RNG states from checkpoint for reproducible shuffle order" in output
    assert load_and_restore_rng_state(torch.load(checkpoint_path(first / "dora_params", 1)))


def test_the_guides_script_trains(tmp_path: Path, small_config: dict[str, Any]) -> None:
    import fresh_process

    outcome = fresh_process.call(
        run_script, small_config | {"epochs": 1, "run_dir": str(tmp_path / "run")}, output=tmp_path / "output.txt"
    )
    assert outcome.code == 0, outcome.output
    assert list(list_checkpoints(tmp_path / "run/dora_params")) == [0, 1]


def run_script(keys: dict[str, Any]) -> None:
    import sys

    from clip_hba_behavior.cli import exit_code_of
    from clip_hba_behavior.training_scripts import cvpr_train_behavior

    cvpr_train_behavior.config |= keys
    sys.exit(exit_code_of(cvpr_train_behavior.main))
