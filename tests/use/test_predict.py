"""The embedding of any images, by the command and in Python."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from clip_hba_behavior import load_model
from clip_hba_behavior.data.things import read_prompts
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome

ClipHba = Callable[..., Outcome]


@pytest.fixture
def run(finished_run: Path) -> Path:
    return finished_run


@pytest.fixture
def images(finished_run: Path) -> list[Path]:
    """The images of its data."""
    return sorted((finished_run.parent / "data" / "images").glob("*.png"))


def read_csv(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, [row[0] for row in rows], np.array([row[1:] for row in rows], dtype=np.float32)


def test_the_command_and_python_predict_what_the_run_did(
    run: Path, images: list[Path], clip_hba: ClipHba, tmp_path: Path
) -> None:
    images = [image for image in images if image.name.startswith("heldout_")]
    model = load_model(run, device="cpu")
    with torch.no_grad():
        predicted = model.predict(images)
    out = tmp_path / "held_out.csv"
    done = clip_hba("predict", run, *images, "--out", out, "--device", "cpu")
    assert done.code == 0, done.output
    header, names, values = read_csv(out)
    config = RunDirectory(run).read_config()
    assert header == ["image", *read_prompts(Path(str(config.prompts_file)))]
    assert names == [str(image) for image in images]
    assert values.tobytes() == predicted.tobytes()
    for image, row in zip(images[:3], values, strict=False):  # alone, it has the same bits
        assert model.predict([image]).tobytes() == row.tobytes()
    other = tmp_path / "held_out.npy"
    assert clip_hba("predict", run, *images, "--out", other, "--device", "cpu").code == 0
    assert np.load(other).tobytes() == predicted.tobytes()
    assert (tmp_path / "held_out_file_names.txt").read_text().splitlines() == names
    parquet = tmp_path / "held_out.parquet"
    assert clip_hba("predict", run, *images, "--out", parquet, "--device", "cpu").code == 0
    table = pq.read_table(parquet)
    assert table.column_names == header
    assert (
        np.stack([table.column(name).to_numpy() for name in header[1:]], axis=1).tobytes() == predicted.tobytes()
    )


def test_the_predictions_are_those_that_the_runs_rsa_is_of(run: Path) -> None:
    from clip_hba_behavior.data.things import read_annotations, read_human_rdm
    from clip_hba_behavior.rsa import portable
    from clip_hba_behavior.run.checkpoint import read_checkpoint

    config = RunDirectory(run).read_config()
    names = read_annotations(Path(str(config.inference_csv_file))).image_names
    predicted = load_model(run, device="cpu").predict([Path(str(config.img_dir)) / name for name in names])
    human = read_human_rdm(Path(str(config.RDM48_triplet_dir)))
    rho, _ = portable.rank_correlation(portable.correlation_distances(predicted), human)
    best, _ = RunDirectory(run).read_best()
    metrics = read_checkpoint(run / "dora_params" / f"epoch{best}_dora_params.pth").whole_state().metrics
    assert rho == metrics["behavioral_rsa_rho"]


def test_what_cannot_be_read_is_named_and_left_out(
    run: Path, images: list[Path], clip_hba: ClipHba, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(images[0].read_bytes())
    (folder / "more" / "b.png").write_bytes(images[1].read_bytes())
    (folder / "torn.png").write_bytes(images[2].read_bytes()[:200])
    (folder / "notes.txt").write_text("no image")
    done = clip_hba("predict", run, folder, "--device", "cpu", "--top", "2")
    assert done.code == 1
    assert f"{folder}: 1 other file left out, such as notes.txt" in done.output
    assert f"left out: {folder / 'torn.png'}: the image cannot be read" in done.output
    assert "put an image in its place that can be read" in done.output
    assert "1 of 3 images could not be read" in done.output
    lines = [
        line
        for line in done.output.splitlines()
        if line.startswith((f"{folder}/a.png: ", f"{folder}/more/b.png: "))
    ]
    assert len(lines) == 2
    assert all(line.count(",") >= 1 for line in lines)


@pytest.mark.parametrize(
    ("out", "reason"),
    [("p.xlsx", "its ending names no format"), ("there.csv", "is there already, and is not replaced")],
)
def test_a_bad_output_is_told_before_anything_is_computed(
    out: str, reason: str, clip_hba: ClipHba, tmp_path: Path
) -> None:
    (tmp_path / "there.csv").write_text("mine")
    done = clip_hba("predict", tmp_path / "no_run", tmp_path, "--out", tmp_path / out)
    assert done.code == 2
    assert reason in done.output
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_no_images_and_no_run_are_told(clip_hba: ClipHba, run: Path, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = clip_hba("predict", run, tmp_path / "empty")
    assert done.code == 2
    assert "there are no images in" in done.output
    done = clip_hba("predict", run, tmp_path / "nowhere.png")
    assert done.code == 2
    assert "there is no image or directory" in done.output
    done = clip_hba("predict", tmp_path / "empty", images[0])
    assert done.code == 2
    assert "there is no run in" in done.output


def test_pixels_of_another_shape_are_refused(run: Path) -> None:
    with pytest.raises(ValueError, match=r"expected: \[batch, 3, 64, 64\]"):
        load_model(run, device="cpu").embed(torch.zeros(1, 3, 32, 32))
