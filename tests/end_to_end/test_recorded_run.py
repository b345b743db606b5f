"""The run that the earlier pipeline recorded, repeated from its seed alone."""

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome
from run_tools import recorded_run_keys, write_config


@pytest.fixture(params=["backbone", "tiny_clip_openai_format.pt"], ids=["Hugging Face format", "OpenAI's format"])
def run(
    request: pytest.FixtureRequest,
    reference: Path,
    things: Path,
    clip_hba: Callable[..., Outcome],
    tmp_path: Path,
) -> Path:
    keys = recorded_run_keys(reference, things)
    keys |= {"backbone": str(reference / request.param), "tokenizer": str(reference / "backbone"), "epochs": 6}
    config = write_config(tmp_path / "config.yaml", keys)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.output
    return tmp_path / "run"


def test_a_run_from_the_seed_is_the_recorded_run(run: Path, reference: Path) -> None:
    recorded = reference / "run"

    initial = read_checkpoint(checkpoint_path(run / "dora_params", 0))
    assert digest(initial.parameters) == digest(read_checkpoint(recorded / "epoch0_dora_init.pth").parameters)

    ledger = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in ledger if "loss" in line]
    expected = np.array(json.loads((recorded / "losses.json").read_text())["step_losses"]).ravel()
    assert len(losses) == len(expected) == 48
    assert np.abs(losses / expected - 1).max() < 2e-6

    for epoch in range(1, 7):
        mine = read_checkpoint(checkpoint_path(run / "dora_params", epoch))
        theirs = read_checkpoint(recorded / f"dora/epoch{epoch}_dora_params.pth")
        assert mine.parameters.keys() == theirs.parameters.keys()
        for name, value in mine.parameters.items():
            assert (value - theirs.parameters[name]).abs().max() < 1e-6, name
        # the generator stands where theirs stood, so all six orders were theirs
        assert mine.rng_state is not None
        assert theirs.rng_state is not None
        assert digest(mine.rng_state) == digest(theirs.rng_state)

    with (run / "training_res.csv").open() as file, (recorded / "training_res.csv").open() as other:
        for mine_row, their_row in zip(csv.DictReader(file), csv.DictReader(other), strict=True):
            for column in ("train_loss", "test_loss"):
                assert abs(float(mine_row[column]) / float(their_row[column]) - 1) < 2e-6
            rho = "behavioral_rsa_rho"
            assert abs(float(mine_row[rho]) - float(their_row[rho])) < 1e-6


def test_predictions_are_the_recorded_ones(run: Path, reference: Path) -> None:
    config = RunDirectory(run).read_config()
    trainer, _ = build_trainer(config, Session(logging.getLogger("test")))
    for epoch in (0, 6):
        trainer.restore(read_checkpoint(checkpoint_path(run / "dora_params", epoch)).whole_state())
        with torch.random.fork_rng():
            predictions = trainer.predict(trainer.inputs.inference_rows()).numpy()
        recorded = np.load(reference / f"run/pred48_epoch{epoch}.npy")
        assert predictions.shape == recorded.shape == (48, 66)
        assert np.abs(predictions - recorded).max() < 1e-4
