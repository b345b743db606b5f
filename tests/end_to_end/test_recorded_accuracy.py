"""The recorded run again, in portable arithmetic, and by the same model in float64: which is nearer?"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data import things
from clip_hba_behavior.data.image_files import locate_images
from clip_hba_behavior.data.images import Preprocessing, load_pixels
from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.training.fit import tokens_of
from fresh_process import Outcome
from run_tools import recorded_run_keys, trained
from twin_tools import Data, Twin

EPOCHS = 6
COLUMNS = ("train_loss", "test_loss", "behavioral_rsa_rho")
Array = NDArray[np.float64]


class Losses(NamedTuple):
    """What a run recorded: of every step `[48]`, and of each epoch the CSV's columns `[6]`."""

    steps: Array
    columns: dict[str, Array]


def recorded(run: Path) -> Losses:
    steps = json.loads((run / "losses.json").read_text())["step_losses"]
    return Losses(np.array(steps).ravel(), columns_of(run))


def columns_of(run: Path) -> dict[str, Array]:
    with (run / "training_res.csv").open() as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in COLUMNS}


def by_command(run: Path) -> Losses:
    ledger = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
    return Losses(np.array([line["loss"] for line in ledger if "loss" in line]), columns_of(run))


def in_float64(keys: dict[str, Any], run: Path) -> Losses:
    """The recorded orders, from the recorded parameters, in float64 from the pixels to the predictions."""
    backbone = load_backbone(keys["backbone"], False)
    annotations, inference = (
        things.read_annotations(Path(keys[key])) for key in ("csv_file", "inference_csv_file")
    )
    names = [*annotations.image_names, *inference.image_names]
    config = make_config(keys)
    rule = Preprocessing(image_size=backbone.config.vision_config.image_size, rule=config.preprocessing)
    pixels = load_pixels(locate_images(Path(keys["img_dir"]), names, None), rule)
    prompts = things.read_prompts(Path(keys["prompts_file"]))
    targets = torch.from_numpy(annotations.targets).float()
    data = Data(pixels, *tokens_of(prompts, config, backbone.config), targets)
    twin = Twin("float64", backbone, data, (config.vision_layers, config.transformer_layers), config.rank)
    twin.load(read_checkpoint(run / "epoch0_dora_init.pth").parameters)

    order = json.loads((run / "batch_order.json").read_text())
    train, test = torch.tensor(order["train_idx"]), torch.tensor(order["test_idx"])
    human_rdm = things.read_human_rdm(Path(keys["RDM48_triplet_dir"]))
    steps: list[float] = []
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    for perm in order["perms"]:
        losses = twin.train(train[torch.tensor(perm)].split(order["batch_size"]))
        predictions = twin.predict(torch.arange(len(names)))
        held_out = predictions[len(annotations.image_names) :].numpy()
        errors = predictions[test] - twin.targets[test]
        steps += losses
        columns["train_loss"].append(float(np.mean(losses)))
        columns["test_loss"].append(errors.square().mean().item())
        columns["behavioral_rsa_rho"].append(rank_correlation(correlation_distances(held_out), human_rdm)[0])
    return Losses(np.array(steps), {name: np.array(values) for name, values in columns.items()})


def rms(errors: Array) -> float:
    return float(np.sqrt(np.square(errors).mean()))


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_portable_run_is_no_farther_from_float64_than_the_recorded_one(
    reference: Path, things: Path, clip_hba: Callable[..., Outcome], tmp_path: Path
) -> None:
    keys = recorded_run_keys(reference, things) | {"tokenizer": str(reference / "backbone")}
    exact = in_float64(keys, reference / "run")
    native = recorded(reference / "run")
    portable = by_command(trained(clip_hba, tmp_path, keys, epochs=EPOCHS, arithmetic="portable"))
    assert len(exact.steps) == len(native.steps) == len(portable.steps) == 48

    errors = {"steps": [rms(found.steps / exact.steps - 1) for found in (portable, native)]}
    for name in COLUMNS:
        errors[name] = [rms(found.columns[name] - exact.columns[name]) for found in (portable, native)]
    errors[COLUMNS[-1]][1] += 1e-15  # all have the same ranks; only the last rounding differs
    for name, (ours, theirs) in errors.items():
        assert ours <= theirs, (name, ours, theirs)
