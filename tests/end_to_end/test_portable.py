"""Portable arithmetic, whole runs in fresh processes: whatever the machine is like, the same bytes."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.reproducibility.record.epoch import Difference
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.verification.causes import cause_of_training
from fresh_process import Outcome
from run_tools import differences, finished, rewrite_state, trained, write_config

ClipHba = Callable[..., Outcome]
EPOCHS = 2
# Every part of the pipeline has a share: all kinds of attention, dropout, augmentation, a schedule.
PORTABLE = {
    "arithmetic": "portable",
    "epochs": EPOCHS,
    "vision_layers": 3,
    "transformer_layers": 2,
    "dora_dropout": 0.1,
    "lr_schedule": "warmup_cosine",
    "lr_warmup_epochs": 1,
    "lr_schedule_epochs": EPOCHS,
    "augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"],
    "checkpoint_every_steps": 2,
}
NATIVE = {"num_threads": 2, "chunk_size": 7, "eval_batch_size": 5, "deterministic": False, "sdpa_backend": "flash"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = tmp_path_factory.mktemp("few_images")
    write_standin_dataset(directory, num_images=20)
    small = {"batch_size": 6, "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}
    return {**data_keys(directory), **small, **PORTABLE}


@pytest.fixture(scope="module")
def baseline(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("portable")

    def clip_hba(*arguments: object) -> Outcome:
        words = [str(each) for each in arguments]
        return fresh_process.call(fresh_process.clip_hba, words, output=place / "output.txt")

    return trained(clip_hba, place, keys)


def elsewhere(run: Path) -> None:
    """Write on a run's record that another machine made it: other processor, versions, device, variables."""
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    environment["machine"]["device_model"] = "another processor"
    environment["versions"] |= {"torch": "2.8.0", "numpy": "1.26.4", "pillow": "11.0.0"}
    environment["device"] = "cuda:0"
    environment["variables"] = {"MKL_CBWR": "COMPATIBLE"}
    path.write_text(json.dumps(environment))


def test_what_shapes_native_bits_shapes_nothing(
    clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path
) -> None:
    other = trained(clip_hba, tmp_path, keys, **NATIVE, cache_dir=str(tmp_path / "cache"))
    assert differences(baseline, other) == []
    trajectories = [json.loads((run / "environment.json").read_text())["trajectory"] for run in (baseline, other)]
    assert trajectories[0] == trajectories[1]
    assert trajectories[0]["arithmetic"] == "portable 1"
    assert not NATIVE.keys() & trajectories[0].keys()


def test_the_same_keys_shape_native_bits(clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path) -> None:
    native = {"arithmetic": "native", "epochs": 1}
    runs = [
        trained(clip_hba, tmp_path, keys, "first", **native),
        trained(clip_hba, tmp_path, keys, "second", **native, **NATIVE, cache_dir=str(tmp_path / "cache")),
    ]
    assert differences(*runs) != []


def test_a_cache_serves_every_machine(
    baseline: Path, clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    first = trained(clip_hba, tmp_path, keys, "first", epochs=0, cache_dir=str(cache))
    folders = sorted(each.name for each in cache.iterdir())
    trained(clip_hba, tmp_path, keys, "second", epochs=0, cache_dir=str(cache), num_threads=2, chunk_size=7)
    assert sorted(each.name for each in cache.iterdir()) == folders
    found = [json.loads((cache / name / "key.json").read_text()) for name in folders]
    assert all(key["arithmetic"] == "portable 1" for key in found)
    images = [key for key in found if "images" in key]
    assert [sorted(key) for key in images] == [
        ["arithmetic", "images", "pillow", "preprocessing", "vision_layers", "weights"]
    ]
    listed = clip_hba("cache", "list", "--cache-dir", cache, "--runs", tmp_path)
    assert listed.code == 0, listed.output
    assert listed.output.count(f"used by {first}") == 2, listed.output


@pytest.mark.system
def test_a_run_goes_on_on_another_machine_and_is_verified_there(
    clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, keys, epochs=1)
    elsewhere(run)
    resumed = clip_hba("resume", run, "--set", f"epochs={EPOCHS}", "--set", "num_threads=2", "--set", "device=cpu")
    assert resumed.code == 0, resumed.output
    assert differences(run, baseline) == []
    assert json.loads((run / "environment.json").read_text())["drift"] == []
    certificate = tmp_path / "certificate.json"
    verified = clip_hba("verify", "checkpoints", run, "--json", certificate)
    assert verified.code == 0, verified.output
    claim = json.loads(certificate.read_text())["claim"]
    assert claim["level"] == "L3", verified.output
    assert "any machine" in verified.output or "L3" in verified.output


def test_a_flipped_bit_is_found(clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path) -> None:
    run = finished(clip_hba, tmp_path, keys, epochs=1)
    path = run / "dora_params" / "epoch1_dora_params.pth"
    state = read_checkpoint(path).whole_state()
    name, tensor = next(iter(state.parameters.items()))
    flipped = tensor.clone()
    flipped.view(-1).numpy().view("u4")[0] ^= 1
    rewrite_state(path, replace(state, parameters={**state.parameters, name: flipped}))
    elsewhere(run)
    verified = clip_hba("verify", "checkpoints", run)
    assert verified.code == 1, verified.output
    assert name in verified.output


def test_a_fork_computes_as_its_baseline(clip_hba: ClipHba, baseline: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    asked = ("fork", baseline, "--at-epoch", "2", "--perturb", "none", "--run-dir")
    made = clip_hba(*asked, fork)
    assert made.code == 0, made.output
    ends = [
        read_checkpoint(run / "dora_params" / f"epoch{EPOCHS}_dora_params.pth").state_digest
        for run in (fork, baseline)
    ]
    assert ends[0] == ends[1]
    (tmp_path / "native.yaml").write_text("arithmetic: native\n")
    refused = clip_hba(*asked, tmp_path / "other", "--config", tmp_path / "native.yaml")
    assert refused.code == 2
    assert "its baseline's arithmetic" in refused.output


@pytest.mark.parametrize("allow", [(), ("--allow", "arithmetic")])
def test_a_run_cannot_change_its_arithmetic(clip_hba: ClipHba, baseline: Path, allow: tuple[str, ...]) -> None:
    refused = clip_hba("resume", baseline, "--set", "epochs=3", "--set", "arithmetic=native", *allow)
    assert refused.code == 2
    assert "in the run: portable 1" in refused.output


def test_draws_that_differ_between_machines_are_refused(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    perturbed = {"perturb_type": "random_target", "perturb_epoch": 1, "perturb_rule": "earlier"}
    refused = clip_hba(
        "train", write_config(tmp_path / "c.yaml", keys, **perturbed), "--run-dir", tmp_path / "run"
    )
    assert refused.code == 2
    assert "set perturb_rule: philox" in refused.output
    assert not (tmp_path / "run").exists()


def test_another_decoding_is_named_and_refused(clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path) -> None:
    run = finished(clip_hba, tmp_path, keys, epochs=1)
    path = run / "environment.json"
    environment = json.loads(path.read_text())
    name = next(iter(environment["pixels"]))
    environment["pixels"][name] = "0" * 16
    environment["digests"]["pixels"] = "0" * 64
    path.write_text(json.dumps(environment))
    refused = clip_hba("resume", run, "--set", "epochs=2")
    assert refused.code == 2
    assert f"images that are decoded otherwise: {name}" in refused.output
    assert "--allow pixels" in refused.output


def test_verify_names_what_is_decoded_otherwise(clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path) -> None:
    run = trained(clip_hba, tmp_path, keys, epochs=1, cache_dir=str(tmp_path / "cache"))
    (path,) = (each for each in (tmp_path / "cache").glob("*/index.json") if "sources" in each.read_text())
    index = json.loads(path.read_text())
    index["sources"][0] = "0" * 64
    path.write_text(json.dumps(index | {"digest": digest([index["chunk_digests"], index["sources"]])}))
    verified = clip_hba("verify", "checkpoints", run)
    assert verified.code == 2, verified.output
    name = next(iter(json.loads((run / "environment.json").read_text())["pixels"]))
    assert f"images that are decoded otherwise: {name}" in verified.output


def test_what_shapes_nothing_is_no_cause_of_a_difference(
    clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(baseline, other)
    elsewhere(other)
    path = other / "dora_params" / f"epoch{EPOCHS}_dora_params.pth"
    state = read_checkpoint(path).whole_state()
    rewrite_state(path, replace(state, parameters={key: value + 1 for key, value in state.parameters.items()}))
    found = clip_hba("diff", baseline, other, "--no-replay")
    assert found.code == 1, found.output
    assert "another processor" not in found.output
    assert "2.8.0" not in found.output


def test_rounding_is_no_cause_in_portable_arithmetic() -> None:
    differences = [Difference(1, "ledger", "loss", 1.0, 1.0 + 1e-7)]
    causes = [
        cause_of_training(differences, 3, True, False, lambda: (True, []), {"arithmetic": arithmetic})
        for arithmetic in ("native", "portable 1")
    ]
    assert "another number of threads" in causes[0]
    assert "another number of threads" not in causes[1]
    assert "scripts/exact_anywhere.py" in causes[1]
