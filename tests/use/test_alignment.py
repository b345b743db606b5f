"""`clip-hba alignment`: the numbers of a real run, their place in the output, and what is refused."""

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.stats
import torch
import yaml
from numpy.typing import NDArray

from clip_hba_behavior import load_model
from clip_hba_behavior.config import DATA_KEYS
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.data.things import read_annotations, read_human_rdm
from clip_hba_behavior.rsa.rank_correlation import correlation_distances
from clip_hba_behavior.rsa.resampling import bootstrap, mantel, spread
from clip_hba_behavior.run.results import P_VALUE_CAVEAT
from clip_hba_behavior.use.alignment import alignment_of
from fresh_process import Outcome
from run_tools import finished

ClipHba = Callable[..., Outcome]


@pytest.fixture
def run(clip_hba: ClipHba, standin_data: Path, tmp_path: Path) -> Path:
    """A run and, beside it, its data; a test may change both."""
    data = Path(shutil.copytree(standin_data, tmp_path / "data"))
    keys: dict[str, Any] = {**data_keys(standin_data), "num_threads": 1, "rank": 2, "device": "cpu"}
    run = finished(clip_hba, tmp_path, keys, epochs=2, batch_size=24, lr=1e-3)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(standin_data), str(data)))
    return run


def recorded(run: Path) -> list[dict[str, str]]:
    with (run / "training_res.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rows_of_the_test_split(seed: int, num_images: int) -> list[int]:
    """Return the rows that are not trained on."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))[
        num_images * 4 // 5 :
    ].tolist()


def held_out(run: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The best model's predictions of the held-out images, and the human RDM."""
    data = run.parent / "data"
    images = read_annotations(data / "inference48.csv").image_names
    predictions = load_model(run, device="cpu").predict([data / "images" / f"{name}" for name in images])
    return predictions, read_human_rdm(data / "RDM48_triplet.mat")


@pytest.mark.system
def test_the_command_gives_rho_as_recorded_with_test_interval_and_dimensions(run: Path, clip_hba: ClipHba) -> None:
    rows = recorded(run)
    done = clip_hba("alignment", run, "--permutations", 199, "--json")
    assert done.code == 0, done.output
    found = json.loads(done.output)
    best = found["epoch"]
    alignment = found["alignment"]
    assert repr(alignment["rho"]) == repr(found["recorded_rho"]) == rows[best - 1]["behavioral_rsa_rho"]
    assert alignment["permutations"] == found["dimensions"]["permutations"] == 199
    assert alignment["p_greater"] == 0.005
    low, high = alignment["interval"]
    assert low < alignment["rho"] < high
    assert float(rows[best - 1]["behavioral_rsa_p_value"]) < 1e-8  # and not to be believed:
    assert found["caveat"] == P_VALUE_CAVEAT

    predictions, human = held_out(run)
    here = alignment_of(predictions, human, permutations=199)
    assert here.rho == pytest.approx(alignment["rho"], abs=1e-4)  # computed in other batches
    assert here.interval == pytest.approx((low, high), abs=1e-3)

    text = clip_hba("alignment", run, "--permutations", 199)
    assert text.code == 0, text.output
    assert f"epoch {best}\nSpearman's rho of the model's RDM and the human RDM of 48 images: {here.rho:.4f}\n" in (
        text.output
    )
    assert (
        f"95 % interval {low:.4f} to {high:.4f}, standard deviation {alignment['sd']:.4f} (percen" in text.output
    )
    assert "p 0.005 one-sided, 0.005 two-sided (Mantel's test, 199 permutations" in text.output
    assert "; 0.005 is the least that 199 permutations can give\n" in text.output
    assert found["synthetic_data"] is False
    assert "synthetic" not in text.output

    config = run / "config.yaml"  # as if the run had been told of no data: its data are the same then
    keys = yaml.safe_load(config.read_text(encoding="utf-8"))
    data = {key: keys.pop(key) for key in DATA_KEYS}
    config.write_text(yaml.safe_dump(keys), encoding="utf-8")
    where = run.parent / "where.yaml"
    where.write_text(yaml.safe_dump(data), encoding="utf-8")
    text = clip_hba("alignment", run, "--permutations", 9, "--config", where)
    assert text.code == 0, text.output
    assert "The data are the synthetic data set: images, targets and RDM are drawn, none is of people." in (
        text.output
    )
    assert "the model's RDM and the synthetic RDM of 48 images" in text.output
    done = clip_hba("alignment", run, "--permutations", 9, "--config", where, "--json")
    assert json.loads(done.output)["synthetic_data"] is True
    assert P_VALUE_CAVEAT in text.output


def test_dimensions_are_correlated_over_the_test_images_of_the_runs_split(run: Path, clip_hba: ClipHba) -> None:
    done = clip_hba("alignment", run, "--epoch", 2, "--permutations", 99, "--json")
    assert done.code == 0, done.output
    found = json.loads(done.output)["dimensions"]
    assert (found["num_images"], len(found["each"]), found["correction"]) == (12, 66, "Benjamini-Hochberg")
    order = rows_of_the_test_split(seed=1, num_images=60)
    data = run.parent / "data"
    table = read_annotations(data / "annotations.csv")
    images = [data / "images" / table.image_names[row] for row in order]
    predictions = load_model(run / "dora_params" / "epoch2_dora_params.pth", device="cpu").predict(images)
    for index, each in enumerate(found["each"]):
        expected = scipy.stats.pearsonr(predictions[:, index], table.targets[order, index]).statistic
        assert each["r"] == pytest.approx(expected, abs=1e-3), each
    assert each["prompt"] == (data / "prompts.txt").read_text().splitlines()[-1]


def test_alignment_of_is_made_of_the_test_and_the_bootstrap(things: Path) -> None:
    targets = read_annotations(things / "spose_embedding66d_rescaled_48val_reordered.csv").targets
    human = read_human_rdm(things / "RDM48_triplet.mat")
    found = alignment_of(targets, human, seed=3, permutations=99, resamples=200)
    model = correlation_distances(targets)
    assert (found.rho, found.p_greater, found.p_two_sided, found.null_sd, 99) == mantel(model, human, 99, seed=3)
    assert (found.sd, *found.interval) == spread(bootstrap([model], human, 200, seed=3)[:, 0])
    assert (found.num_images, found.level, found.resamples, found.seed) == (48, 0.95, 200, 3)
    assert found.p_note() == "0.01 is the least that 99 permutations can give"
    assert dataclasses.replace(found, p_greater=0.02).p_note() == ""


def test_the_difference_of_two_models_is_computed_as_the_page_on_statistics_shows(
    things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "STATISTICS.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (code,) = [each for each in blocks if "rdm_two" in each]
    targets = read_annotations(things / "spose_embedding66d_rescaled_48val_reordered.csv").targets
    noise = np.random.default_rng(1).normal(scale=targets.std(), size=targets.shape)
    for name, rows in (("rdm_one", targets), ("rdm_two", targets + noise)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "rdm.npy", correlation_distances(rows))
    (tmp_path / "data").mkdir()
    shutil.copy(things / "RDM48_triplet.mat", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(code, "STATISTICS.md", "exec"), found)
    assert found["estimates"].shape == (10_000, 2)
    assert 0 < found["low"] < found["difference"] < found["high"]
    assert capsys.readouterr().out.startswith(
        f"{found['difference']:.4f}, standard deviation {found['sd']:.4f}, 95"
    )


def test_a_ceiling_is_given_for_the_halves_of_this_rdm_and_for_no_others(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    human = read_human_rdm(run.parent / "data" / "RDM48_triplet.mat")
    noise = np.random.default_rng(1).normal(scale=0.01, size=human.shape)
    noise += noise.T
    names = ("RDM48_triplet_split1", "RDM48_triplet_split2")
    scipy.io.savemat(tmp_path / "h.mat", dict(zip(names, (human + noise, human - noise), strict=True)))
    done = clip_hba("alignment", run, "--permutations", 9, "--split-half", tmp_path / "h.mat")
    assert done.code == 0, done.output
    assert "noise ceiling 0.9" in done.output
    assert "(Spearman-Brown), and its root" in done.output
    order = np.random.default_rng(2).permutation(48)
    others = [each[np.ix_(order, order)] for each in (human + noise, human - noise)]
    scipy.io.savemat(tmp_path / "o.mat", dict(zip(names, others, strict=True)))
    done = clip_hba("alignment", run, "--permutations", 9, "--split-half", tmp_path / "o.mat")
    assert done.code == 2, done.output
    rdm = run.parent / "data" / "RDM48_triplet.mat"
    assert f"{tmp_path / 'o.mat'} does not hold halves of the data of {rdm}" in done.output


def test_another_rho_than_the_recorded_one_is_told_with_exit_code_1(run: Path, clip_hba: ClipHba) -> None:
    results = run / "training_res.csv"
    rho = recorded(run)[1]["behavioral_rsa_rho"]
    results.write_text(results.read_text().replace(rho, "0.25"))
    done = clip_hba("alignment", run, "--epoch", 2, "--permutations", 9)
    assert done.code == 1, done.output
    assert f"rho is not what {results} records of epoch 2\n  recorded: 0.25\n  found:    {rho}\n" in done.output
    assert clip_hba("alignment", run, "--epoch", 1, "--permutations", 9).code == 0


def test_other_data_than_the_runs_are_refused(run: Path, clip_hba: ClipHba) -> None:
    path = run.parent / "data" / "RDM48_triplet.mat"
    human = read_human_rdm(path)
    scipy.io.savemat(path, {"RDM48_triplet": human * 2})
    done = clip_hba("alignment", run)
    assert done.code == 2, done.output
    assert (
        f"data or weights are not those that {run} was trained with\n  the digest of the human_rdm" in done.output
    )
    path.unlink()
    done = clip_hba("alignment", run)
    assert done.code == 2, done.output
    assert f"RDM48_triplet_dir: {path}\n  say where they are now: --config FILE" in done.output
