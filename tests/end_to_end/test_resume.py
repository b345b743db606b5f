"""A run that is resumed is the run that was never interrupted."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state, restore_rng_state
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.training.state import TrainingState
from fresh_process import Outcome
from run_tools import differences, finished, rewrite_state

ClipHba = Callable[..., Outcome]

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: (keys of the run, keys set when it is resumed)
    "plain": ({}, {}),
    "cosine schedule": ({"lr_schedule": "cosine", "lr_min": 1e-5}, {}),
    "warm-up and cosine schedule": ({"lr_schedule": "warmup_cosine", "lr_warmup_epochs": 2}, {}),
    "dropout": ({"dora_dropout": 0.3}, {}),
    "augmentation": ({"augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"]}, {}),
    "two workers": ({"augmentation": ["horizontal_flip"], "num_workers": 2}, {}),
    "more workers after": (
        {"augmentation": ["random_resized_crop"], "dora_dropout": 0.1, "num_workers": 0},
        {"num_workers": 2},
    ),
    "fewer workers after": ({"augmentation": ["color_jitter"], "num_workers": 2}, {"num_workers": 0}),
    "one and two layers": ({"vision_layers": 1, "transformer_layers": 2}, {}),
    "bfloat16": ({"precision": "bfloat16", "dora_dropout": 0.1}, {}),
    "TF32 on a GPU": ({"device": "cuda", "precision": "tf32"}, {}),
    "bfloat16 on a GPU": ({"device": "cuda", "precision": "bfloat16"}, {}),
    "on a GPU": ({"device": "cuda", "dora_dropout": 0.1, "augmentation": ["random_resized_crop"]}, {}),
    # the test loss rises at this rate, so the run stops early; the counters decide where
    "early stop": ({"lr": 0.3, "early_stopping_patience": 3, "epochs": 30}, {}),
}


def run_baseline(clip_hba: ClipHba, tmp_path: Path, keys: dict[str, Any]) -> Path:
    return finished(clip_hba, tmp_path, keys, "baseline")


ALWAYS = ("plain", "dropout", "augmentation")  # the others are resumed from every epoch by the system tests


def marked(variant: str, is_every: bool) -> Any:
    marks = []
    if is_every and variant not in ALWAYS:
        marks.append(pytest.mark.system)
    if "on a GPU" in variant:
        no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
        marks += [pytest.mark.cuda, no_gpu]
    return pytest.param(variant, is_every, marks=marks, id=f"{variant}, {'every' if is_every else 'some'}")


@pytest.mark.parametrize(
    ("variant", "is_every"),
    [
        *(marked(variant, True) for variant in VARIANTS),
        *(marked(variant, False) for variant in VARIANTS if variant not in ALWAYS),
    ],
)
def test_resume_from_any_epoch_equals_the_uninterrupted_run(
    variant: str,
    is_every: bool,
    clip_hba: ClipHba,
    tmp_path: Path,
    small_config: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys, changes = VARIANTS[variant]
    if "workers" in variant:
        monkeypatch.setenv(fresh_process.SERVER_IN_ADVANCE, "1")
    baseline = run_baseline(clip_hba, tmp_path, small_config | keys)
    epochs = list(list_checkpoints(baseline / "dora_params"))
    assert len(epochs) >= 4
    if variant == "early stop":
        assert len(epochs) < 15
        assert "Stopped early" in (baseline / "training_log.txt").read_text()
    settings = [f"--set={key}={value}" for key, value in changes.items()]
    for epoch in epochs if is_every else (1, epochs[-2]):
        resumed = tmp_path / f"from{epoch}"
        outcome = clip_hba("resume", baseline, "--from-epoch", epoch, "--run-dir", resumed, *settings)
        assert outcome.code == 0, outcome.output
        assert differences(baseline, resumed) == []


def test_resume_in_place_goes_on_from_the_newest_checkpoint(
    clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    uninterrupted = run_baseline(clip_hba, tmp_path, small_config)
    half = finished(clip_hba, tmp_path, small_config, "half", epochs=2)
    outcome = clip_hba("resume", half, "--set", "epochs=4")
    assert outcome.code == 0, outcome.output
    assert "Restored RNG states from checkpoint for reproducible shuffle order" in outcome.output
    assert differences(uninterrupted, half) == []


def test_rows_and_lines_beyond_the_newest_checkpoint_are_written_again(
    clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    uninterrupted = run_baseline(clip_hba, tmp_path, small_config)
    torn = tmp_path / "torn"
    shutil.copytree(uninterrupted, torn)
    checkpoint_path(torn / "dora_params", 4).unlink()
    with (torn / "steps.jsonl").open("a") as file:
        file.write('{"epoch": 5, "st')
    assert clip_hba("resume", torn).code == 0
    assert differences(uninterrupted, torn) == []
    # what was cut short belongs to an epoch that is not trained yet: it stays pending
    assert [path.name for path in torn.glob("*.pending")] == ["steps.jsonl.pending"]
    assert (torn / "steps.jsonl.pending").read_text() == '{"epoch": 5, "st'


def test_a_repetition_that_differs_is_refused(
    clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    run = run_baseline(clip_hba, tmp_path, small_config)
    checkpoint_path(run / "dora_params", 4).unlink()
    ledger = run / "steps.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    lines[-2] = lines[-2].replace('"loss": ', '"loss": 1')
    ledger.write_text("".join(lines))
    outcome = clip_hba("resume", run)
    assert outcome.code == 1
    assert "did not repeat what it had recorded" in outcome.output


def test_a_missing_results_file_is_made_again_from_the_checkpoints(
    clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    uninterrupted = run_baseline(clip_hba, tmp_path, small_config)
    before = (uninterrupted / "training_res.csv").read_bytes()
    (uninterrupted / "training_res.csv").unlink()
    assert clip_hba("resume", uninterrupted).code == 0
    assert (uninterrupted / "training_res.csv").read_bytes() == before


# --- negative twins: what is left out must show -----------------------------------------------------


def without_optimizer_state(state: TrainingState) -> TrainingState:
    return dataclasses.replace(state, optimizer_state=state.optimizer_state | {"state": {}})


def without_random_state(state: TrainingState) -> TrainingState:
    torch.manual_seed(0)
    return dataclasses.replace(state, rng_state=capture_rng_state())


def with_one_extra_draw(state: TrainingState) -> TrainingState:
    restore_rng_state(state.rng_state)
    torch.empty((), dtype=torch.int64).random_()
    return dataclasses.replace(state, rng_state=capture_rng_state())


def without_early_stopping_counters(state: TrainingState) -> TrainingState:
    counters = state.early_stopping_state | {"epochs_no_improve": 0}
    return dataclasses.replace(state, early_stopping_state=counters)


@pytest.mark.parametrize(
    ("leave_out", "variant", "shows_in"),
    [
        (without_optimizer_state, "plain", "parameters/clip_model"),
        (without_random_state, "plain", "rng_state/torch_rng_state"),
        (with_one_extra_draw, "plain", "parameters/clip_model"),
        (without_random_state, "dropout", "parameters/clip_model"),
        (without_early_stopping_counters, "early stop", "epochs ["),
    ],
    ids=lambda value: getattr(value, "__name__", value).replace("_", " "),
)
def test_resume_without_a_piece_of_state_does_not_equal_the_uninterrupted_run(
    leave_out: Callable[[TrainingState], TrainingState],
    variant: str,
    shows_in: str,
    clip_hba: ClipHba,
    tmp_path: Path,
    small_config: dict[str, Any],
) -> None:
    baseline = run_baseline(clip_hba, tmp_path, small_config | VARIANTS[variant][0])
    epoch = max(list_checkpoints(baseline / "dora_params")) - 1
    crippled = tmp_path / "crippled"
    shutil.copytree(baseline, crippled)
    path = checkpoint_path(crippled / "dora_params", epoch)
    rewrite_state(path, leave_out(read_checkpoint(path).whole_state()))
    resumed = tmp_path / "resumed"
    outcome = clip_hba("resume", crippled, "--from-epoch", epoch, "--run-dir", resumed)
    assert outcome.code == 1, outcome.output
    assert "steps.jsonl: the run did not repeat what it had recorded" in outcome.output

    # the ledger shows it at once; without it the run continues, and ends in another state
    shutil.rmtree(resumed)
    (crippled / "steps.jsonl").unlink()
    (crippled / "training_res.csv").unlink()
    outcome = clip_hba("resume", crippled, "--from-epoch", epoch, "--run-dir", resumed)
    assert outcome.code == 0, outcome.output
    found = [each for each in differences(baseline, resumed) if not each.startswith(f"epoch {epoch}:")]
    assert any(shows_in in each for each in found), found
