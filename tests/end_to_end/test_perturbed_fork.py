"""`clip-hba fork`: a run that starts with another's state, is perturbed for some epochs, and trains on."""

import itertools
import json
import logging
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.config import DATA_KEYS
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.fork import publish_first_state
from clip_hba_behavior.run.life import start_fork
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.seed import epoch_batches
from fresh_process import Outcome
from run_tools import differences, offered, rewrite_state, write_config

ClipHba = Callable[..., Outcome]

LAST = 5
# cosine and dropout: an epoch depends on its number, and on every draw before it
KEYS = {"epochs": LAST, "lr_schedule": "cosine", "dora_dropout": 0.1, "random_seed": 5}
KINDS: dict[str, list[str]] = {
    "random_target": ["--perturb", "random_target", "--perturb-seed", "7"],
    "random_target of the table": ["--perturb", "random_target", "--perturb-distribution", "target"],
    "label_shuffle": ["--perturb", "label_shuffle"],
    "image_noise": ["--perturb", "image_noise"],
    "uniform_images": ["--perturb", "uniform_images"],
    "reorder": ["--perturb", "reorder", "--perturb-seed", "7"],
    "earlier random_target": ["--perturb", "random_target", "--set", "perturb_rule=earlier"],
    "earlier label_shuffle": ["--perturb", "label_shuffle", "--set", "perturb_rule=earlier"],
}


@pytest.fixture(scope="module")
def keys(standin_data: Path) -> dict[str, Any]:
    names = ("annotations.csv", "images", "inference48.csv", "RDM48_triplet.mat", "prompts.txt")
    more = {"batch_size": 16, "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}
    return {key: str(standin_data / name) for key, name in zip(DATA_KEYS, names, strict=True)} | more | KEYS


def command(directory: Path) -> ClipHba:
    numbers = itertools.count()

    def run(*arguments: object) -> Outcome:
        output = directory / f"output{next(numbers)}.txt"
        return fresh_process.call(fresh_process.clip_hba, [str(each) for each in arguments], output=output)

    return run


@pytest.fixture(scope="module")
def baseline(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all tests: what damages it works on a copy."""
    directory = tmp_path_factory.mktemp("baseline")
    config = write_config(directory / "baseline.yaml", keys)
    outcome = command(directory)("train", config, "--run-dir", directory / "run")
    assert outcome.code == 0, outcome.output
    return directory / "run"


def forked(clip_hba: ClipHba, baseline: Path, fork: Path, at_epoch: int, *options: object) -> Path:
    outcome = clip_hba("fork", baseline, "--at-epoch", at_epoch, *options, "--run-dir", fork)
    assert outcome.code == 0, outcome.output
    return fork


def state_of(run: Path, epoch: int) -> TrainingState:
    return read_checkpoint(checkpoint_path(run / "dora_params", epoch)).whole_state()


def later(run: Path, first: int) -> tuple[dict[int, Any], list[str], list[str]]:
    """States, rows and ledger lines of a run from an epoch on."""
    states = {
        epoch: read_checkpoint(path).state_digest
        for epoch, path in list_checkpoints(run / "dora_params").items()
        if epoch >= first
    }
    rows = (run / "training_res.csv").read_text().splitlines()[1:]
    lines = (run / "steps.jsonl").read_text().splitlines()
    return (
        states,
        [row for row in rows if int(row.partition(",")[0]) >= first],
        [line for line in lines if json.loads(line)["epoch"] >= first],
    )


def batches(run: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in map(json.loads, (run / "steps.jsonl").read_text().splitlines()):
        if "batch" in line:
            found.setdefault(line["epoch"], []).append(line["batch"])
    return found


def parent_of(fork: Path) -> dict[str, Any]:
    return dict(json.loads((fork / "environment.json").read_text())["parent"])


# --- the control ------------------------------------------------------------------------------------


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


# --- perturbed --------------------------------------------------------------------------------------


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


# --- forks of forks ---------------------------------------------------------------------------------


def test_a_fork_of_a_fork_has_its_own_perturbation_and_its_parents_other_keys(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    options = [*KINDS["random_target"], "--perturb-length", 3, "--set", "lr=0.002"]
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *options)
    # from within the window, and from the fork's first state, which is the baseline's file
    calm = forked(clip_hba, fork, tmp_path / "calm", 3, "--perturb", "none")
    same = forked(clip_hba, baseline, tmp_path / "same", 2, "--perturb", "none", "--set", "lr=0.002")
    from_start = forked(clip_hba, fork, tmp_path / "from_start", 2, "--perturb", "none")
    assert later(from_start, 2) == later(same, 2)
    assert {row.rpartition(",")[2] for row in later(calm, 3)[1]} == {"none"}
    assert batches(calm) == {epoch: found for epoch, found in batches(baseline).items() if epoch >= 3}
    assert (
        state_of(calm, 3).optimizer_state["param_groups"][0]["lr"]
        == (state_of(fork, 3).optimizer_state["param_groups"][0]["lr"])
    )
    changed = parent_of(calm)["changed"]
    assert changed["perturb_type"] == {"parent": "random_target", "fork": "none"}
    assert changed.keys() == {"perturb_type", "perturb_epoch", "perturb_length", "perturb_seed"}
    assert parent_of(calm)["run"] == str(fork)


@pytest.mark.parametrize("kind", ["random_target", "earlier label_shuffle"])
def test_a_longer_window_can_go_on_from_a_shorter_ones_end(
    kind: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    long = forked(clip_hba, baseline, tmp_path / "long", 2, *KINDS[kind], "--perturb-length", 2)
    short = forked(clip_hba, baseline, tmp_path / "short", 2, *KINDS[kind], "--perturb-length", 1)
    options = [*KINDS[kind], "--set", "perturb_epoch=2", "--perturb-length", 2]
    extended = forked(clip_hba, short, tmp_path / "extended", 3, *options)
    assert later(extended, 3) == later(long, 3)
    assert later(extended, 3) != later(short, 3)


# --- early stopping and the end ---------------------------------------------------------------------


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


# --- other random streams ---------------------------------------------------------------------------


def test_reseed_changes_the_random_streams_and_nothing_else(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    forks = [
        forked(clip_hba, baseline, tmp_path / f"fork{number}", 3, "--perturb", "none", "--reseed", seed)
        for number, seed in enumerate((1, 1, 2))
    ]
    before = state_of(baseline, 2).as_dict()
    for fork in forks:
        first = state_of(fork, 2).as_dict()
        assert {key for key in first if digest({"": first[key]}) != digest({"": before[key]})} == {"rng_state"}
        for stream in before["rng_state"]:
            assert digest({"": first["rng_state"][stream]}) != digest({"": before["rng_state"][stream]})
    assert differences(forks[0], forks[1]) == []
    orders = [batches(run)[3] for run in (baseline, forks[0], forks[2])]
    assert len({tuple(order) for order in orders}) == 3
    parent = parent_of(forks[0])
    assert parent["reseed"] == 1
    assert parent["changed"] == {"fork_reseed": {"parent": None, "fork": 1}}
    assert parent["state_digest"] == state_of(baseline, 2).digest()
    assert parent["first_state_digest"] == state_of(forks[0], 2).digest()
    assert clip_hba("verify", "checkpoints", forks[0]).code == 0
    assert clip_hba("resume", forks[0], "--from-epoch", 2, "--run-dir", tmp_path / "resumed").code == 0
    assert differences(forks[0], tmp_path / "resumed") == []
    again = forked(clip_hba, forks[0], tmp_path / "again", 3, "--perturb", "none")  # its parent's own streams
    assert later(again, 2) == later(forks[0], 2)


def test_reseed_is_refused_where_the_order_does_not_depend_on_the_streams(
    keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "later.yaml", keys | {"batch_order": "later", "epochs": 2})
    assert clip_hba("train", config, "--run-dir", tmp_path / "later").code == 0
    options = ("--at-epoch", 2, "--perturb", "none", "--reseed", 1, "--run-dir", tmp_path / "fork")
    outcome = clip_hba("fork", tmp_path / "later", *options)
    assert outcome.code == 2
    assert "fork_reseed is 1, but batch_order is later\n  its batches are a function of" in outcome.output
    assert not (tmp_path / "fork").exists()


# --- refusals ---------------------------------------------------------------------------------------


def epoch_missing(run: Path) -> None:
    checkpoint_path(run / "dora_params", 2).unlink()


def damaged(run: Path) -> None:
    path = checkpoint_path(run / "dora_params", 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed(run: Path) -> None:
    """A file that is valid in itself, and not the state that the run reached."""
    path = checkpoint_path(run / "dora_params", 2)
    state = read_checkpoint(path).whole_state()
    next(iter(state.parameters.values()))[0] += 1
    rewrite_state(path, state)


def partial(run: Path) -> None:
    path = checkpoint_path(run / "dora_params", 2)
    content = {
        key: value for key, value in torch.load(path).items() if key.startswith(("clip_model", "rng_state"))
    }
    path.write_bytes(to_bytes(content))


def swapped(run: Path) -> None:
    shutil.copy(checkpoint_path(run / "dora_params", 3), checkpoint_path(run / "dora_params", 2))


def no_run(run: Path) -> None:
    (run / "config.yaml").unlink()


REFUSED = {
    epoch_missing: "epoch2_dora_params.pth\n  found:    epochs 0 to 1, 3 to 5",
    damaged: "epoch2_dora_params.pth",
    changed: "is not the state that its run recorded\n  in the file:   ",
    partial: "does not hold the complete training state\n  found:    parameters and random states",
    swapped: "holds another state than its name says",
    no_run: "there is no run in",
}


@pytest.mark.parametrize("corrupt", REFUSED, ids=lambda each: each.__name__)
def test_a_parent_that_cannot_be_trusted_is_refused(
    corrupt: Callable[[Path], None], baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    shutil.copytree(baseline, tmp_path / "baseline")
    corrupt(tmp_path / "baseline")
    options = ("--at-epoch", 3, "--perturb", "none", "--run-dir", tmp_path / "fork")
    outcome = clip_hba("fork", tmp_path / "baseline", *options)
    assert outcome.code == 2, outcome.output
    assert REFUSED[corrupt] in outcome.output
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "fork").exists()


def test_a_changed_first_state_of_a_fork_is_refused_too(baseline: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 3, "--perturb", "none", "--epochs", 3)
    changed(fork)
    outcome = clip_hba("fork", fork, "--at-epoch", 3, "--perturb", "none", "--run-dir", tmp_path / "second")
    assert outcome.code == 2
    assert "in environment.json: " in outcome.output


def test_a_parent_that_changes_while_it_is_copied_leaves_no_fork(baseline: Path, tmp_path: Path) -> None:
    shutil.copytree(baseline, tmp_path / "baseline")
    parent = read_checkpoint(checkpoint_path(tmp_path / "baseline/dora_params", 2))
    swapped(tmp_path / "baseline")
    with pytest.raises(NotReproducibleError, match="the fork's first state is not its parent's"):
        publish_first_state(parent, tmp_path / "dora_params")
    assert list((tmp_path / "dora_params").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perturb", "blur"], "perturb_type: found 'blur', expected 'none', 'random_target'"),
        (["--perturb", "image_noise", "--perturb-length", "0"], "perturb_length: found 0"),
        (["--perturb", "image_noise", "--set", "perturb_epoch=2"], "expected: some of epochs 3 to 5"),
        (["--perturb", "image_noise", "--set", "perturb_epoch=6"], "found:    epochs 6 to 6 to perturb"),
        (
            ["--perturb", "none", "--epochs", "2"],
            "it begins with epoch 3, and ends before\n  found:    last epoch 2",
        ),
        (["--perturb", "none", "--early-stopping", "on"], "fork_early_stopping: found 'on'"),
        (["--perturb", "none", "--set", "training_run=2"], "training_run: a fork gets these from BASELINE"),
        (["--perturb", "none", "--set", "random_seed=6"], "of another random_seed"),
        ([], "Missing option '--perturb'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_means_nothing_is_refused(
    options: list[str], message: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba("fork", baseline, "--at-epoch", 3, *options, "--run-dir", tmp_path / "fork")
    assert outcome.code == 2, outcome.output
    assert message in outcome.output
    assert not (tmp_path / "fork").exists()


def test_a_window_beyond_the_end_is_refused_and_the_commands_offered_do_what_they_say(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = tmp_path / "my fork"
    options = [*KINDS["random_target"], "--perturb-length", 3, "--set", "perturb_rule=earlier"]
    outcome = clip_hba("fork", baseline, "--at-epoch", LAST, *options, "--run-dir", fork)
    assert outcome.code == 2, outcome.output
    assert "the perturbation goes beyond the fork's last epoch" in outcome.output
    assert f"epochs {LAST} to {LAST + 2} to perturb" in outcome.output
    assert f"expected: none beyond epoch {LAST}, where the baseline ends" in outcome.output
    assert not fork.exists()
    further = offered(outcome.output, "train further:")
    assert further[further.index("--epochs") + 1] == str(LAST + 2)
    assert clip_hba(*further).code == 0
    config = RunDirectory(fork).read_config()
    assert (config.perturb_length, config.perturb_seed, config.perturb_rule) == (3, 7, "earlier")
    assert max(list_checkpoints(fork / "dora_params")) == LAST + 2
    fork.rename(tmp_path / "long")
    assert clip_hba(*offered(outcome.output, "or perturb less:")).code == 0
    assert RunDirectory(fork).read_config().perturb_length == 1


def test_a_fork_that_cannot_begin_names_a_command_that_does(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    where = ["--perturb", "none", "--run-dir", tmp_path / "fork"]
    outcome = clip_hba("fork", baseline, "--at-epoch", 30, *where)
    assert outcome.code == 2, outcome.output
    assert "--at-epoch 30 needs " in outcome.output
    assert f"found:    epochs 0 to {LAST} in that directory\n  expected: epoch 29" in outcome.output
    assert "training_run" not in outcome.output
    assert offered(outcome.output, "or train the baseline further first:")[-1] == "epochs=30"
    window = ["--perturb", "image_noise", "--perturb-length", 3, "--run-dir", tmp_path / "fork"]
    with_window = clip_hba("fork", baseline, "--at-epoch", 30, *window)
    longer = offered(with_window.output, "fork where there is one:")
    assert longer[longer.index("--epochs") + 1] == str(LAST + 2)
    for own, expected in (
        (["--set", "perturb_epoch=31"], f"perturb_epoch={LAST + 1}"),
        (["--epochs", 1], f"--epochs {LAST + 2}"),
        (["--set", "fork_reseed=null"], "fork_reseed=null"),
    ):
        shifted = clip_hba("fork", baseline, "--at-epoch", 30, *window, *own)
        command = offered(shifted.output, "fork where there is one:")
        assert expected in " ".join(command)
        assert clip_hba(*command).code == 0
        (tmp_path / "fork").rename(tmp_path / expected)
    possible = offered(outcome.output, "fork where there is one:")
    assert possible[possible.index("--at-epoch") + 1] == str(LAST)
    assert clip_hba(*possible).code == 0
    (tmp_path / "fork").rename(tmp_path / "first")

    outcome = clip_hba("fork", baseline, "--at-epoch", LAST + 1, *where)
    assert outcome.code == 2, outcome.output
    assert (
        f"found:    last epoch {LAST}, where the baseline ends\n  expected: at least {LAST + 1}" in outcome.output
    )
    further = offered(outcome.output, "train further:")
    assert further[further.index("--epochs") + 1] == str(LAST + 1)
    assert clip_hba(*further).code == 0


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
