"""`clip-hba reconstruct`: old runs derived from their seed, and repeated."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from fresh_process import Outcome
from run_tools import finished, recorded_run_keys, write_config

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


def made_old(run: Path, directory: Path, with_random_states: bool) -> Path:
    """What the earlier pipeline would have left of a run: no epoch 0, no optimizer, no provenance."""
    directory.mkdir()
    for epoch, path in list_checkpoints(run / "dora_params").items():
        if epoch > 0:
            content = torch.load(path)
            kept = {name: value for name, value in content.items() if name.startswith("clip_model.")}
            if with_random_states:
                kept["rng_state"] = content["rng_state"]
            torch.save(kept, directory / path.name)
    return directory


def test_the_recorded_run_is_derived_from_its_seed(
    reference: Path, things: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", recorded_run_keys(reference, things))
    outcome = clip_hba("reconstruct", reference / "run/dora", "--config", config)
    assert outcome.code == 0, outcome.output
    assert outcome.output.count("random state equal") == 6
    assert "batch order earlier (detected by the random states of 6 files)" in outcome.output

    directory = tmp_path / "partial"
    outcome = clip_hba("reconstruct", reference / "run/old_no_rng", "--config", config, "--run-dir", directory)
    assert outcome.code == 3, outcome.output
    assert "nothing in the files can confirm it" in outcome.output
    recorded = json.loads((reference / "run/batch_order.json").read_text())
    orders = json.loads((directory / "batch_order.json").read_text())
    assert (orders["train_idx"], orders["test_idx"]) == (recorded["train_idx"], recorded["test_idx"])
    assert list(orders["perms"].values()) == recorded["perms"]
    for epoch in range(1, 7):
        written = read_checkpoint(checkpoint_path(directory / "dora_params", epoch))
        old = read_checkpoint(checkpoint_path(reference / "run/old_no_rng", epoch))
        with_states = read_checkpoint(checkpoint_path(reference / "run/dora", epoch))
        assert digest(written.parameters) == digest(old.parameters)
        assert digest(written.rng_state) == digest(with_states.rng_state)
        assert written.state is None  # it does not pass for complete
    outcome = clip_hba("resume", directory)
    assert outcome.code == 2


def test_the_recorded_run_is_made_whole_by_repeating_it(
    reference: Path, things: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", recorded_run_keys(reference, things))
    run = tmp_path / "complete"
    outcome = clip_hba(
        "reconstruct", reference / "run/old_no_rng", "--config", config, "--run-dir", run, "--train"
    )
    assert outcome.code == 0, outcome.output
    assert "complete: 6 epochs repeated from the seed" in outcome.output
    for epoch in json.loads((run / "reconstruction.json").read_text())["epochs"]:
        assert epoch["largest_difference"] < 1e-6

    with (run / "training_res.csv").open() as file, (reference / "run/training_res.csv").open() as other:
        for mine, theirs in zip(csv.DictReader(file), csv.DictReader(other), strict=True):
            for column in ("train_loss", "test_loss"):
                assert abs(float(mine[column]) / float(theirs[column]) - 1) < 2e-6
    ledger = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    losses = np.array([line["loss"] for line in ledger if "loss" in line])
    recorded = np.array(json.loads((reference / "run/losses.json").read_text())["step_losses"]).ravel()
    assert np.abs(losses / recorded - 1).max() < 2e-6

    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    outcome = clip_hba("resume", run, "--set", "epochs=7")
    assert outcome.code == 0, outcome.output


@pytest.mark.parametrize("train", [False, True])
def test_another_seed_is_named_at_the_first_epoch_and_nothing_is_written(
    train: bool, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config)
    old = made_old(run, tmp_path / "old", with_random_states=not train)
    arguments = ["--config", tmp_path / "run.yaml", "--run-dir", tmp_path / "new", *(["--train"] if train else [])]
    outcome = clip_hba("reconstruct", old, *arguments, "--seed", 2)
    assert outcome.code == 1, outcome.output
    assert "does not fit: the first difference shows at epoch 1: " in outcome.output
    assert ("a parameter by" if train else "the random state: another") in outcome.output
    assert "nothing was written" in outcome.output
    assert not (tmp_path / "new").exists()


def test_a_shifted_random_state_is_measured_in_draws(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    """As the earlier pipeline's own resume left it: one evaluation too many."""
    old = made_old(finished(clip_hba, tmp_path, small_config), tmp_path / "old", with_random_states=True)
    path = old / "epoch3_dora_params.pth"
    content = torch.load(path)
    with torch.random.fork_rng():
        torch.set_rng_state(content["rng_state"]["torch_rng_state"])
        torch.empty((), dtype=torch.int64).random_()
        content["rng_state"]["torch_rng_state"] = torch.get_rng_state()
    torch.save(content, path)
    outcome = clip_hba("reconstruct", old, "--config", tmp_path / "run.yaml")
    assert outcome.code == 1
    assert "at epoch 3: the random state: recorded 1 draw after the derived one" in outcome.output


def test_a_run_that_fits_only_at_first_is_written_as_far_as_it_fits(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config)
    old = made_old(run, tmp_path / "old", with_random_states=False)
    shutil.copy(old / "epoch1_dora_params.pth", old / "epoch3_dora_params.pth")
    arguments = ["--config", tmp_path / "run.yaml", "--run-dir", tmp_path / "new", "--train"]
    outcome = clip_hba("reconstruct", old, *arguments)
    assert outcome.code == 1, outcome.output
    assert "the first difference shows at epoch 3: a parameter by" in outcome.output
    assert list(list_checkpoints(tmp_path / "new/dora_params")) == [0, 1, 2]
    report = json.loads((tmp_path / "new/reconstruction.json").read_text())
    assert report["fits"] is False


@pytest.mark.parametrize("with_random_states", [True, False])
@pytest.mark.parametrize("order", ["earlier", "later", "later_persistent"])
def test_the_order_is_detected_and_the_run_made_whole(
    order: str, with_random_states: bool, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, batch_order=order)
    old = made_old(run, tmp_path / "old", with_random_states)
    config = write_config(tmp_path / "config.yaml", small_config)  # does not name the order
    outcome = clip_hba("reconstruct", old, "--config", config, "--run-dir", tmp_path / "new", "--train")
    assert outcome.code == 0, outcome.output
    assert f"batch order {order} (detected by" in outcome.output
    # the run was one of this project's, so the repetition is that very run
    for epoch, path in list_checkpoints(run / "dora_params").items():
        again = read_checkpoint(checkpoint_path(tmp_path / "new/dora_params", epoch))
        assert again.state_digest == read_checkpoint(path).state_digest

    if not with_random_states and order == "later":
        named = ["--run-dir", tmp_path / "other", "--train", "--order", "earlier"]
        outcome = clip_hba("reconstruct", old, "--config", config, *named)
        assert outcome.code == 1, outcome.output
        assert not (tmp_path / "other").exists()


def test_dropout_leaves_nothing_to_derive(clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    old = made_old(run, tmp_path / "old", with_random_states=True)
    config = write_config(tmp_path / "config.yaml", small_config, dora_dropout=0.1)
    outcome = clip_hba("reconstruct", old, "--config", config)
    assert outcome.code == 2
    assert "random states cannot be derived where training draws too" in outcome.output
