"""Checkpoints that are damaged or missing: the run goes on from the one before, and ends as it should."""

import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_hba_behavior.reproducibility.record.states import quarantine
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes, to_content
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.states import newest_state
from clip_hba_behavior.training.state import TrainingState
from fresh_process import Outcome
from torture.faults import Fault
from torture.runs import begin, must_end_as

ClipHba = Callable[..., Outcome]
LOGGER = logging.getLogger("test")


def test_a_newest_checkpoint_cut_at_any_length_is_quarantined_and_never_half_taken(run: Path) -> None:
    newest = checkpoint_path(run / "dora_params", 3)
    content = newest.read_bytes()
    for hundredth in range(100):
        newest.write_bytes(content[: len(content) * hundredth // 100])
        taken, refused = newest_state(RunDirectory(run), LOGGER)
        assert taken.whole_state().epoch == 2, f"cut at {hundredth} %"
        quarantine(run, refused, LOGGER)
        (run / "quarantine" / f"{newest.name}.1").rename(newest)
        (run / "quarantine" / f"{newest.name}.1.json").unlink()


@pytest.mark.parametrize("hundredth", [1, 50, 99])
def test_after_a_newest_checkpoint_that_was_cut_the_run_ends_the_same(
    hundredth: int, clip_hba: ClipHba, run: Path, uninterrupted: Path
) -> None:
    newest = checkpoint_path(run / "dora_params", 3)
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) * hundredth // 100])
    outcome = clip_hba("resume", run)
    shutil.rmtree(run / "quarantine")
    must_end_as(uninterrupted, outcome, run)


def flip_bits(path: Path, num_flips: int) -> None:
    """Flip one bit at each of many random indices: the file is refused, or its state is the one that was saved."""
    content = path.read_bytes()
    wanted = read_checkpoint(path).state_digest
    damaged = path.with_name("damaged.pth")
    damaged.write_bytes(content)
    places = random.Random(0)
    num_slack = 0
    with damaged.open("r+b", buffering=0) as file:
        for _ in range(num_flips):
            position, bit = places.randrange(len(content)), places.randrange(8)
            os.pwrite(file.fileno(), bytes([content[position] ^ 1 << bit]), position)
            try:
                taken = read_checkpoint(damaged)
            except BadInputError:
                pass
            else:
                assert taken.whole_state().digest() == taken.state_digest == wanted, f"byte {position}, bit {bit}"
                num_slack += 1
            os.pwrite(file.fileno(), content[position : position + 1], position)
    num_refused = num_flips - num_slack
    print(f"{len(content):,} bytes: {num_refused} flips refused, {num_slack} in slack: the state unchanged")
    assert num_slack < num_flips // 2


def test_a_flipped_bit_in_a_small_checkpoint_is_refused_or_changes_nothing(run: Path) -> None:
    flip_bits(checkpoint_path(run / "dora_params", 3), 1000)


@pytest.mark.system
def test_a_flipped_bit_in_a_checkpoint_of_vit_l_14_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "epoch1_dora_params.pth"
    path.write_bytes(to_bytes(to_content(state_of_vit_l_14(), {"config": {"rank": 32}})))
    assert 2_000_000 < path.stat().st_size < 2_500_000
    flip_bits(path, 1000)


def state_of_vit_l_14() -> TrainingState:
    """A state with the tensors of ViT-L/14 at rank 32: two visual blocks of width 1024, a text block of 768."""
    parameters = {}
    for block, width in (("visual.transformer.resblocks.22", 1024), ("visual.transformer.resblocks.23", 1024)):
        parameters |= dora_parameters(f"clip_model.{block}", width)
    parameters |= dora_parameters("clip_model.transformer.resblocks.11", 768)
    optimizer = torch.optim.AdamW(parameters.values(), fused=True)
    sum(each.square().sum() for each in parameters.values()).backward()
    optimizer.step()
    return TrainingState(
        parameters=snapshot(parameters),
        optimizer_state=snapshot(optimizer.state_dict()),
        rng_state=snapshot(capture_rng_state()),
        early_stopping_state={"best_test_loss": 0.1, "epochs_no_improve": 0},
        epoch=1,
        metrics={"epoch": 1, "test_loss": 0.1},
    )


def dora_parameters(block: str, width: int) -> dict[str, torch.nn.Parameter]:
    shapes = {"m": (width,), "delta_D_A": (32, width), "delta_D_B": (width, 32)}
    values = {name: torch.randn(shape) for name, shape in shapes.items()}
    return {f"{block}.attn.out_proj.{name}": torch.nn.Parameter(value) for name, value in values.items()}


def test_a_newest_file_that_claims_a_tensor_of_a_terabyte_is_quarantined(
    clip_hba: ClipHba, run: Path, uninterrupted: Path
) -> None:
    newest = checkpoint_path(run / "dora_params", 3)
    torch.save({"a": torch.zeros(1).expand(2**40)}, newest)  # one element on the disk
    assert newest.stat().st_size < 4000
    outcome = clip_hba("resume", run)
    assert "claims more than the file holds" in outcome.output
    shutil.rmtree(run / "quarantine")
    must_end_as(uninterrupted, outcome, run)


def test_without_its_newest_checkpoint_a_run_goes_on_from_the_one_before(
    clip_hba: ClipHba, run: Path, uninterrupted: Path
) -> None:
    checkpoint_path(run / "dora_params", 3).unlink()
    outcome = clip_hba("resume", run)
    assert "Resuming from the state after epoch 2 " in outcome.output
    must_end_as(uninterrupted, outcome, run)


def test_a_kill_before_an_old_checkpoint_is_removed_leaves_none_too_many(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    fault = Fault(6, "unlink", "checkpoint")  # after four temporary files and epoch 1: epoch 2, at the end
    outcome = begin(keys | {"keep_checkpoints": "last 1"}, run, tmp_path, fault=fault)
    assert outcome.code == -9, outcome.output
    assert list(list_checkpoints(run / "dora_params")) == [0, 2, 3]
    assert clip_hba("resume", run).code == 0
    assert list(list_checkpoints(run / "dora_params")) == [0, 3]


def test_a_torn_note_of_a_fork_does_not_corrupt_the_next(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    directory.note_fork(7, tmp_path / "fork")
    with directory.forks_file.open("ab") as file:
        file.write("1 /tmp/f\N{GREEK SMALL LETTER PHI}".encode()[:-1])
    directory.note_fork(12, tmp_path / "fork")
    assert directory.forked_epochs() == {7, 1, 12}
