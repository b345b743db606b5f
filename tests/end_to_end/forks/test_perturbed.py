"""`clip-hba fork`: a run that starts with another's state, is perturbed for some epochs, and trains on."""

import logging
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.life import start_fork
from clip_hba_behavior.verification.seed import epoch_batches
from fork_tools import KINDS, LAST, ClipHba, batches, forked, later, parent_of, state_of
from run_tools import differences, write_config


@pytest.mark.parametrize("at_epoch", [1, 3, LAST])
def test_an_unperturbed_fork_repeats_its_baseline_byte_for_byte(
    at_epoch: int, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", at_epoch, "--perturb", "none")
    first = checkpoint_path(fork / "dora_params", at_epoch - 1)
    assert first.read_bytes() == checkpoint_path(baseline / "dora_params", at_epoch - 1).read_bytes()
    assert list(list_checkpoints(fork / "dora_params")) == list(range(at_epoch - 1, LAST + 1))
    assert later(fork, at_epoch) == later(baseline, at_epoch)
    assert [row.rsplit(",", 3)[1:] for row in later(fork, at_epoch)[1]] == [["False", "False", "none"]] * (
        LAST + 1 - at_epoch
    )
    parent = parent_of(fork)
    assert (parent["run"], parent["epoch"], parent["changed"]) == (str(baseline), at_epoch - 1, {})
    assert parent["state_digest"] == read_checkpoint(first).state_digest


@pytest.mark.system
@pytest.mark.parametrize("kind", KINDS)
def test_a_perturbed_fork_is_verified_resumed_and_back_in_its_baselines_order(
    kind: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *KINDS[kind], "--perturb-length", 2)
    name = KINDS[kind][1]
    columns = [row.rsplit(",", 3)[1:] for row in later(fork, 2)[1]]
    used = [str(name == "random_target"), str(name == "label_shuffle"), name]
    assert columns == [used, used, ["False", "False", "none"], ["False", "False", "none"]]
    theirs, mine = batches(baseline), batches(fork)
    for epoch in (2, 3):
        assert len(mine[epoch]) == len(theirs[epoch])
        assert not set(mine[epoch]) & set(theirs[epoch])
    assert (mine[4], mine[5]) == (theirs[4], theirs[5])
    assert state_of(fork, 5).rng_state.keys() == state_of(baseline, 5).rng_state.keys()
    assert digest(state_of(fork, 5).rng_state) == digest(state_of(baseline, 5).rng_state)
    assert digest(state_of(fork, 5).parameters) != digest(state_of(baseline, 5).parameters)

    outcome = clip_hba("verify", "checkpoints", fork)
    assert outcome.code == 0, outcome.output
    assert "reproducible: 4 of 4 epochs" in outcome.output
    assert_resumes(clip_hba, fork, 2, tmp_path)  # within the window


def assert_resumes(clip_hba: ClipHba, run: Path, epoch: int, tmp_path: Path) -> None:
    resumed = tmp_path / f"from{epoch}"
    outcome = clip_hba("resume", run, "--from-epoch", epoch, "--run-dir", resumed)
    assert outcome.code == 0, outcome.output
    assert differences(run, resumed) == []


@pytest.mark.parametrize(
    "kind", [each if each == "random_target" else pytest.param(each, marks=pytest.mark.system) for each in KINDS]
)
def test_a_perturbed_fork_is_resumed_from_every_epoch(
    kind: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *KINDS[kind], "--perturb-length", 2)
    assert list(list_checkpoints(fork / "dora_params")) == [1, 2, 3, 4, 5]
    for epoch in (1, 3, 4, 5):
        assert_resumes(clip_hba, fork, epoch, tmp_path)


@pytest.mark.parametrize("kind", ["random_target", "label_shuffle", "image_noise", "uniform_images", "reorder"])
def test_a_state_within_a_perturbed_epoch_goes_on_as_the_epoch_did(
    kind: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *KINDS[kind], "--epochs", 2)
    config = RunDirectory(fork).read_config()
    trainer = build_trainer(config, Session(logging.getLogger("test")))[0]
    trainer.restore(state_of(fork, 1))
    steps, states = [], []
    for step in trainer.steps():
        steps.append(step)
        states.append(trainer.snapshot())
    assert [step.batch_digest for step in steps] == batches(fork)[2]
    for num_done, state in enumerate(states, start=1):
        trainer.restore(state)
        assert list(trainer.steps()) == steps[num_done:]
        trainer.finish_epoch()
        assert trainer.snapshot().digest() == state_of(fork, 2).digest()


@pytest.mark.parametrize("kind", ["random_target", "image_noise", "reorder"])
def test_a_fork_that_is_stopped_within_a_perturbed_epoch_ends_as_the_one_that_was_not(
    kind: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    options = ["--at-epoch", "2", *KINDS[kind], "--epochs", "3", "--set", "batch_size=2"]
    uninterrupted, fork = tmp_path / "uninterrupted", tmp_path / "fork"
    assert clip_hba("fork", baseline, *options, "--run-dir", uninterrupted).code == 0
    arguments = ["fork", str(baseline), *options, "--run-dir", str(fork)]
    process = fresh_process.start(fresh_process.clip_hba, arguments, output=tmp_path / "stopped.txt")
    ledger, deadline = fork / "steps.jsonl", time.monotonic() + 120
    while not ledger.exists() or '"step": 3,' not in ledger.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 75, (tmp_path / "stopped.txt").read_text()
    assert list(list_checkpoints(fork / "dora_params")) == [1]
    outcome = clip_hba("resume", fork)
    assert outcome.code == 0, outcome.output
    assert differences(uninterrupted, fork) == []


def test_another_perturbation_than_the_runs_is_found_by_verify(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *KINDS["random_target"], "--epochs", 3)
    file = fork / "config.yaml"
    file.write_text(file.read_text().replace("perturb_seed: 7", "perturb_seed: 8"))
    outcome = clip_hba("verify", "checkpoints", fork)
    assert outcome.code == 1, outcome.output
    # each epoch repeats under the seed in its own file; nothing on record lets it differ from the run's
    assert outcome.output.count("Maximum parameter difference: 0.00e+00  (0 bits differ)") == 2
    for epoch in (2, 3):
        assert f"perturb_seed was 7 in epoch {epoch}, its file says; the run's is 8" in outcome.output
    assert "problem: perturb_seed: the run's files and its checkpoints disagree" in outcome.output


def test_the_old_keys_give_the_same_fork(
    keys: dict[str, Any], baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 3, *KINDS["random_target"])
    data = {key: value for key, value in keys.items() if key.endswith(("file", "dir")) or key == "device"}
    data |= {"training_run": 3, "baseline_dora_directory": str(baseline / "dora_params"), "run_dir": "unused"}
    data |= {"perturb_type": "random_target", "perturb_epoch": 3, "perturb_seed": 7}
    config = write_config(tmp_path / "old.yaml", data)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "old")
    assert outcome.code == 0, outcome.output
    assert differences(fork, tmp_path / "old") == []
    assert parent_of(tmp_path / "old") == parent_of(fork)
    assert parent_of(fork)["changed"] == {
        "perturb_type": {"parent": "none", "fork": "random_target"},
        "perturb_epoch": {"parent": None, "fork": 3},
        "perturb_seed": {"parent": 0, "fork": 7},
    }


def test_a_run_that_is_no_fork_can_be_perturbed_too(
    keys: dict[str, Any], baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 3, *KINDS["label_shuffle"])
    more = {"perturb_type": "label_shuffle", "perturb_epoch": 3, "lr_schedule_epochs": LAST}
    config = write_config(tmp_path / "complete.yaml", keys | more)
    assert clip_hba("train", config, "--run-dir", tmp_path / "complete").code == 0
    assert later(tmp_path / "complete", 2)[0] == later(fork, 2)[0]


def test_images_are_perturbed_between_augmented_epochs(
    keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys | {"augmentation": ["random_resized_crop"], "epochs": 3})
    assert clip_hba("train", config, "--run-dir", tmp_path / "baseline").code == 0
    fork = forked(clip_hba, tmp_path / "baseline", tmp_path / "fork", 2, *KINDS["image_noise"])
    assert batches(fork)[3] == batches(tmp_path / "baseline")[3]
    assert clip_hba("verify", "checkpoints", fork).code == 0


@pytest.mark.system
@pytest.mark.parametrize("augmentation", [[], ["random_resized_crop"]])
def test_a_reordered_epoch_has_the_same_images_and_targets_in_another_order(
    augmentation: list[str], keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys | {"augmentation": augmentation, "epochs": 3})
    assert clip_hba("train", config, "--run-dir", tmp_path / "baseline").code == 0
    fork = forked(clip_hba, tmp_path / "baseline", tmp_path / "fork", 2, *KINDS["reorder"])
    other = forked(clip_hba, tmp_path / "baseline", tmp_path / "other", 2, "--perturb", "reorder")  # seed 0
    used = {run: trained_with(run, 2) for run in (tmp_path / "baseline", fork, other)}
    assert len({tuple(order) for order in used.values()}) == 3
    assert len({tuple(sorted(order)) for order in used.values()}) == 1
    assert batches(fork)[3] == batches(tmp_path / "baseline")[3]
    assert digest(state_of(fork, 3).rng_state) == digest(state_of(tmp_path / "baseline", 3).rng_state)
    outcome = clip_hba("verify", "checkpoints", fork)
    assert outcome.code == 0, outcome.output
    assert "Batch order: 3 of 3 batches equal" in outcome.output


def trained_with(run: Path, epoch: int) -> list[str]:
    """Of each image in turn what a step got of it: a digest of its frozen features and its targets."""
    trainer = build_trainer(RunDirectory(run).read_config(), Session(logging.getLogger("test")))[0]
    trainer.restore(state_of(run, epoch - 1))
    seen: list[str] = []
    step = trainer._step

    def look(batch: Any) -> float:
        seen.extend(
            digest([features, targets]) for features, targets in zip(batch.features, batch.targets, strict=True)
        )
        return step(batch)

    trainer._step = look  # type: ignore[method-assign]
    assert [each.batch_digest for each in trainer.steps()] == batches(run)[epoch]
    return seen


def test_the_images_of_a_reordered_batch_are_derived_from_the_random_states_alone(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *KINDS["reorder"], "--epochs", 2)
    start = state_of(fork, 1).rng_state
    found = epoch_batches(RunDirectory(fork).read_config(), 60, start, 2)
    calm = epoch_batches(RunDirectory(baseline).read_config(), 60, start, 2)
    assert sorted(torch.cat(found).tolist()) == sorted(torch.cat(calm).tolist())
    trainer = build_trainer(RunDirectory(fork).read_config(), Session(logging.getLogger("test")))[0]
    targets = trainer.inputs.targets
    assert [trainer._batch_digest(rows, targets[rows]) for rows in found] == batches(fork)[2]
    assert [trainer._batch_digest(rows, targets[rows]) for rows in calm] == batches(baseline)[2]


@pytest.mark.system
def test_many_forks_in_one_process_are_those_of_a_process_each(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    """As a sweep starts them."""
    alone = forked(clip_hba, baseline, tmp_path / "alone", 3, *KINDS["image_noise"], "--epochs", 4)
    settings = {"perturb_type": "image_noise", "epochs": 4}
    for number in range(2):
        start_fork(baseline, 2, {"perturb_type": "label_shuffle"}, tmp_path / f"other{number}")
        found = start_fork(baseline, 3, settings, tmp_path / f"fork{number}")
        assert differences(alone, found) == []
