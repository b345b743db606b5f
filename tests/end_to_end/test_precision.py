"""What `precision` does to a run: other bits, recorded and repeated; runs from before the key go on as before."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome
from run_tools import differences, finished, trained, write_config

ClipHba = Callable[..., Outcome]


@pytest.fixture
def keys(small_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.getbasetemp() / "cache-of-precision"
    return small_config | {"epochs": 2, "cache_dir": str(cache)}


def write_as_before_the_key(run: Path, tf32: bool) -> None:
    """Make of a run what it would be if `precision` had still been `tf32` when it was made."""

    def before(recorded: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in recorded.items() if key != "precision"} | {"tf32": tf32}

    config, environment = run / "config.yaml", run / "environment.json"
    config.write_text(yaml.safe_dump(before(yaml.safe_load(config.read_text())), sort_keys=False))
    content = json.loads(environment.read_text())
    environment.write_text(json.dumps(content | {"trajectory": before(content["trajectory"])}))
    for path in (run / "dora_params").iterdir():
        checkpoint = torch.load(path)
        checkpoint["provenance"]["config"] = before(checkpoint["provenance"]["config"])
        path.unlink()
        torch.save(checkpoint, path)


def num_caches(keys: dict[str, Any]) -> int:
    return sum(path.is_dir() for path in Path(keys["cache_dir"]).iterdir())


def test_bfloat16_is_recorded_gives_other_bits_from_the_same_features_and_is_verified(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    plain = finished(clip_hba, tmp_path, keys, "plain")
    caches = num_caches(keys)
    rounded = finished(clip_hba, tmp_path, keys, "rounded", precision="bfloat16")
    assert num_caches(keys) == caches
    for run, precision in ((plain, "float32"), (rounded, "bfloat16")):
        directory = RunDirectory(run)
        assert directory.read_config().precision == precision
        assert directory.read_environment()["trajectory"]["precision"] == precision
        assert (", bfloat16" in directory.log_file.read_text()) == (precision == "bfloat16")
    losses = [
        [
            record["loss"]
            for line in (run / "steps.jsonl").read_text().splitlines()
            if "loss" in (record := json.loads(line))
        ]
        for run in (plain, rounded)
    ]
    assert losses[0][0] != losses[1][0]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert clip_hba("verify", "checkpoints", rounded).code == 0
    state = read_checkpoint(rounded / "dora_params/epoch2_dora_params.pth").whole_state()
    assert {each.dtype for each in state.parameters.values()} == {torch.float32}
    moments = [each for kept in state.optimizer_state["state"].values() for each in kept.values()]
    assert {each.dtype for each in moments} == {torch.float32}

    outcome = clip_hba("diff", plain, rounded)
    assert outcome.code == 1
    assert "precision\n    in A: float32\n    in B: bfloat16" in outcome.output


def test_another_precision_is_refused_at_a_resume_and_named_by_a_fork(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, keys, "plain")
    for given, precision in (("precision=bfloat16", "bfloat16"), ("tf32=true", "tf32")):
        outcome = clip_hba("resume", run, "--set", given, "--set", "epochs=3")
        assert outcome.code == 2
        assert f"precision\n    in the run: 'float32'\n    given:      '{precision}'" in outcome.output
    fork = tmp_path / "fork"
    outcome = clip_hba(
        "fork", run, "--at-epoch", 2, "--perturb", "none", "--set", "precision=bfloat16", "--run-dir", fork
    )
    assert outcome.code == 0, outcome.output
    changed = RunDirectory(fork).read_environment()["parent"]["changed"]
    assert changed["precision"] == {"parent": "float32", "fork": "bfloat16"}
    assert clip_hba("verify", "checkpoints", fork).code == 0


def test_it_is_refused_in_portable_arithmetic_by_the_command(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", keys, precision="bfloat16", arithmetic="portable")
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 2
    assert "precision: bfloat16 cannot go with arithmetic: portable" in outcome.output
    assert not (tmp_path / "run").exists()


def test_tf32_changes_nothing_on_a_cpu_and_is_said_to(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    plain, tf32 = (finished(clip_hba, tmp_path, keys, name, precision=name) for name in ("float32", "tf32"))
    assert differences(plain, tf32) == []
    said = "precision: tf32 changes nothing on "
    assert said in (tf32 / "training_log.txt").read_text()
    assert said not in (plain / "training_log.txt").read_text()


@pytest.mark.parametrize("tf32", [False, True])
def test_a_run_from_before_the_key_is_resumed_forked_and_verified(
    tf32: bool, clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    precision = "tf32" if tf32 else "float32"
    unbroken = trained(clip_hba, tmp_path, keys, "unbroken", precision=precision, epochs=3, lr_schedule_epochs=2)
    old = trained(clip_hba, tmp_path, keys, "old", precision=precision)
    write_as_before_the_key(old, tf32)
    assert clip_hba("verify", "checkpoints", old).code == 0
    fork = tmp_path / "fork"
    outcome = clip_hba("fork", old, "--at-epoch", 2, "--perturb", "none", "--run-dir", fork)
    assert outcome.code == 0, outcome.output
    assert RunDirectory(fork).read_environment()["parent"]["changed"] == {}
    assert RunDirectory(fork).read_config().precision == precision
    outcome = clip_hba("resume", old, "--set", "epochs=3")
    assert outcome.code == 0, outcome.output
    assert differences(unbroken, old) == []
    assert RunDirectory(old).read_environment()["trajectory"]["precision"] == precision
    assert clip_hba("verify", "checkpoints", old).code == 0
