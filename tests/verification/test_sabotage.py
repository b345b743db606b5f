"""Whatever is changed in a run is found and named, as damage and as a forgery whose records all fit."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fresh_process import Outcome
from run_tools import write_config
from verification import sabotage
from verification.sabotage import PARAMETER

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]
IMAGE = "drawn_0007.png"  # one that trains


@dataclass(frozen=True)
class Case:
    """What is done to a run, what `verify` and `diff` must say, and which epochs are verified."""

    sabotage: Callable[[Path, ClipHba], object]
    verify: tuple[str, ...]
    diff: tuple[str, ...]
    epochs: str = "3,4"


def damaged(change: Callable[..., Any], epoch: int = 3) -> Callable[[Path, ClipHba], None]:
    return lambda run, clip_hba: sabotage.damage(run, epoch, change)


def forged(change: Callable[..., Any], epoch: int = 3) -> Callable[[Path, ClipHba], None]:
    return lambda run, clip_hba: sabotage.forge(run, epoch, change)


def trained_under(**settings: Any) -> Callable[[Path, ClipHba], None]:
    def train(run: Path, clip_hba: ClipHba) -> None:
        before = sabotage.read(run, 3).state_digest
        sabotage.train_under(clip_hba, run, 3, **settings)
        if sabotage.read(run, 3).state_digest == before:
            pytest.skip(f"{settings} changes no bit on this machine")

    return train


def trained_under_and_forged(own: dict[str, Any], **settings: Any) -> Callable[[Path, ClipHba], None]:
    def train(run: Path, clip_hba: ClipHba) -> None:
        trained_under(**settings)(run, clip_hba)
        sabotage.forge_config_of(run, **own)
        if "lr" in own:
            sabotage.forge(run, 3, partial(sabotage.with_learning_rate, lr=own["lr"]))

    return train


LOW_BIT = partial(sabotage.with_one_bit_flipped, bit=0)
HIGH_BIT = partial(sabotage.with_one_bit_flipped, bit=22)
ONE_ELEMENT = f"parameters: {PARAMETER}: 1 of 512 elements differ"
DAMAGED = "epoch3_dora_params.pth is damaged: its state is not the one that was saved"
UNSEEN_BY_THE_LEDGER = "the file was changed after training"
ROUNDING = "a difference as small as rounding: another number of threads"
UPDATE = "the update: batches and the loss of the first step are the same, so the learning rate"
RESULTS = "results were changed, or evaluated in another way (test_loss)"
ONLY_B = "likely cause: A repeats its record and B does not"
AT_END = "first difference: epoch 3, at its end: "

CASES = {
    "a low bit of one parameter, damaged": Case(
        damaged(LOW_BIT),
        (
            "EPOCH 3 FAILED",
            DAMAGED,
            ONE_ELEMENT,
            f"the ledger disagree: parameters/{PARAMETER}",
            "EPOCH 4 could not",
        ),
        (f"{AT_END}parameters", ONE_ELEMENT, f"likely cause: B: {{run}}/dora_params/{DAMAGED}"),
    ),
    "a low bit of one parameter, forged": Case(
        forged(LOW_BIT),
        ("EPOCH 3 FAILED", f"at its end: parameters/{PARAMETER}", ONE_ELEMENT, UNSEEN_BY_THE_LEDGER),
        (f"{AT_END}parameters", ONE_ELEMENT, ONLY_B, UNSEEN_BY_THE_LEDGER),
    ),
    "a high bit of one parameter, forged": Case(
        forged(HIGH_BIT),
        ("EPOCH 3 FAILED", ONE_ELEMENT, UNSEEN_BY_THE_LEDGER, "EPOCH 4 FAILED", "first differs at step 1: loss"),
        (f"{AT_END}parameters", ONE_ELEMENT, ONLY_B, UNSEEN_BY_THE_LEDGER),
    ),
    "no optimizer state, damaged": Case(
        damaged(sabotage.without_optimizer_state),
        ("EPOCH 3 FAILED", DAMAGED, "Likely cause: optimizer state was dropped from the file"),
        (
            f"{AT_END}optimizer_state",
            "only in A: state/0/",
            DAMAGED,
            "; optimizer state was dropped from the file",
        ),
    ),
    "no optimizer state, forged": Case(
        forged(sabotage.without_optimizer_state),
        (
            "EPOCH 3 FAILED",
            "only in the replay: state/0/",
            "Likely cause: optimizer state was dropped from the file",
        ),
        (f"{AT_END}optimizer_state", ONLY_B, "optimizer state was dropped from the file"),
    ),
    "one extra random draw, damaged": Case(
        damaged(sabotage.with_one_extra_draw),
        (
            "EPOCH 3 FAILED",
            DAMAGED,
            "random states: torch_rng_state: ",
            "Likely cause: a random draw more or less",
        ),
        (f"{AT_END}rng_state", "random states: torch_rng_state: ", DAMAGED, "; a random draw more or less"),
    ),
    "one extra random draw, forged": Case(
        forged(sabotage.with_one_extra_draw),
        (
            "EPOCH 3 FAILED",
            "random states: torch_rng_state: ",
            "Likely cause: a random draw more or less than the epoch makes",
            "EPOCH 4 FAILED",
            "Batch order: 0 of 3 batches equal",
            "Likely cause: the random state at the epoch's start",
        ),
        (f"{AT_END}rng_state", "random states: torch_rng_state: ", ONLY_B, "a random draw more or less"),
    ),
    "two threads in one epoch": Case(
        trained_under(num_threads=2),
        (
            "EPOCH 3 FAILED",
            "Likely cause: num_threads was 2 in epoch 3, its file says; the run's is 1",
            "EPOCH 4 PASSED",
            "problem: num_threads: the run's files and its checkpoints disagree\n"
            "    in the run's files: 1\n    in the checkpoint:  2 (epoch 3)",
        ),
        (
            "first difference: epoch 3, ",
            "problem in B: num_threads: ",
            "likely cause: num_threads: 1 in A, 2 in B",
        ),
    ),
    "two threads in one epoch, forged": Case(
        trained_under_and_forged({"num_threads": 1}, num_threads=2),
        ("EPOCH 3 FAILED", ROUNDING, "EPOCH 4 PASSED"),
        ("first difference: epoch 3, ", ONLY_B, ROUNDING),
    ),
    "another size of evaluation batches in one epoch": Case(
        trained_under(eval_batch_size=5),
        ("EPOCH 3 FAILED", "Likely cause: eval_batch_size was 5 in epoch 3, its file says; the run's is 64"),
        (f"{AT_END}metrics", "likely cause: eval_batch_size: 64 in A, 5 in B"),
    ),
    "another size of evaluation batches in one epoch, forged": Case(
        trained_under_and_forged({"eval_batch_size": 64}, eval_batch_size=5),
        ("EPOCH 3 FAILED", "results were changed, or evaluated in another way"),
        (f"{AT_END}metrics", ONLY_B, "results were changed, or evaluated in another way"),
    ),
    "another learning rate in one epoch": Case(
        trained_under(lr=2e-3),
        (
            "EPOCH 3 FAILED",  # it repeats under its own rate, but nothing on record allows that
            "Maximum parameter difference: 0.00e+00  (0 bits differ)",
            "Likely cause: lr was 0.002 in epoch 3, its file says; the run's is 0.001",
            "problem: lr: the run's files and its checkpoints disagree\n"
            "    in the run's files: 0.001\n    in the checkpoint:  0.002 (epoch 3)",
        ),
        ("first difference: epoch 3, at step 2: loss", "likely cause: lr: 0.001 in A, 0.002 in B"),
    ),
    "another learning rate in one epoch, forged": Case(
        trained_under_and_forged({"lr": 1e-3}, lr=2e-3),
        ("EPOCH 3 FAILED", "first differs at step 2: loss", f"Likely cause: {UPDATE}", "EPOCH 4 PASSED"),
        ("first difference: epoch 3, at step 2: loss", ONLY_B, UPDATE),
    ),
    "the last digit of a test loss in the CSV": Case(
        lambda run, clip_hba: sabotage.change_last_digit_in_csv(run, 3),
        ("EPOCH 3 FAILED", "test_loss: ", " in training_res.csv, ", "Likely cause: the results file was changed"),
        (f"{AT_END}metrics", "likely cause: B: the results file was changed, or is another run's"),
    ),
    "the last digit of a test loss, forged": Case(
        forged(sabotage.with_another_last_digit),
        ("EPOCH 3 FAILED", "first differs at its end: metrics/test_loss", f"Likely cause: {RESULTS}"),
        (f"{AT_END}metrics", "test_loss in the results: ", ONLY_B, RESULTS),
    ),
    "a loss in the ledger": Case(
        lambda run, clip_hba: sabotage.change_loss_in_ledger(run, 3, 2),
        (
            "EPOCH 3 FAILED",
            "first differs at step 2: loss",
            "Likely cause: the ledger was changed",
            "EPOCH 4 PASSED",
        ),
        ("first difference: epoch 3, at step 2: loss", "likely cause: B: the ledger was changed"),
    ),
    "two files swapped": Case(
        lambda run, clip_hba: sabotage.swap(run, 2, 3),
        (
            "EPOCH 2 FAILED",
            "Likely cause: files were swapped: epoch 2's holds the parameters of epoch 3",
            "epoch2_dora_params.pth holds another state than its name says: the one after epoch 3",
            "epoch3_dora_params.pth holds another state than its name says: the one after epoch 2",
        ),
        (
            "first difference: epoch 2, ",
            "likely cause: B: files were swapped: epoch 2's holds the parameters of",
        ),
        epochs="2,3,4",
    ),
    "two files swapped and renumbered": Case(
        lambda run, clip_hba: sabotage.swap_and_renumber(run, 2, 3, with_ledger=False),
        (
            "EPOCH 2 FAILED",
            "Likely cause: files were swapped: epoch 2's holds the parameters of epoch 3",
            "EPOCH 3 FAILED",
            "Likely cause: files were swapped: epoch 3's holds the parameters of epoch 2",
        ),
        (
            "first difference: epoch 2, ",
            "likely cause: B: files were swapped: epoch 2's holds the parameters of",
        ),
        epochs="2,3,4",
    ),
    "two files swapped and renumbered, with ledger and CSV forged": Case(
        lambda run, clip_hba: sabotage.swap_and_renumber(run, 2, 3, with_ledger=True),
        (
            "EPOCH 2 FAILED",
            "Likely cause: files were swapped: the replay reached the parameters recorded for epoch 3",
            "EPOCH 3 FAILED",
        ),
        (
            "first difference: epoch 2, at its end: parameters",
            "B: files were swapped: epoch 2's holds the parameters of epoch 3, says the ledger of A",
        ),
        epochs="2,3,4",
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all tests here share: the baseline, and runs on altered data."""
    return tmp_path_factory.mktemp("sabotage")


@pytest.fixture
def baseline(home: Path, small_config: dict[str, Any], clip_hba: ClipHba) -> Path:
    return trained_once(home / "baseline", small_config, clip_hba)


def trained_once(run: Path, keys: dict[str, Any], clip_hba: ClipHba) -> Path:
    if not run.exists():
        outcome = clip_hba("train", write_config(run.with_suffix(".yaml"), keys), "--run-dir", run)
        assert outcome.code == 0, outcome.output
    return run


@pytest.fixture
def run(baseline: Path, tmp_path: Path) -> Path:
    """An untouched copy of the baseline."""
    return Path(shutil.copytree(baseline, tmp_path / "run"))


def assert_says(outcome: Outcome, code: int, *texts: str) -> None:
    assert outcome.code == code, outcome.output
    for text in texts:
        assert text in outcome.output, f"not said: {text}\n{outcome.output}"


def test_an_untouched_copy_is_reproducible_and_equal(run: Path, baseline: Path, clip_hba: ClipHba) -> None:
    outcome = clip_hba("verify", "checkpoints", run)
    assert_says(outcome, 0, "reproducible: 4 of 4 epochs repeat to the last bit")
    outcome = clip_hba("verify", "results", run / "training_res.csv", "--checkpoints", run)
    assert_says(outcome, 0, "reproducible: 4 of 4 epochs repeat to the last bit")
    assert_says(clip_hba("diff", baseline, run), 0, "equal: 0 bits differ in 5 states")


@pytest.mark.parametrize("name", CASES)
def test_verify_and_diff_find_and_name(name: str, run: Path, baseline: Path, clip_hba: ClipHba) -> None:
    case = CASES[name]
    case.sabotage(run, clip_hba)
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", case.epochs)
    assert_says(outcome, 1, *case.verify, "\nnot reproducible: ")
    texts = [text.format(run=run) for text in case.diff]
    outcome = clip_hba("diff", baseline, run)
    assert_says(outcome, 1, *texts, "\ndifferent from epoch ")


@pytest.mark.parametrize("with_checkpoint", [False, True], ids=["in the CSV alone", "forged"])
def test_verify_results_finds_and_names_a_changed_digit(
    with_checkpoint: bool, run: Path, clip_hba: ClipHba
) -> None:
    if with_checkpoint:
        sabotage.forge(run, 3, sabotage.with_another_last_digit)
    else:
        sabotage.change_last_digit_in_csv(run, 3)
    csv = run / "training_res.csv"
    outcome = clip_hba("verify", "results", csv, "--checkpoints", run, "--epochs", "3,4")
    cause = f"Likely cause: {RESULTS}" if with_checkpoint else "Likely cause: the results file was changed"
    assert_says(outcome, 1, "EPOCH 3 FAILED", "test_loss: ", "in training_res.csv", cause, "EPOCH 4 PASSED")


def test_files_swapped_where_nothing_sound_is_left_to_start_from_cannot_be_tested(
    run: Path, clip_hba: ClipHba
) -> None:
    sabotage.swap(run, 2, 3)
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", "3")
    assert_says(outcome, 2, "EPOCH 3 could not be tested", "was it renamed, or swapped with another?")


def test_lines_that_are_gone_are_said_and_not_claimed(run: Path, clip_hba: ClipHba) -> None:
    sabotage.edit_ledger(run, lambda entry: None if (entry["epoch"], entry["step"]) == (3, 2) else entry)
    sabotage.edit_rows(run, lambda row: None if row[0] == "4" else row)
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", "3,4")
    assert_says(outcome, 0, "steps.jsonl lacks lines of epoch 3", "training_res.csv lacks lines of epoch 4")
    assert_says(outcome, 0, "every state, step and result on record")


def test_a_setting_changed_in_one_record_alone_is_named(run: Path, baseline: Path, clip_hba: ClipHba) -> None:
    sabotage.edit_json(run / "environment.json", lambda content: content["trajectory"].update(lr=0.5))
    said = "lr: config.yaml and environment.json disagree\n    in config.yaml:      0.001\n"
    assert_says(clip_hba("verify", "checkpoints", run, "--epochs", "4"), 1, f"problem: {said}")
    assert_says(clip_hba("diff", baseline, run), 1, f"problem in B: {said}", "different in their records only")


# --- data -------------------------------------------------------------------------------------------

ALTERATIONS = {
    "image": sabotage.alter_image,
    "target": sabotage.alter_target,
    "file for every image": sabotage.alter_every_file,
}
NAMED = {"image": f"images that differ: {IMAGE}", "target": f"targets that differ, of the images: {IMAGE}"}
CONTENT = "an image or its targets are not what they were, in batches of the same rows"


@pytest.fixture(params=["image", "target"])
def what(request: pytest.FixtureRequest) -> str:
    """What is altered: a pixel of one image, or the last bit of one of its targets."""
    return str(request.param)


@pytest.fixture
def altered(what: str, home: Path, standin_data: Path) -> Path:
    """The altered data."""
    directory = home / f"data with another {what}"
    if not directory.exists():
        shutil.copytree(standin_data, directory)
        ALTERATIONS[what](directory, IMAGE)
    return directory


@pytest.fixture
def other(what: str, altered: Path, home: Path, small_config: dict[str, Any], clip_hba: ClipHba) -> Path:
    """The run that was trained on them."""
    keys = sabotage.data_of(small_config, altered)
    return trained_once(home / f"run on another {what}", keys, clip_hba)


def test_verify_refuses_and_names_data_altered_after_the_run(
    what: str, run: Path, altered: Path, clip_hba: ClipHba
) -> None:
    sabotage.edit_config(run, **sabotage.data_of({}, altered))
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", "3,4")
    assert_says(outcome, 2, "EPOCH 3 could not be tested", f"problem: the digest of the {what}s", NAMED[what])
    assert "could not be tested: of 2 epochs" in outcome.output


def test_verify_finds_and_names_altered_data_whose_digests_are_forged(
    what: str, run: Path, altered: Path, other: Path, clip_hba: ClipHba
) -> None:
    sabotage.edit_config(run, **sabotage.data_of({}, altered))
    sabotage.forge_data_of(run, other)
    outcome = clip_hba("verify", "checkpoints", run)
    assert_says(outcome, 1, "EPOCH 1 FAILED", "Batch order: 2 of 3 batches equal", ": batch (")
    # epoch 1 leaves the sixteen images of one batch; each epoch leaves fewer of them
    assert_says(outcome, 1, f"Likely cause: {CONTENT}: {IMAGE}\n", "\nnot reproducible: ")


def test_diff_finds_and_names_altered_data(what: str, baseline: Path, other: Path, clip_hba: ClipHba) -> None:
    outcome = clip_hba("diff", baseline, other)
    assert_says(
        outcome, 1, "first difference: epoch 1, at step ", ": batch content", f"likely cause: {what}s: {IMAGE}: "
    )


def test_diff_finds_and_names_altered_data_whose_digests_are_forged(
    what: str, baseline: Path, other: Path, standin_data: Path, tmp_path: Path, clip_hba: ClipHba
) -> None:
    forged_run = Path(shutil.copytree(other, tmp_path / "forged"))
    sabotage.forge_data_of(forged_run, baseline)
    sabotage.edit_config(forged_run, **sabotage.data_of({}, standin_data))
    outcome = clip_hba("diff", baseline, forged_run)
    assert_says(
        outcome, 1, "first difference: epoch 1, at step ", ": batch content", ONLY_B, f"{CONTENT}: {IMAGE}\n"
    )


@pytest.mark.parametrize("what", ["file for every image"], indirect=True)
def test_data_altered_everywhere_are_not_taken_for_another_order(
    run: Path, altered: Path, other: Path, clip_hba: ClipHba
) -> None:
    outcome = clip_hba("diff", run, other, "--no-replay")
    assert_says(
        outcome, 1, "first difference: epoch 1, at step 1: batch content", "likely cause: images: drawn_0000.png"
    )
    sabotage.forge_data_of(run, other)
    cause = "ikely cause: images or targets are not what they were, in batches of the same rows"
    assert_says(clip_hba("diff", run, other, "--no-replay"), 1, ": batch content", cause)
    sabotage.edit_config(run, **sabotage.data_of({}, altered))
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", "3")
    assert_says(outcome, 1, "EPOCH 3 FAILED", "Batch order: 0 of 3 batches equal", "(0 bits differ)", cause)
