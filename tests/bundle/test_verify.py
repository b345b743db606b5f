"""`clip-hba verify bundle FILE.zip`: complete, or what differs; and trained again where the data are."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.bundle.archive import digest_of, in_order, write_archive
from clip_hba_behavior.bundle.manifest import MANIFEST, read_manifest
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.run.checkpoint import read_checkpoint
from fresh_process import Outcome
from run_tools import rewrite_state, write_config

pytestmark = pytest.mark.system

Called = Callable[..., Outcome]
Change = Callable[[dict[str, Any]], None]


def repacked(
    bundle: Path, directory: Path, change: Callable[[Path], None], facts: Change = lambda facts: None
) -> Path:
    """Forge a bundle: other files under a manifest that fits them."""
    unpacked = directory / "forged"
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(unpacked)
    content = json.loads((unpacked / MANIFEST).read_bytes())
    change(unpacked)
    facts(content["facts"])
    for name, entry in content["files"].items():
        entry["bytes"], entry["sha256"] = digest_of(unpacked / name)
    manifest = read_manifest(json.dumps(content).encode(), bundle).to_bytes()
    with (directory / "forged.zip").open("wb") as file:
        write_archive(file, in_order({name: unpacked / name for name in content["files"]}, manifest))
    return directory / "forged.zip"


def replace_in(name: str, old: str, new: str) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        text = (directory / name).read_text()
        assert old in text
        (directory / name).write_text(text.replace(old, new))

    return change


def test_a_bundle_is_complete_without_data_and_nothing_is_left_behind(
    bundle: Path, call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    path = Path(shutil.copy(bundle, tmp_path / "other name.zip"))
    outcome = call("verify", "bundle", path, "--json", tmp_path / "check.json")
    assert outcome.code == 0, outcome.output
    assert f"SHA-256 of {path}: {digest_of(bundle)[1]}" in outcome.output
    assert "complete: " in outcome.output
    assert "as ledger and results have them" in outcome.output
    assert "certificates of this run: certificate.json, level L3, reproducible" in outcome.output
    assert "nothing was trained again" in outcome.output
    certificate = json.loads((tmp_path / "check.json").read_text())
    assert (certificate["certificate"], certificate["verdict"], certificate["problems"]) == (
        "bundle",
        "complete",
        [],
    )
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_flipped_bit_in_any_file_is_found_and_named(bundle: Path, call: Called, tmp_path: Path) -> None:
    content = bundle.read_bytes()
    with zipfile.ZipFile(bundle) as archive:
        infos = archive.infolist()
    kinds = {info.filename.rpartition("/")[0] + Path(info.filename).suffix: info for info in infos}
    assert len(kinds) >= 8
    for info in kinds.values():
        flipped = bytearray(content)
        at = content.index(info.filename.encode(), info.header_offset) + len(info.filename) + info.file_size // 2
        flipped[at] ^= 1
        (tmp_path / "flipped.zip").write_bytes(flipped)
        outcome = call("verify", "bundle", tmp_path / "flipped.zip", "--epochs", "all")
        assert outcome.code == 1, outcome.output
        assert f"differs: {info.filename}" in outcome.output
        assert "nothing was trained again" in outcome.output


def change_a_state(directory: Path) -> None:
    path = directory / "dora_params" / "epoch4_dora_params.pth"
    state = read_checkpoint(path).whole_state()
    next(iter(state.parameters.values())).view(-1)[0] += 1
    rewrite_state(path, state)


def change_a_loss(directory: Path) -> None:
    lines = (directory / "steps.jsonl").read_text().splitlines()
    number = next(number for number, line in enumerate(lines) if '"end"' in line)
    record = json.loads(lines[number])
    record["metrics"]["train_loss"] = 1.5
    lines[number] = json.dumps(record)
    (directory / "steps.jsonl").write_text("\n".join(lines) + "\n")


def swap_states(directory: Path) -> None:
    shutil.copy(
        directory / "dora_params" / "epoch0_dora_params.pth", directory / "dora_params" / "epoch4_dora_params.pth"
    )


FORGED: dict[str, tuple[Callable[[Path], None], Change, str]] = {
    "a state": (
        change_a_state,
        lambda facts: None,
        "differs: the file of epoch 4 and the ledger disagree",
    ),
    "states exchanged": (swap_states, lambda facts: None, "epoch4_dora_params.pth"),
    "a loss in the ledger": (
        change_a_loss,
        lambda facts: None,
        "differs: train_loss of epoch 1: training_res.csv and steps.jsonl disagree",
    ),
    "a certificate of another run": (
        replace_in("certificate.json", '"recorded_digest": "', '"recorded_digest": "0'),
        lambda facts: None,
        "certificate.json is not of forged.zip",
    ),
    "a seed": (
        replace_in("config.yaml", "random_seed: 1\n", "random_seed: 2\n"),
        lambda facts: None,
        "differs: random_seed: config.yaml and environment.json disagree",
    ),
    "the facts": (
        lambda directory: None,
        lambda facts: facts.update(arithmetic="portable 2"),
        "differs: manifest.json: arithmetic is not what the files say",
    ),
    "a fact more": (
        lambda directory: None,
        lambda facts: facts.update(better="yes"),
        "differs: manifest.json: better is not what the files say",
    ),
}


@pytest.mark.parametrize("case", FORGED)
def test_files_that_contradict_each_other_are_found_under_a_manifest_that_fits(
    case: str, bundle: Path, call: Called, tmp_path: Path
) -> None:
    change, facts, message = FORGED[case]
    path = repacked(bundle, tmp_path, change, facts)
    outcome = call("verify", "bundle", path)
    assert outcome.code == 1, outcome.output
    assert message in outcome.output.replace(str(path), path.name)
    assert "clip-hba-bundle-" not in outcome.output  # the temporary directory


def test_packing_again_without_a_change_is_no_difference(bundle: Path, call: Called, tmp_path: Path) -> None:
    assert repacked(bundle, tmp_path, lambda directory: None).read_bytes() == bundle.read_bytes()


def test_a_portable_run_is_trained_again_to_the_last_bit(
    bundle: Path, data: Path, call: Called, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "moved"))
    config = write_config(tmp_path / "where.yaml", data_keys(moved))
    certificate = tmp_path / "again.json"
    outcome = call("verify", "bundle", bundle, "--config", config, "--json", certificate)
    assert outcome.code == 0, outcome.output
    assert "reproducible: 4 of 4 epochs repeat to the last bit, every state, step and result" in outcome.output
    assert "claim level L3" in outcome.output
    assert "Digests of the state in the ledger: 0 bits differ" in outcome.output  # of epochs without a file
    found = json.loads(certificate.read_text())
    assert found["what"]["bundle"] == found["what"]["run"] == str(bundle)
    assert found["what"]["epochs"] == [1, 2, 3, 4]
    assert [each["recorded_digest"] for each in found["epochs"]] == [
        each["replayed_digest"] for each in found["epochs"]
    ]
    assert None not in [each["replayed_digest"] for each in found["epochs"]]


def test_epochs_that_are_asked_for_begin_at_the_last_state_there_is(bundle: Path, call: Called) -> None:
    outcome = call("verify", "bundle", bundle, "--epochs", "2")
    assert outcome.code == 0, outcome.output
    assert "reproducible: 2 of 2 epochs" in outcome.output
    outcome = call("verify", "bundle", bundle, "--epochs", "5")
    assert (outcome.code, "expected: epochs 1 to 4" in outcome.output) == (2, True)


@pytest.mark.parametrize(
    ("forged", "says"),
    [
        ("of a tensor", ["Digests of the state in the ledger: 1 tensor differs", "EPOCH 2 PASSED"]),
        (
            "of all",
            ["EPOCH 2 could not be tested", "did not reach the state after epoch 1 that the ledger records"],
        ),
    ],
)
def test_a_forged_digest_of_a_state_that_is_left_out_is_found_by_training_again(
    forged: str, says: list[str], bundle: Path, call: Called, tmp_path: Path
) -> None:
    """The twin of the tests above: no file contradicts it, so that only a replay can tell."""

    def forge(directory: Path) -> None:
        lines = (directory / "steps.jsonl").read_text().splitlines()
        number = next(number for number, line in enumerate(lines) if '"end"' in line)
        record = json.loads(lines[number])
        if forged == "of a tensor":
            record["state"][next(iter(record["state"]))] = "0" * 16
        else:
            record["state_digest"] = "0" * 64
        lines[number] = json.dumps(record)
        (directory / "steps.jsonl").write_text("\n".join(lines) + "\n")

    path = repacked(bundle, tmp_path, forge)
    assert call("verify", "bundle", path).code == 0
    outcome = call("verify", "bundle", path, "--epochs", "1-2")
    assert outcome.code == 1, outcome.output
    assert "EPOCH 1 FAILED" in outcome.output
    for message in says:
        assert message in outcome.output


def test_other_data_are_named_and_nothing_is_claimed(bundle: Path, call: Called, tmp_path: Path) -> None:
    write_standin_dataset(tmp_path / "other", num_images=20)
    image = next((tmp_path / "other" / "images").iterdir())
    other = next(each for each in (tmp_path / "other" / "images").iterdir() if each != image)
    shutil.copy(other, image)
    config = write_config(tmp_path / "where.yaml", data_keys(tmp_path / "other"))
    outcome = call("verify", "bundle", bundle, "--config", config)
    assert outcome.code == 2, outcome.output
    assert "the digest of the images" in outcome.output
    assert image.name in outcome.output
    gone = write_config(tmp_path / "gone.yaml", data_keys(tmp_path / "gone"))
    outcome = call("verify", "bundle", bundle, "--config", gone)
    assert (outcome.code, "the run's data are not where they were" in outcome.output) == (2, True)


def test_a_native_run_is_trained_again_on_the_same_machine(
    train: Callable[..., Path], call: Called, tmp_path: Path
) -> None:
    run = train(epochs=3)
    assert call("bundle", run, "--out", tmp_path / "native.zip").code == 0
    outcome = call("verify", "bundle", tmp_path / "native.zip", "--epochs", "all")
    assert outcome.code == 0, outcome.output
    assert "claim level L0" in outcome.output
    assert "reproducible: 3 of 3 epochs" in outcome.output


def test_a_run_that_changed_on_its_way_keeps_the_states_around_the_change(
    train: Callable[..., Path], call: Called, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(epochs=3)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    outcome = call("resume", run, "--set", "epochs=6", "--allow", "MKL_CBWR")
    assert outcome.code == 0, outcome.output
    outcome = call("bundle", run, "--out", tmp_path / "changed.zip")
    assert outcome.code == 0, outcome.output
    names = zipfile.ZipFile(tmp_path / "changed.zip").namelist()
    for epoch in (0, 3, 4, 6):
        assert f"dora_params/epoch{epoch}_dora_params.pth" in names
    outcome = call("verify", "bundle", tmp_path / "changed.zip")
    assert outcome.code == 0, outcome.output
    outcome = call("verify", "bundle", tmp_path / "changed.zip", "--epochs", "4-6")
    assert outcome.code in (0, 3), outcome.output
    assert "the run drifted" in outcome.output


def test_a_perturbed_fork_is_trained_again_without_its_baseline(run: Path, call: Called, tmp_path: Path) -> None:
    baseline = Path(shutil.copytree(run, tmp_path / "baseline"))
    words = (
        "--at-epoch",
        "2",
        "--perturb",
        "label_shuffle",
        "--perturb-length",
        "1",
        "--run-dir",
        tmp_path / "fork",
    )
    outcome = call("fork", baseline, *words)
    assert outcome.code == 0, outcome.output
    outcome = call("bundle", tmp_path / "fork", "--out", tmp_path / "fork.zip")
    assert outcome.code == 0, outcome.output
    shutil.rmtree(baseline)
    shutil.rmtree(tmp_path / "fork")
    outcome = call("verify", "bundle", tmp_path / "fork.zip", "--epochs", "all")
    assert outcome.code == 0, outcome.output
    assert "reproducible: 3 of 3 epochs" in outcome.output


def test_an_interrupted_run_is_trained_again_up_to_its_last_state(run: Path, call: Called, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    rows = [line.split(",") for line in (copy / "training_res.csv").read_text().splitlines()[1:4]]
    loss, epoch = min((float(row[2]), int(row[0])) for row in rows)
    (copy / "dora_params" / "epoch4_dora_params.pth").unlink()  # killed after its lines, before its checkpoint
    outcome = call("bundle", copy, "--out", tmp_path / "copy.zip")
    assert (outcome.code, "best.json names epoch 4, of which there is no checkpoint" in outcome.output) == (
        2,
        True,
    )
    best = {"epoch": epoch, "test_loss": loss, "checkpoint": f"dora_params/epoch{epoch}_dora_params.pth"}
    (copy / "best.json").write_text(json.dumps(best))
    outcome = call("bundle", copy, "--out", tmp_path / "copy.zip")
    assert outcome.code == 0, outcome.output
    outcome = call("verify", "bundle", tmp_path / "copy.zip", "--epochs", "all")
    assert outcome.code == 0, outcome.output
    assert "reproducible: 3 of 3 epochs" in outcome.output


def test_what_is_no_bundle_is_refused(run: Path, call: Called, tmp_path: Path) -> None:
    checkpoint = run / "dora_params" / "epoch4_dora_params.pth"
    (tmp_path / "text.zip").write_text("no archive")
    for path, message in (
        (tmp_path / "none.zip", "there is no bundle"),
        (run, f"is a directory, not a bundle\n  make a bundle of a run: clip-hba bundle {run} --out FILE.zip"),
        (tmp_path / "text.zip", "no bundle, or a torn one"),
        (checkpoint, "epoch4_dora_params.pth is no bundle"),
    ):
        outcome = call("verify", "bundle", path)
        assert (outcome.code, message in outcome.output) == (2, True), outcome.output
