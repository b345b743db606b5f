"""The key `preprocessing`: new runs read images by rule 2, recorded ones go on by the rule that they had."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome
from run_tools import differences, trained, write_config

ClipHba = Callable[..., Outcome]


@pytest.fixture
def deep_keys(small_config: dict[str, Any], standin_data: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration of whose images three are 16-bit grey, and one is turned."""
    images = Path(shutil.copytree(standin_data / "images", tmp_path / "images"))
    for number in range(3):
        values = np.random.Generator(np.random.Philox(number)).integers(0, 2**16, (64, 64), dtype=np.uint16)
        Image.fromarray(values).save(images / f"drawn_{number:04d}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(images / "drawn_0003.png") as image:
        image.save(images / "drawn_0003.png", exif=exif)
    return small_config | {"img_dir": str(images), "epochs": 2, "cache_dir": str(tmp_path / "cache")}


def forget_the_rule(run: Path) -> None:
    """Make of a run what it would be if the key had not been there when it was made."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["preprocessing"]
    (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    environment = json.loads((run / "environment.json").read_text())
    del environment["trajectory"]["preprocessing"]
    (run / "environment.json").write_text(json.dumps(environment, indent=2) + "\n")
    for path in (run / "dora_params").iterdir():
        content = torch.load(path)
        del content["provenance"]["config"]["preprocessing"]
        path.unlink()
        torch.save(content, path)


def caches(keys: dict[str, Any]) -> int:
    return sum(1 for path in Path(keys["cache_dir"]).iterdir() if path.is_dir() and path.name != "standin")


def test_a_new_run_reads_by_rule_2_and_records_it(
    clip_hba: ClipHba, deep_keys: dict[str, Any], tmp_path: Path
) -> None:
    new = trained(clip_hba, tmp_path, deep_keys, "new")
    assert RunDirectory(new).read_config().preprocessing == 2
    assert json.loads((new / "environment.json").read_text())["trajectory"]["preprocessing"] == 2
    assert differences(new, trained(clip_hba, tmp_path, deep_keys, "two", preprocessing=2)) == []
    assert differences(new, trained(clip_hba, tmp_path, deep_keys, "one", preprocessing=1)) != []
    assert clip_hba("verify", "checkpoints", new).code == 0


def test_ordinary_images_give_the_same_bits_from_the_same_cache(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    keys = small_config | {"epochs": 2, "cache_dir": str(tmp_path / "cache")}
    one = trained(clip_hba, tmp_path, keys, "one", preprocessing=1)
    num_caches = caches(keys)
    assert differences(one, trained(clip_hba, tmp_path, keys, "two", preprocessing=2)) == []
    assert caches(keys) == num_caches


def test_a_run_that_records_no_rule_goes_on_by_rule_1(
    clip_hba: ClipHba, deep_keys: dict[str, Any], tmp_path: Path
) -> None:
    unbroken = trained(clip_hba, tmp_path, deep_keys, "unbroken", preprocessing=1, epochs=4)
    old = trained(clip_hba, tmp_path, deep_keys, "old", preprocessing=1, epochs=3)
    forget_the_rule(old)

    fork = tmp_path / "fork"
    outcome = clip_hba("fork", old, "--at-epoch", 3, "--perturb", "none", "--run-dir", fork)
    assert outcome.code == 0, outcome.output
    assert RunDirectory(fork).read_config().preprocessing == 1
    assert json.loads((fork / "environment.json").read_text())["parent"]["changed"] == {}
    states = [read_checkpoint(run / "dora_params/epoch3_dora_params.pth").state_digest for run in (fork, old)]
    assert states[0] == states[1]

    for arguments in (["verify", "checkpoints", old], ["diff", old, unbroken]):
        outcome = clip_hba(*arguments)
        assert "preprocessing" not in outcome.output
    assert clip_hba("verify", "checkpoints", old).code == 0
    outcome = clip_hba("resume", old, "--set", "preprocessing=2")
    assert outcome.code == 2
    assert "preprocessing\n    in the run: 1\n    given:      2" in outcome.output
    outcome = clip_hba("resume", old, "--set", "epochs=4", "--set", "lr_schedule_epochs=3")
    assert outcome.code == 0, outcome.output
    assert differences(old, unbroken) == []
    assert RunDirectory(old).read_config().preprocessing == 1
    assert clip_hba("verify", "checkpoints", old).code == 0


def test_old_checkpoints_are_reconstructed_and_forked_by_rule_1(
    clip_hba: ClipHba, deep_keys: dict[str, Any], tmp_path: Path
) -> None:
    run = trained(clip_hba, tmp_path, deep_keys, "run", preprocessing=1)
    old = tmp_path / "old"
    old.mkdir()
    for path in (run / "dora_params").iterdir():
        checkpoint = read_checkpoint(path)
        torch.save(checkpoint.parameters | {"rng_state": checkpoint.rng_state}, old / path.name)
    config = write_config(tmp_path / "old.yaml", deep_keys)
    outcome = clip_hba("reconstruct", old, "--config", config, "--train", "--run-dir", tmp_path / "again")
    assert outcome.code == 0, outcome.output
    assert "epochs repeated from the seed, within 0 of the old files" in outcome.output
    assert RunDirectory(tmp_path / "again").read_config().preprocessing == 1
    assert clip_hba("verify", "checkpoints", old, "--config", config).code == 3  # consistent: they hold no more
    start = {"training_run": 2, "baseline_dora_directory": str(old)}
    fork = trained(clip_hba, tmp_path, deep_keys, "fork", **start)
    assert RunDirectory(fork).read_config().preprocessing == 1


def test_augmented_images_are_read_by_the_rule(
    clip_hba: ClipHba, deep_keys: dict[str, Any], tmp_path: Path
) -> None:
    keys = deep_keys | {"augmentation": ["horizontal_flip"], "epochs": 1, "train_portion": 0.98}
    runs = [trained(clip_hba, tmp_path, keys, f"run{rule}", preprocessing=rule) for rule in (1, 2)]
    ledgers = [(run / "steps.jsonl").read_text().splitlines() for run in runs]
    one, two = ([json.loads(line).get("loss") for line in ledger] for ledger in ledgers)
    assert one != two


def test_another_rule_than_1_and_2_is_refused(clip_hba: ClipHba, tmp_path: Path) -> None:
    for value in ("3", "true", "'2'"):
        outcome = clip_hba(
            "train", write_config(tmp_path / "a.yaml", {}), "--set", f"preprocessing={value}", "--dry-run"
        )
        assert outcome.code == 2, outcome.output
        assert "preprocessing: found" in outcome.output
        assert "expected 1 or 2" in outcome.output
