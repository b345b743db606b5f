"""`clip-hba verify checkpoints` and `verify results`, on runs of this project and of the earlier pipeline."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import fresh_process
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.rng import MISSING, RESTORED
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from fresh_process import Outcome
from run_tools import finished, recorded_run_keys, rewrite_state, trained, write_config

ClipHba = Callable[..., Outcome]


def rewritten(path: Path, **provenance: Any) -> None:
    """Put other provenance into a checkpoint; its state and digest stay."""
    content = torch.load(path)
    content["provenance"] |= provenance
    path.unlink()
    path.write_bytes(to_bytes(content))


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout, augmentation, schedule": {
        "dora_dropout": 0.2,
        "augmentation": ["random_resized_crop", "color_jitter"],
        "lr_schedule": "cosine",
    },
    "the later version's order": {"batch_order": "later_persistent", "vision_layers": 1},
    "an early stop": {"lr": 0.3, "early_stopping_patience": 2, "epochs": 20},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_epoch_of_a_run_is_reproducible(
    variant: str, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config | VARIANTS[variant])
    last = max(int(path.name[5:].partition("_")[0]) for path in (run / "dora_params").iterdir())
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = clip_hba("verify", "checkpoints", run, "--json", tmp_path / "certificate.json")
    assert outcome.code == 0, outcome.output
    assert RESTORED in outcome.output
    for epoch in range(1, last + 1):
        assert f"✅ EPOCH {epoch} PASSED: Training results are reproducible!" in outcome.output
    assert outcome.output.splitlines()[-1].startswith(
        f"reproducible: {last} of {last} epochs repeat to the last bit"
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert (certificate["verdict"], certificate["exit_code"]) == ("reproducible", 0)
    assert certificate["claim"]["level"] == "L0"
    assert certificate["config"]["lr"] == (small_config | VARIANTS[variant])["lr"]
    assert [each["epoch"] for each in certificate["epochs"]] == list(range(1, last + 1))
    for each in certificate["epochs"]:
        recorded = read_checkpoint(checkpoint_path(run / "dora_params", each["epoch"]))
        assert each["recorded_digest"] == each["replayed_digest"] == recorded.state_digest
        assert each["num_differing_tensors"] == 0
        assert each["max_parameter_difference"] == 0.0


def test_a_column_that_is_no_metric_is_compared_too(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    results = run / "training_res.csv"
    results.write_text(results.read_text().replace("False,False,none", "False,True,none"))
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 1, outcome.output
    assert "used_shuffled_targets of epoch 1: training_res.csv and the checkpoint disagree" in outcome.output


def test_a_fork_is_verified_like_any_run(clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path) -> None:
    baseline = finished(clip_hba, tmp_path, small_config, "baseline")
    keys = {"training_run": 3, "baseline_dora_directory": str(baseline / "dora_params"), "lr": 0.005}
    fork = trained(clip_hba, tmp_path, small_config, "fork", **keys)
    outcome = clip_hba("verify", "checkpoints", fork)
    assert outcome.code == 0, outcome.output
    assert "reproducible: 2 of 2 epochs" in outcome.output


def test_first_steps_alone_are_compared_with_the_ledger(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=2)
    outcome = clip_hba("verify", "checkpoints", run, "--steps", 2, "--epochs", "2")
    assert outcome.code == 0, outcome.output
    assert "2 of 2 batches equal" in outcome.output
    assert "reproducible: the first 2 steps of 1 of 1 epochs" in outcome.output

    lines = (run / "steps.jsonl").read_text().splitlines(keepends=True)
    lines[5] = lines[5].replace('"loss": ', '"loss": 1')  # epoch 2, step 2 of 3
    (run / "steps.jsonl").write_text("".join(lines))
    assert '"epoch": 2, "step": 2' in lines[5]
    outcome = clip_hba("verify", "checkpoints", run, "--steps", 2, "--epochs", "2")
    assert outcome.code == 1
    assert "first differs at step 2: loss" in outcome.output

    (run / "steps.jsonl").unlink()
    outcome = clip_hba("verify", "checkpoints", run, "--steps", 2, "--epochs", "2")
    assert outcome.code == 2
    assert "the ledger has no steps of this epoch to compare with" in outcome.output


def test_bare_checkpoints_of_this_project_are_verified_without_their_run(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=2)
    bare = tmp_path / "bare"
    shutil.copytree(run / "dora_params", bare)
    config = write_config(tmp_path / "data.yaml", small_config)
    assert clip_hba("verify", "checkpoints", bare, "--config", config).code == 0
    outcome = clip_hba("verify", "checkpoints", bare, "--config", config, "--set", "lr=0.002")
    assert outcome.code == 2
    assert "lr\n    in the run: 0.001\n    given:      0.002" in outcome.output


@pytest.mark.parametrize(
    ("provenance", "level", "reason", "code"),
    [
        ({"host": "elsewhere"}, "L1", "host was elsewhere", 0),
        ({"device_model": "another"}, "L2", "device_model was another", 0),
        ({"versions": {"torch": "1.0"}}, "L2", "torch was 1.0", 0),
    ],
    ids=["another host", "another processor", "another version"],
)
def test_the_level_is_that_of_the_environment_and_says_why(
    provenance: dict[str, Any],
    level: str,
    reason: str,
    code: int,
    clip_hba: ClipHba,
    small_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    rewritten(checkpoint_path(run / "dora_params", 1), **provenance)
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == code, outcome.output
    assert f"claim level {level}" in outcome.output
    assert f"because {reason}" in outcome.output


@pytest.mark.parametrize(("host", "code", "word"), [(False, 3, "consistent"), (True, 1, "not reproducible")])
def test_the_tolerance_serves_only_where_the_environment_is_another(
    host: bool, code: int, word: str, clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    """One bit of difference, as rounding makes, is consistent on another processor and a failure here."""
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    path = checkpoint_path(run / "dora_params", 1)
    state = read_checkpoint(path).whole_state()
    name = next(iter(state.parameters))
    state.parameters[name].view(torch.int32)[0] ^= 1
    rewrite_state(path, state)
    if not host:
        rewritten(path, device_model="another")
    (run / "steps.jsonl").unlink()
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == code, outcome.output
    assert outcome.output.splitlines()[-1].startswith(word)


def test_the_recorded_run_with_random_states_is_consistent_and_its_order_equal(
    reference: Path, things: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", recorded_run_keys(reference, things))
    directory = reference / "run" / "dora"
    outcome = clip_hba("verify", "checkpoints", directory, "--config", config, "--json", tmp_path / "c.json")
    assert outcome.code == 3, outcome.output
    assert outcome.output.count("Batch order: equal: the replay reached the recorded random state") == 6
    assert outcome.output.count("which is also the one derived from seed 1") == 6
    assert "the file of epoch 1 lacks optimizer_state and early_stopping_state" in outcome.output
    assert "consistent but not complete: 6 epochs" in outcome.output
    assert "reproducible" not in outcome.output.replace(RESTORED, "")

    epochs = json.loads((tmp_path / "c.json").read_text())["epochs"]
    assert epochs[0]["max_parameter_difference"] < 1e-6  # from the seed, so with everything
    assert 1e-4 < epochs[1]["max_parameter_difference"] < 1e-2


def test_the_recorded_run_without_random_states_warns_and_its_order_is_reconstructed(
    reference: Path, things: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", recorded_run_keys(reference, things))
    results, directory = reference / "run" / "training_res.csv", reference / "run" / "old_no_rng"
    outcome = clip_hba(
        "verify", "results", results, "--checkpoints", directory, "--config", config, "--json", tmp_path / "c.json"
    )
    assert outcome.code == 3, outcome.output
    assert (
        "header train_loss, test_loss, behavioral_rsa_rho, behavioral_rsa_p_value; epochs from 1" in outcome.output
    )
    assert outcome.output.count("Batch order: reconstructed from seed 1") == 6
    assert MISSING in outcome.output
    assert "1-5 %" in outcome.output

    recorded = json.loads((reference / "run" / "batch_order.json").read_text())
    train = torch.tensor(recorded["train_idx"])
    for epoch in json.loads((tmp_path / "c.json").read_text())["epochs"]:
        perm = torch.tensor(recorded["perms"][epoch["epoch"] - 1])
        assert epoch["order_digest"] == digest(train[perm])

    # its own rows in the other schema, epochs from 0, are the same rows
    with results.open() as file:
        rows = list(csv.DictReader(file))
    other = tmp_path / "other.csv"
    names = ("train_loss", "test_loss", "behavioral_rsa_rho", "behavioral_rsa_p_value")
    lines = ["epoch,train_loss,val_loss,rsa_behavioral_corr,rsa_behavioral_p"]
    lines += [",".join([str(int(row["epoch"]) - 1), *(row[name] for name in names)]) for row in rows]
    other.write_text("\n".join(lines) + "\n")
    again = clip_hba("verify", "results", other, "--checkpoints", directory, "--config", config, "--epochs", "1-2")
    assert again.code == 3, again.output
    assert "rsa_behavioral_p; epochs from 0" in again.output
    assert re.search(r"Train Loss:  0\.00\d*% difference", again.output), again.output


def test_the_recorded_run_under_another_seed_is_not_reproducible(
    reference: Path, things: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", recorded_run_keys(reference, things), random_seed=2)
    for name in ("dora", "old_no_rng"):
        outcome = clip_hba(
            "verify", "checkpoints", reference / "run" / name, "--config", config, "--epochs", "1-3"
        )
        assert outcome.code == 1, outcome.output
        if name == "dora":
            assert "Batch order: not equal: neither the replay nor seed 2" in outcome.output  # epoch 1
            assert outcome.output.count("Batch order: of another seed than 2") == 2


def test_old_checkpoints_need_a_configuration(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    old = tmp_path / "old"
    old.mkdir()
    parameters = read_checkpoint(checkpoint_path(run / "dora_params", 1)).parameters
    torch.save(parameters, old / "epoch1_dora_params.pth")
    outcome = clip_hba("verify", "checkpoints", old)
    assert outcome.code == 2
    assert "do not say what they were made with" in outcome.output
    config = write_config(tmp_path / "old.yaml", small_config)
    outcome = clip_hba("verify", "checkpoints", old, "--config", config)
    assert outcome.code == 3, outcome.output


def test_a_results_file_of_this_run_is_compared_to_the_last_digit(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=2)
    results = tmp_path / "copy.csv"
    results.write_bytes((run / "training_res.csv").read_bytes())
    outcome = clip_hba("verify", "results", results, "--checkpoints", run / "dora_params")
    assert outcome.code == 0, outcome.output
    with results.open() as file:
        rows = list(csv.reader(file))
    rows[2][2] = repr(
        torch.nextafter(torch.tensor(float(rows[2][2]), dtype=torch.float64), torch.tensor(0.0).double()).item()
    )
    results.write_text("\n".join(",".join(row) for row in rows) + "\n")
    outcome = clip_hba("verify", "results", results, "--checkpoints", run / "dora_params")
    assert outcome.code == 1
    assert f"test_loss: {rows[2][2]} in copy.csv" in outcome.output
    assert "the results file was changed, or is another run's: the checkpoint and the" in outcome.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "checkpoints", "nowhere"], "holds no checkpoints"),
        (["verify", "checkpoints", "{run}", "--epochs", "0"], "expected such as 3,10,20"),
        (["verify", "checkpoints", "{run}", "--epochs", "3-1"], "found '3-1'"),
        (["verify", "checkpoints", "{run}", "--epochs", "7"], "has no checkpoint of epoch 7"),
        (["verify", "checkpoints", "{run}", "--config", "nowhere.yaml"], "there is no configuration file"),
        (["verify", "checkpoints", "{run}", "--json", "{run}/config.yaml"], "a certificate is never replaced"),
        (["verify", "checkpoints", "{run}", "--json", "{run}/no/c.json"], "there is no directory"),
        (["verify", "results", "{run}/steps.jsonl", "--checkpoints", "{run}"], "is no results CSV"),
        (["verify", "results", "nowhere.csv", "--checkpoints", "{run}"], "there is no results CSV"),
        (["diff", "{run}", "nowhere"], "holds no checkpoints"),
        (["reconstruct", "nowhere", "--config", "{run}/config.yaml"], "holds no checkpoints"),
        (["reconstruct", "{run}", "--config", "{run}/config.yaml", "--order", "x"], "--order x: expected auto"),
        (["reconstruct", "{run}", "--config", "{run}/config.yaml", "--train"], "--train writes a complete run"),
        (["reconstruct", "{run}", "--config", "{run}/config.yaml", "--run-dir", "{run}"], "is not empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_use_is_refused_with_code_2_and_changes_nothing(
    arguments: list[str], message: str, finished_run: Path, clip_hba: ClipHba
) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    outcome = clip_hba(*(each.format(run=finished_run) for each in arguments))
    assert outcome.code == 2, outcome.output
    assert message in outcome.output
    assert "Traceback" not in outcome.output
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def finished_run(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    config: dict[str, Any] = dict(data_keys(standin_data))
    config |= {"epochs": 2, "num_threads": 1, "rank": 4, "device": "cpu"}  # type: ignore[dict-item]
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["train", str(directory / "config.yaml"), "--run-dir", str(directory / "run")]
    outcome = fresh_process.call(fresh_process.clip_hba, arguments, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return directory / "run"
