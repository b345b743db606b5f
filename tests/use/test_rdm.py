"""The held-out predictions and their RDM, as NumPy, pandas and rsatoolbox read them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clip_hba_behavior import BadInputError, load_model
from clip_hba_behavior.data.things import read_annotations, read_human_rdm
from clip_hba_behavior.rsa import portable, rank_correlation
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.use.held_out import held_out_of
from clip_hba_behavior.use.predict import Predictions, write_predictions
from clip_hba_behavior.use.rdm import exactly_symmetric
from fresh_process import Outcome

ClipHba = Callable[..., Outcome]
EXACT: dict[str, Any] = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}


@pytest.fixture(scope="module")
def data(finished_run: Path) -> Path:
    return finished_run.parent / "data"


@pytest.mark.filterwarnings("ignore:unclosed file .*rdm.pkl:ResourceWarning")  # rsatoolbox 0.3.2 leaves it open
def test_what_is_written_is_read_by_other_tools(
    finished_run: Path, data: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    import rsatoolbox

    out = tmp_path / "rdm"
    done = clip_hba("rdm", finished_run, "--out", out, "--epoch", "1", "--device", "cpu")
    assert done.code == 0, done.output
    assert f"Predictions of 48 held-out images and their RDM are in {out}" in done.output
    names = list(read_annotations(data / "inference48.csv").image_names)
    checkpoint = read_checkpoint(finished_run / "dora_params" / "epoch1_dora_params.pth")
    model = load_model(checkpoint.path, device="cpu")
    expected = model.predict([data / "images" / name for name in names])

    features = np.load(out / "features.npy")
    assert features.tobytes() == expected.tobytes()
    assert (out / "file_names.txt").read_text().splitlines() == names
    table = pd.read_csv(out / "predictions.csv", **EXACT, index_col="image")
    assert list(table.index) == names
    assert list(table.columns) == list(model.prompts)
    assert table.to_numpy().astype(np.float32).tobytes() == expected.tobytes()

    rdm = np.load(out / "rdm.npy")
    assert np.array_equal(rdm, rdm.T)
    assert not np.diag(rdm).any()
    as_table = pd.read_csv(out / "rdm.csv", **EXACT, index_col="image")
    assert list(as_table.index) == list(as_table.columns) == names
    assert as_table.to_numpy().tobytes() == rdm.tobytes()
    rho, _ = portable.rank_correlation(rdm, read_human_rdm(data / "RDM48_triplet.mat"))
    assert rho == checkpoint.whole_state().metrics["behavioral_rsa_rho"]

    loaded = rsatoolbox.rdm.load_rdm(str(out / "rdm.pkl"))
    pairs = np.triu_indices(48, k=1)
    assert loaded.get_vectors()[0].tobytes() == rdm[pairs].tobytes()
    assert loaded.get_matrices()[0][pairs].tobytes() == rdm[pairs].tobytes()
    assert loaded.dissimilarity_measure == "correlation"
    assert loaded.pattern_descriptors["image"] == names
    assert loaded.descriptors == {"run": "run", "epoch": 1, "state_digest": checkpoint.state_digest}
    human = rsatoolbox.rdm.RDMs(read_human_rdm(data / "RDM48_triplet.mat")[None])
    assert rsatoolbox.rdm.compare(loaded, human, method="spearman")[0, 0] == pytest.approx(rho, abs=1e-12)

    again = tmp_path / "again"
    assert clip_hba("rdm", finished_run, "--out", again, "--epoch", "1", "--device", "cpu").code == 0
    assert {path.name: path.read_bytes() for path in again.iterdir()} == {
        path.name: path.read_bytes() for path in out.iterdir()
    }


def test_rounding_leaves_nothing_on_the_diagonal_or_between_the_triangles() -> None:
    embeddings = np.random.default_rng(1).standard_normal((48, 66))
    embeddings[7] = 1.0  # its distances are undefined
    rdm = rank_correlation.correlation_distances(embeddings)
    rdm[3, 2] += 1e-16
    rdm[3, 3] = 2e-16
    found = exactly_symmetric(rdm)
    pairs = np.triu_indices(48, k=1)
    assert found[pairs].tobytes() == rdm[pairs].tobytes()
    assert np.array_equal(found, found.T, equal_nan=True)
    assert np.array_equal(np.isnan(found), np.isnan(rdm))
    assert (np.delete(np.diag(found), 7) == 0).all()


def test_predictions_as_csv_and_parquet_are_exact_in_pandas(
    finished_run: Path, data: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    images = [data / "images" / f"heldout_000{number}.png" for number in range(3)]
    expected = load_model(finished_run, device="cpu").predict(images)
    for name in ("p.csv", "p.parquet"):
        done = clip_hba("predict", finished_run, *images, "--out", tmp_path / name, "--device", "cpu")
        assert done.code == 0, done.output
    from_csv = pd.read_csv(tmp_path / "p.csv", **EXACT, index_col="image")
    from_parquet = pd.read_parquet(tmp_path / "p.parquet").set_index("image")
    assert from_csv.to_numpy().astype(np.float32).tobytes() == expected.tobytes()
    assert from_parquet.to_numpy().tobytes() == expected.tobytes()
    assert list(from_csv.index) == list(from_parquet.index) == [str(image) for image in images]


@pytest.mark.parametrize("prompts", [("red", "red"), ("image", "red")])
def test_a_parquet_file_gets_no_two_columns_of_one_name(prompts: tuple[str, str], tmp_path: Path) -> None:
    found = Predictions((Path("a.png"),), np.ones((1, 2), dtype=np.float32), prompts, ())
    with pytest.raises(BadInputError, match="several columns would have one name"):
        write_predictions(tmp_path / "p.parquet", found)
    assert list(tmp_path.iterdir()) == []
    write_predictions(tmp_path / "p.csv", found)


def test_a_name_that_is_no_line_of_text_is_left_out_and_named(
    finished_run: Path, data: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for name in (b"\xff.png", b"two\nlines.png", "\u00e9 \u202f,.png".encode()):
        target = os.fsencode(images) + b"/" + name
        shutil.copy(data / "images" / "heldout_0000.png", target)
    for name in ("p.csv", "p.npy"):
        done = clip_hba("predict", finished_run, images, "--out", tmp_path / name, "--device", "cpu")
        assert done.code == 1, done.output
        assert "two\\nlines.png': its name has a line break, or is no UTF-8" in done.output
        assert "2 of 3 images could not be read" in done.output
    assert (tmp_path / "p_file_names.txt").read_text(encoding="utf-8") == f"{images}/\u00e9 \u202f,.png\n"
    assert len(pd.read_csv(tmp_path / "p.csv")) == 1


def test_other_held_out_data_are_refused(finished_run: Path, data: Path, tmp_path: Path) -> None:
    run = RunDirectory(finished_run)
    config = load_model(finished_run, device="cpu").config
    assert held_out_of(config, run).names[0] == "heldout_0000.png"
    images = tmp_path / "images"
    images.mkdir()
    for path in (data / "images").glob("heldout_*.png"):
        (images / path.name).write_bytes(path.read_bytes())
    assert len(held_out_of(config.model_copy(update={"img_dir": str(images)}), run).paths) == 48
    (images / "heldout_0007.png").write_bytes((images / "heldout_0008.png").read_bytes())
    with pytest.raises(BadInputError, match=r"are not those that .* recorded\n.*heldout_0007.png"):
        held_out_of(config.model_copy(update={"img_dir": str(images)}), run)
    rows = (data / "inference48.csv").read_text().splitlines()
    other = tmp_path / "inference.csv"
    other.write_text("\n".join([rows[0], rows[2], rows[1], *rows[3:]]) + "\n")
    with pytest.raises(BadInputError, match="the digest of the inference_targets is not the one"):
        held_out_of(config.model_copy(update={"inference_csv_file": str(other)}), run)


def test_what_is_there_stays(finished_run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = clip_hba("rdm", finished_run, "--out", tmp_path / "mine")
    assert done.code == 2
    assert "is there already, and is not replaced" in done.output
    assert list((tmp_path / "mine").iterdir()) == []
