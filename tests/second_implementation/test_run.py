"""A run of the command, and the same run by the second implementation, from the same files."""

import csv
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fresh_process
from clip_hba_behavior.data.standin import data_keys, standin_backbone_directory
from clip_hba_behavior.run.checkpoint import read_checkpoint
from run_tools import trained
from second_implementation import model, numerics
from second_implementation.numerics import Array
from second_implementation.training import Run, digest

PORTABLE = {
    "arithmetic": "portable",
    "batch_size": 16,
    "rank": 4,
    "lr": 1e-3,
    "lr_schedule": "warmup_cosine",
    "lr_warmup_epochs": 2,
    "lr_schedule_epochs": 8,
    "device": "cpu",
    "num_threads": 1,
}
# With DoRA layers in three, two and one of a tower's blocks: one layer has no attention above it.
DROPOUT = {"vision_layers": 3, "transformer_layers": 2, "dora_dropout": 0.1, "epochs": 3}
AUGMENTED = {
    "vision_layers": 1,
    "transformer_layers": 1,
    "augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"],
    "epochs": 1,
}
KINDS = [pytest.param(DROPOUT, id="dropout"), pytest.param(AUGMENTED, id="augmented", marks=pytest.mark.system)]


@pytest.fixture(scope="module", params=KINDS)
def run(request: pytest.FixtureRequest, standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("second")

    def clip_hba(*arguments: object) -> fresh_process.Outcome:
        words = [str(each) for each in arguments]
        return fresh_process.call(fresh_process.clip_hba, words, output=place / "output.txt")

    return trained(clip_hba, place, {**data_keys(standin_data), **PORTABLE, **request.param})


@pytest.fixture(scope="module")
def again(run: Path) -> Run:
    return Run(yaml.safe_load((run / "config.yaml").read_text()), standin_backbone_directory())


@pytest.fixture(autouse=True)
def _generators() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def recorded(run: Path, epoch: int) -> Any:
    return read_checkpoint(run / "dora_params" / f"epoch{epoch}_dora_params.pth").whole_state()


def test_every_state_has_the_recorded_digest(run: Path, again: Run) -> None:
    with (run / "training_res.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    ledger = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    digests = [line["state_digest"] for line in ledger if "state_digest" in line]
    states = []
    for state in again.epochs():
        epoch = state["epoch"]
        theirs = recorded(run, epoch)
        for name, parameter in theirs.parameters.items():
            assert state["parameters"][name].tobytes() == parameter.numpy().tobytes(), (epoch, name)
        for number, moments in theirs.optimizer_state["state"].items():
            for name in ("exp_avg", "exp_avg_sq"):
                ours = state["optimizer_state"]["state"][number][name]
                assert ours.tobytes() == moments[name].numpy().tobytes(), (epoch, number, name)
        assert state["metrics"] == theirs.metrics
        assert digest(state) == theirs.digest()
        states.append(state)
    assert [digest(state) for state in states[1:]] == digests
    assert [{name: str(value) for name, value in state["metrics"].items()} for state in states[1:]] == rows
    assert again.losses == [line["loss"] for line in ledger if "loss" in line]
    assert len(rows) == again.config["epochs"]


def unrounded_cross(x: Array, y: Array) -> Array:
    return x.T.astype(np.float64) @ y.astype(np.float64)


def masks_of_the_next_step(*arguments: Any) -> Any:
    return numerics.dropout(*arguments[:-1], arguments[-1] + 1)


@pytest.mark.parametrize("run", KINDS[:1], indirect=True)
@pytest.mark.parametrize(
    ("module", "name", "other"),
    [
        pytest.param(numerics, "cross", unrounded_cross, id="sums over rows"),
        pytest.param(model, "dropout", masks_of_the_next_step, id="masks"),
    ],
)
def test_another_definition_has_another_digest(
    run: Path, again: Run, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, other: Callable[..., Any]
) -> None:
    monkeypatch.setattr(module, name, other)
    _, trained_once = itertools.islice(again.epochs(), 2)
    assert digest(trained_once) != recorded(run, 1).digest()
