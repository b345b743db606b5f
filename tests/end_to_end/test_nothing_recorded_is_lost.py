"""What a run recorded outlives damage, mismatches and allowed changes; results of another program are not bits."""

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fresh_process
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from fresh_process import Outcome
from run_tools import differences, recorded_run_keys, rewrite_state, trained, write_config

ClipHba = Callable[..., Outcome]
Lines = list[bytes]


@pytest.fixture(scope="module")
def clip_hba_once(tmp_path_factory: pytest.TempPathFactory) -> ClipHba:
    """`clip_hba` for what all tests of this module share."""
    directory, numbers = tmp_path_factory.mktemp("outputs"), itertools.count()

    def run(*arguments: object) -> Outcome:
        texts = [str(each) for each in arguments]
        return fresh_process.call(fresh_process.clip_hba, texts, output=directory / f"{next(numbers)}.txt")

    return run


@pytest.fixture(scope="module")
def four_epochs(clip_hba_once: ClipHba, standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 4 epochs of 3 steps: its ledger has 16 lines, 4 per epoch."""
    keys = data_keys(standin_data)
    small = {"epochs": 4, "batch_size": 16, "num_threads": 1, "rank": 2, "lr": 1e-3, "device": "cpu"}
    return trained(clip_hba_once, tmp_path_factory.mktemp("four_epochs"), keys | small)


@pytest.fixture(scope="module")
def five_epochs(clip_hba_once: ClipHba, four_epochs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undamaged, resumed to epoch 5."""
    run = copied(four_epochs, tmp_path_factory.mktemp("five_epochs") / "run")
    outcome = clip_hba_once("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output
    return run


@pytest.fixture
def run(four_epochs: Path, tmp_path: Path) -> Path:
    return copied(four_epochs, tmp_path / "run")


def copied(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(copy)))
    return copy


def files_of(run: Path) -> Iterator[Path]:
    return (path for path in run.rglob("*") if path.is_file())


# --- a damaged line costs no other line -------------------------------------------------------------------

LINE = 4 + 1  # index of the line of epoch 2, step 2


def torn(lines: Lines) -> Lines:
    return [*lines[:LINE], lines[LINE][:20] + b"\n", *lines[LINE + 1 :]]


def zeroed(lines: Lines) -> Lines:
    return [*lines[:LINE], bytes(len(lines[LINE]) - 1) + b"\n", *lines[LINE + 1 :]]


def doubled(lines: Lines) -> Lines:
    return [*lines[: LINE + 1], lines[LINE], *lines[LINE + 1 :]]


def out_of_order(lines: Lines) -> Lines:
    return [*lines[:LINE], lines[LINE + 1], lines[LINE], *lines[LINE + 2 :]]


def damage(path: Path, how: Callable[[Lines], Lines]) -> bytes:
    """Rewrite a file's lines; return its new content."""
    content = b"".join(how(path.read_bytes().splitlines(keepends=True)))
    assert content != path.read_bytes()
    path.write_bytes(content)
    return content


def quarantined(run: Path, name: str) -> dict[str, Any]:
    """Return the record beside the damaged original, of which no byte may be lost."""
    record: dict[str, Any] = json.loads((run / "quarantine" / f"{name}.1.json").read_text())
    original = (run / "quarantine" / f"{name}.1").read_bytes()
    assert record.keys() >= {"file", "original", "sha256", "date", "faults", "remade"}
    assert (record["file"], record["original"]) == (name, f"quarantine/{name}.1")
    assert record["sha256"] == hashlib.sha256(original).hexdigest()
    assert all(fault.keys() == {"first_line", "last_line", "why"} and fault["why"] for fault in record["faults"])
    assert all(each.keys() == {"epoch", "step", "source"} and each["source"] for each in record["remade"])
    return record


@pytest.mark.system
@pytest.mark.parametrize("how", [torn, zeroed, doubled, out_of_order])
def test_one_damaged_line_of_the_ledger_costs_no_other_and_is_made_again(
    how: Callable[[Lines], Lines], run: Path, five_epochs: Path, clip_hba: ClipHba
) -> None:
    damaged = damage(run / "steps.jsonl", how)
    outcome = clip_hba("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output
    assert differences(five_epochs, run) == []

    assert (run / "quarantine/steps.jsonl.1").read_bytes() == damaged
    record = quarantined(run, "steps.jsonl")
    lines = [(fault["first_line"], fault["last_line"]) for fault in record["faults"]]
    if how in (torn, zeroed):
        assert lines == [(LINE + 1, LINE + 1)]  # counted from 1
        assert [(each["epoch"], each["step"]) for each in record["remade"]] == [(2, 2)]
        source = record["remade"][0]["source"]
        assert "replay" in source or "checkpoint" in source or "epoch1_dora_params.pth" in source
    else:
        assert lines
        assert all(LINE + 1 <= first <= last <= LINE + 2 for first, last in lines)

    assert "quarantine/steps.jsonl.1" in outcome.output
    assert "quarantine/steps.jsonl.1" in (run / "training_log.txt").read_text()
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    assert "quarantine/steps.jsonl.1" in outcome.output
    assert outcome.output.splitlines()[-1].startswith("reproducible: 5 of 5 epochs")

    outcome = clip_hba("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output
    assert sorted(path.name for path in (run / "quarantine").iterdir()) == ["steps.jsonl.1", "steps.jsonl.1.json"]


def test_a_line_that_is_gone_is_made_again_and_said(run: Path, five_epochs: Path, clip_hba: ClipHba) -> None:
    damaged = damage(run / "steps.jsonl", lambda lines: [*lines[:LINE], *lines[LINE + 1 :]])
    outcome = clip_hba("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output
    assert differences(five_epochs, run) == []
    assert "Repaired steps.jsonl: lines are missing" in (run / "training_log.txt").read_text()
    assert (run / "quarantine/steps.jsonl.1").read_bytes() == damaged
    assert [(each["epoch"], each["step"]) for each in quarantined(run, "steps.jsonl")["remade"]] == [(2, 2)]


def test_a_broken_row_of_the_results_is_remade_from_its_checkpoint_and_the_original_kept(
    run: Path, five_epochs: Path, clip_hba: ClipHba
) -> None:
    results = run / "training_res.csv"
    damaged = damage(results, lambda lines: [*lines[:2], b"2,59.6,fifty-eight\n", *lines[3:]])
    outcome = clip_hba("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output
    assert differences(five_epochs, run) == []

    assert (run / "quarantine/training_res.csv.1").read_bytes() == damaged
    record = quarantined(run, "training_res.csv")
    assert [(fault["first_line"], fault["last_line"]) for fault in record["faults"]] == [(3, 3)]
    assert [each["epoch"] for each in record["remade"]] == [2]
    assert "epoch2_dora_params.pth" in record["remade"][0]["source"]
    assert "quarantine/training_res.csv.1" in outcome.output
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    assert "quarantine/training_res.csv.1" in outcome.output


def test_a_line_whose_epoch_cannot_be_replayed_to_the_recorded_end_stays_a_gap(
    run: Path, five_epochs: Path, clip_hba: ClipHba
) -> None:
    """Epoch 2's end is forged in checkpoint and ledger alike, so that no replay of it reaches the record."""
    forge_end_of_epoch_2(run)
    ledger = run / "steps.jsonl"
    before = ledger.read_bytes().splitlines(keepends=True)
    damaged = damage(ledger, torn)
    outcome = clip_hba("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output
    theirs = (five_epochs / "steps.jsonl").read_bytes().splitlines(keepends=True)
    assert ledger.read_bytes().splitlines(keepends=True) == [*before[:LINE], *before[LINE + 1 :], *theirs[16:]]
    assert (run / "quarantine/steps.jsonl.1").read_bytes() == damaged
    assert quarantined(run, "steps.jsonl")["remade"] == []

    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 1, outcome.output
    assert "steps.jsonl lacks lines of epoch 2" in outcome.output
    assert "quarantine/steps.jsonl.1" in outcome.output


def forge_end_of_epoch_2(run: Path) -> None:
    path = checkpoint_path(run / "dora_params", 2)
    recorded = read_checkpoint(path).state_digest
    state = read_checkpoint(path).whole_state()
    next(iter(state.parameters.values())).view(torch.int32)[0] ^= 1
    rewrite_state(path, state)
    forged = read_checkpoint(path).state_digest
    ledger = run / "steps.jsonl"
    text = ledger.read_text()
    assert text.count(str(recorded)) == 1
    ledger.write_text(text.replace(str(recorded), str(forged)))


def test_a_run_without_damage_has_no_quarantine(five_epochs: Path) -> None:
    assert not (five_epochs / "quarantine").exists()


# --- a mismatch is refused until a person decides ---------------------------------------------------------


def mismatching(run: Path, name: str, number: int, old: str, new: str) -> str:
    """Lose the newest checkpoint, and alter a line that the repetition must write again; return the line."""
    checkpoint_path(run / "dora_params", 4).unlink()
    lines = (run / name).read_text().splitlines(keepends=True)
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new, 1)
    (run / name).write_text("".join(lines))
    return lines[number]


MISMATCHES = {
    "a step": ("steps.jsonl", 3 * 4 + 1, '"loss": ', '"loss": 1'),  # epoch 4, step 2
    "the epoch's end": ("steps.jsonl", 3 * 4 + 3, '"train_loss": ', '"train_loss": 1'),
    "the results": ("training_res.csv", 4, "4,", "4,1"),
}


def is_kept(line: str, run: Path) -> bool:
    return any(line.encode() in path.read_bytes() for path in files_of(run))


@pytest.mark.system
@pytest.mark.parametrize("where", MISMATCHES)
def test_a_mismatch_is_refused_each_time_until_it_is_accepted_on_record(
    where: str, run: Path, clip_hba: ClipHba
) -> None:
    line = mismatching(run, *MISMATCHES[where])
    outcomes, kept = [], []
    for _ in range(3):
        outcomes.append(clip_hba("resume", run))
        kept.append(is_kept(line, run))
    assert [outcome.code for outcome in outcomes] == [1, 1, 1], outcomes[-1].output
    assert kept == [True, True, True]
    messages = [outcome.output[outcome.output.index("error: ") :] for outcome in outcomes]
    assert "--accept-mismatch 4" in messages[0]
    assert messages[1:] == messages[:1] * 2
    assert not checkpoint_path(run / "dora_params", 4).exists()
    assert (run / "training_log.txt").read_text().count("did not repeat what it had recorded") == 3

    outcome = clip_hba("resume", run, "--accept-mismatch", 4)
    assert outcome.code == 0, outcome.output
    assert is_kept(line, run / "quarantine")
    environment = json.loads((run / "environment.json").read_text())
    provenance = read_checkpoint(checkpoint_path(run / "dora_params", 4)).provenance
    for drift in (environment["drift"], provenance["drift"]):
        assert any("mismatch" in each and "4" in each for each in drift), drift
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code in (0, 3), outcome.output  # what was accepted is on record, and bears on the claim alone
    assert "mismatch" in outcome.output
    outcome = clip_hba("resume", run, "--set", "epochs=5")
    assert outcome.code == 0, outcome.output  # it was decided once and for all


@pytest.mark.parametrize("pending", [False, True], ids=["nothing is pending", "another epoch is pending"])
def test_accepting_a_mismatch_that_there_is_not_is_refused_and_changes_nothing(
    pending: bool, run: Path, clip_hba: ClipHba
) -> None:
    if pending:
        mismatching(run, *MISMATCHES["a step"])
        assert clip_hba("resume", run).code == 1
    not_the_record = ("training_log.txt", "run.lock")
    before = {path: path.read_bytes() for path in files_of(run) if path.name not in not_the_record}
    outcome = clip_hba("resume", run, "--accept-mismatch", 2)
    assert outcome.code == 2, outcome.output
    assert "No such option" not in outcome.output
    assert "epoch 2" in outcome.output
    assert {path: path.read_bytes() for path in files_of(run) if path.name not in not_the_record} == before


# --- an allowed change leaves a run verifiable ------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize("change", ["lr=0.01", "num_threads=2", "eval_batch_size=5"])
def test_a_run_that_went_on_under_allowed_settings_is_verified(change: str, run: Path, clip_hba: ClipHba) -> None:
    arguments = ["--set", change, "--set", "epochs=5", "--allow", change.partition("=")[0]]
    outcome = clip_hba("resume", run, *arguments)
    assert outcome.code == 0, outcome.output
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    assert "reproducible: 5 of 5 epochs" in outcome.output


# --- a results table of another program -------------------------------------------------------------------


@pytest.fixture(scope="module")
def reconstructed(
    reference: Path, things: Path, clip_hba_once: ClipHba, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The recorded run of the earlier pipeline, repeated with all of its state."""
    directory = tmp_path_factory.mktemp("reconstructed")
    config = write_config(directory / "config.yaml", recorded_run_keys(reference, things))
    old, run = reference / "run" / "old_no_rng", directory / "run"
    outcome = clip_hba_once("reconstruct", old, "--config", config, "--run-dir", run, "--train")
    assert outcome.code == 0, outcome.output
    return run


def written_by_another(reference: Path, path: Path, form: str, factor: float = 1.0) -> Path:
    """Write the earlier pipeline's rows in one of its two forms, the test loss of epoch 3 times a factor."""
    with (reference / "run" / "training_res.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # this project's own tables have a further column, by which they differ from these
    assert "perturb_type" not in rows[0]
    rows[2]["test_loss"] = repr(float(rows[2]["test_loss"]) * factor)
    if form == "epochs from 0":
        names = {
            "train_loss": "train_loss",
            "val_loss": "test_loss",
            "rsa_behavioral_corr": "behavioral_rsa_rho",
            "rsa_behavioral_p": "behavioral_rsa_p_value",
        }
        rows = [
            {"epoch": str(int(row["epoch"]) - 1)} | {name: row[theirs] for name, theirs in names.items()}
            for row in rows
        ]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.system
@pytest.mark.parametrize("form", ["epochs from 1", "epochs from 0"])
def test_a_results_table_of_another_program_is_consistent_and_the_largest_difference_named(
    form: str, reference: Path, reconstructed: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    results = written_by_another(reference, tmp_path / "theirs.csv", form)
    outcome = clip_hba("verify", "results", results, "--checkpoints", reconstructed)
    assert outcome.code == 3, outcome.output
    assert outcome.output.splitlines()[-1].startswith("consistent")
    assert "largest difference" in outcome.output
    assert "every bit is claimed" not in outcome.output


@pytest.mark.parametrize("form", ["epochs from 1", "epochs from 0"])
def test_a_results_table_of_another_program_beyond_tolerance_is_not_reproducible(
    form: str, reference: Path, reconstructed: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    results = written_by_another(reference, tmp_path / "theirs.csv", form, factor=1.1)
    outcome = clip_hba("verify", "results", results, "--checkpoints", reconstructed)
    assert outcome.code == 1, outcome.output
    assert "test_loss" in outcome.output
