"""Runs that an old commit left behind continue with today's code, and end in the bits that the old code gave."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from fresh_process import Outcome
from old_run_tools import EXPECTED, OLD_RUNS, restored, why_bits_differ_here

ClipHba = Callable[..., Outcome]


@pytest.fixture
def old_run(request: pytest.FixtureRequest, tmp_path: Path, standin_data: Path) -> Path:
    """The run that the test's parameter names, on this machine."""
    why = why_bits_differ_here(request.param, standin_data)
    if why is not None:
        pytest.skip(f"tests/old_runs/{request.param} has the bits of another machine: {why}")
    (tmp_path / "runs").mkdir()
    return restored(request.param, tmp_path / "runs", standin_data, tmp_path / "cache")


def expected_states(run: Path) -> dict[str, str]:
    states: dict[str, str] = EXPECTED["runs"][run.name]["states"]
    return states


def states_of(run: Path) -> dict[str, str]:
    return {
        path.name.removeprefix("epoch").partition("_")[0]: torch.load(path)["state_digest"]
        for path in (run / "dora_params").glob("epoch*.pth")
    }


def test_every_old_run_has_an_expected_end() -> None:
    assert sorted(EXPECTED["runs"]) == sorted(path.name for path in OLD_RUNS.iterdir() if path.is_dir())


@pytest.mark.parametrize("old_run", ["plain", "interrupted", "fork", "crashed", "portable"], indirect=True)
def test_an_old_run_is_resumed_to_the_bits_that_the_old_code_gave_and_verified(
    old_run: Path, clip_hba: ClipHba
) -> None:
    kept = {path: path.read_bytes() for path in old_run.glob("dora_params/*")}
    outcome = clip_hba("resume", old_run, "--set", f"epochs={EXPECTED['last_epoch']}")
    assert outcome.code == 0, outcome.output
    assert states_of(old_run) == expected_states(old_run)
    for name, digest in EXPECTED["runs"][old_run.name]["files"].items():
        assert sha256((old_run / name).read_bytes()).hexdigest() == digest, (old_run / name).read_text()
    assert {path: path.read_bytes() for path in kept} == kept  # damaged files too stay where they were

    outcome = clip_hba("verify", "checkpoints", old_run)
    assert outcome.code == 0, outcome.output
    num_epochs = len(states_of(old_run)) - 1
    assert f"reproducible: {num_epochs} of {num_epochs} epochs" in outcome.output


@pytest.mark.parametrize("old_run", ["plain", "fork"], indirect=True)
def test_an_old_run_is_verified_as_it_is(old_run: Path, clip_hba: ClipHba) -> None:
    outcome = clip_hba("verify", "checkpoints", old_run)
    assert outcome.code == 0, outcome.output


@pytest.mark.parametrize("old_run", ["interrupted"], indirect=True)
def test_the_state_within_an_epoch_is_the_one_that_an_old_run_goes_on_from(
    old_run: Path, clip_hba: ClipHba
) -> None:
    [state] = (old_run / "step_checkpoints").iterdir()
    step = torch.load(state)["step_in_epoch"]
    outcome = clip_hba("resume", old_run)
    assert outcome.code == 0, outcome.output
    assert f"Resuming from the state after epoch 1, step {step} of the next" in outcome.output


@pytest.mark.parametrize("old_run", ["crashed"], indirect=True)
def test_lines_that_an_old_run_had_yet_to_repeat_are_compared(old_run: Path, clip_hba: ClipHba) -> None:
    pending = old_run / "steps.jsonl.aside"
    text = pending.read_text()
    assert text.count('"epoch": 3, "step": 2,') == 1
    before, _, after = text.partition('"epoch": 3, "step": 2,')
    pending.write_text(before + '"epoch": 3, "step": 2,' + after.replace('"loss": ', '"loss": 1', 1))
    outcome = clip_hba("resume", old_run)
    assert outcome.code == 1, outcome.output
    assert "did not repeat what it had recorded" in outcome.output


@pytest.mark.parametrize("old_run", ["plain"], indirect=True)
def test_an_old_run_is_forked(old_run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    again = tmp_path / "again"
    options = ["--at-epoch", 2, "--perturb", "label_shuffle", "--run-dir", again]
    outcome = clip_hba("fork", old_run, *options)
    assert outcome.code == 0, outcome.output
    expected = EXPECTED["runs"]["fork"]["states"]
    assert states_of(again) == {epoch: expected[epoch] for epoch in ("1", "2", "3")}
