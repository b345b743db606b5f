import dataclasses
import json
import runpy
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import fresh_process
from clip_hba_behavior import training_scripts
from clip_hba_behavior.reproducibility.state.compare import Comparison, compare
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state, restore_rng_state
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.quick import QuickResult, verify_quick

pytestmark = pytest.mark.system

SCRIPT = Path(training_scripts.__path__[0]) / "test_checkpoint_quick.py"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go, so that what is left of them can be seen."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_the_script_of_the_guide_finds_this_machine_reproducible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    outcome = fresh_process.call(
        runpy.run_path, str(SCRIPT), {}, "__main__", output=tmp_path / "output.txt", timeout=60
    )
    assert outcome.code == 0, outcome.output
    lines = outcome.output.splitlines()
    for name in ("parameters     9 tensors", "optimizer", "random states", "counters", "outputs"):
        (line,) = (each for each in lines if each.startswith(name))
        assert line.endswith(", 0 differing bits ✓")
    assert "without the optimizer state 9 of 9 tensors differ, as they must ✓" in outcome.output
    assert lines[-1].startswith("reproducible: ")
    assert not list(tmp_path.glob("clip-hba-*"))


def without_optimizer_moments(state: TrainingState) -> TrainingState:
    return dataclasses.replace(state, optimizer_state=state.optimizer_state | {"state": {}})


def with_one_extra_draw(state: TrainingState) -> TrainingState:
    before = capture_rng_state()
    restore_rng_state(state.rng_state)
    torch.empty((), dtype=torch.int64).random_()
    if torch.cuda.is_available():
        torch.empty((), device="cuda").uniform_()  # dropout draws from the device's stream
    drawn = capture_rng_state()
    restore_rng_state(before)
    return dataclasses.replace(state, rng_state=drawn)


def with_one_flipped_bit(state: TrainingState) -> TrainingState:
    name, value = next(iter(state.parameters.items()))
    flipped = value.clone()
    flipped.view(torch.int32).view(-1)[0] ^= 1
    return dataclasses.replace(state, parameters=state.parameters | {name: flipped})


@pytest.mark.parametrize(
    ("corrupt", "must_differ"),
    [
        (without_optimizer_moments, {"parameters", "optimizer", "outputs"}),
        (with_one_extra_draw, {"parameters", "optimizer", "random states", "counters", "outputs"}),
        (with_one_flipped_bit, {"parameters"}),
    ],
    ids=lambda value: getattr(value, "__name__", "").replace("_", " "),
)
def test_a_state_that_is_not_whole_is_found_out(
    corrupt: Callable[[TrainingState], TrainingState], must_differ: set[str], temporary: Path
) -> None:
    said: list[str] = []
    result = verify_quick(said.append, corrupt)
    assert not result.reproducible
    differing = {name for name, group in result.groups.items() if not group.equal()}
    assert must_differ <= differing
    if corrupt is without_optimizer_moments:  # the last step's loss comes before its update
        assert not differing & {"random states", "counters"}
    assert said[-1].startswith("not reproducible: ")
    assert all(name in said[-1] for name in must_differ)
    assert result.digests["trained state, unbroken"] != result.digests["trained state, continued"]
    assert json.loads(json.dumps(result.as_dict())) == result.as_dict()
    assert not list(temporary.iterdir())


def test_a_control_that_finds_no_difference_is_no_proof() -> None:
    same = Comparison(num_leaves=9, num_tensors=9, differences=(), num_differing_tensors=0)
    result = QuickResult({"parameters": same}, control_num_differing=9, digests={}, seconds=1.0)
    assert result.reproducible
    blind = dataclasses.replace(result, control_num_differing=0)
    assert not blind.reproducible
    assert "0 of 9 tensors differ, so nothing is proved ✗" in "\n".join(blind.lines())
    assert blind.lines()[-1].startswith("not reproducible: the control found no difference")


def test_a_new_process_that_fails_is_an_error_and_leaves_nothing_changed(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no room left >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(python))
    torch.set_num_threads(2)
    before = capture_rng_state()
    with pytest.raises(StoppedError, match="failed with exit code 3\n  no room left"):
        verify_quick(lambda line: None)
    assert not list(temporary.iterdir())
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()
    after = capture_rng_state()
    assert compare(before, {name: after[name] for name in before}).equal()
