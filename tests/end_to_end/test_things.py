"""The real tables of THINGS: 1,854 names and human targets; the images are drawn from the targets."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.data.standin import PROMPTS, write_images
from clip_hba_behavior.data.things import read_annotations
from fresh_process import Outcome
from run_tools import differences, write_config

TABLES = ("spose_embedding66d_rescaled_1806train.csv", "spose_embedding66d_rescaled_48val_reordered.csv")


@pytest.fixture(scope="module")
def images(things: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("things") / "images"
    for table in TABLES:
        annotations = read_annotations(things / table)
        write_images(directory, annotations.image_names, annotations.targets)
    return directory


@pytest.fixture
def config(things: Path, images: Path, tmp_path: Path) -> Path:
    # the synthetic data set's prompts name what is drawn; the real ones would say nothing to its small CLIP
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    keys = {
        "csv_file": str(things / TABLES[0]),
        "img_dir": str(images),
        "inference_csv_file": str(things / TABLES[1]),
        "RDM48_triplet_dir": str(things / "RDM48_triplet.mat"),
        "prompts_file": str(tmp_path / "prompts.txt"),
        "epochs": 3,
        "num_threads": 1,
        "lr": 1e-3,
    }
    return write_config(tmp_path / "config.yaml", keys)


def test_data_check_passes_and_finds_the_wrong_row_order(
    config: Path, things: Path, clip_hba: Callable[..., Outcome]
) -> None:
    outcome = clip_hba("data", "check", config)
    assert outcome.code == 0, outcome.output
    for line in (
        "training images:       1806",
        "held-out images:       48",
        "prompts:               66",
        "row order correlation: 0.8644",
    ):
        assert line in outcome.output
    alphabetical = things / "spose_embedding66d_rescaled_48val.csv"
    outcome = clip_hba("data", "check", config, "--set", f"inference_csv_file={alphabetical}")
    assert outcome.code == 1
    assert "row order correlation: 0.0365" in outcome.output
    assert "look to be in the wrong order" in outcome.output


@pytest.mark.system
def test_a_real_size_run_learns_the_human_targets_and_is_resumed_bit_for_bit(
    config: Path, clip_hba: Callable[..., Outcome], tmp_path: Path
) -> None:
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.output
    with (tmp_path / "run/training_res.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["test_loss"]) for row in rows]
    rhos = [float(row["behavioral_rsa_rho"]) for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert rhos[-1] > rhos[0] + 0.02
    outcome = clip_hba("resume", tmp_path / "run", "--from-epoch", 1, "--run-dir", tmp_path / "resumed")
    assert outcome.code == 0, outcome.output
    assert differences(tmp_path / "run", tmp_path / "resumed") == []
