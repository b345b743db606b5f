"""`clip-hba report RUN`: what its page holds, and what it says of what is not there."""

import csv
import json
import logging
import re
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import yaml
from PIL import Image

import fresh_process
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.data.things import read_human_halves, read_human_rdm
from clip_hba_behavior.report import drawing
from clip_hba_behavior.report.figure import Figure, Panel, Series
from clip_hba_behavior.report.run_page import Request, run_page
from clip_hba_behavior.report.site import render_page
from clip_hba_behavior.report.sources import find_sources, read_records
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.rsa.noise_ceiling import noise_ceiling
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome

ClipHba = Callable[..., Outcome]
FIGURES = ("losses", "trajectory", "alignment", "rdms", "pairs", "dimensions", "movement", "times")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(directory: Path) -> dict[str, bytes]:
    return {
        each.relative_to(directory).as_posix(): each.read_bytes()
        for each in directory.rglob("*")
        if each.is_file()
    }


@pytest.fixture(scope="module")
def reported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's report."""
    directory = tmp_path_factory.mktemp("report")
    words = ["report", str(run), "--out", str(directory / "first")]
    outcome = fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return directory / "first"


@pytest.mark.system
def test_the_same_run_gives_the_same_bytes_over_an_older_report(
    run: Path, reported: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    shutil.copytree(reported, tmp_path / "second")
    inode = (tmp_path / "second/index.html").stat().st_ino
    assert clip_hba("report", run, "--out", tmp_path / "second").code == 0
    assert files_of(tmp_path / "second") == files_of(reported)
    assert (tmp_path / "second/index.html").stat().st_ino != inode  # it was written again


def test_a_page_names_nothing_outside_and_holds_no_path_of_this_machine(reported: Path, run: Path) -> None:
    page = (reported / "index.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|//\w+\.\w+/", page)
    named = re.findall(r'(?:src|href)="([^"#]+)"', page)
    inside = [name for name in named if not name.startswith("data:")]
    assert all((reported / name).is_file() for name in inside)
    assert {f"figures/{name}.{ending}" for name in FIGURES for ending in ("svg", "pdf", "png")} <= set(inside)
    others = page.replace(str(run), "")  # the commands name the run as it was given
    assert str(run.parent) not in others
    assert (
        RunDirectory(run).read_environment()["machine"]["host"]
        not in re.sub(r"[\w.-]*things[\w.-]*", "", others).split()
    )


def test_figures_have_the_numbers_that_the_run_recorded(run: Path, reported: Path) -> None:
    recorded = rows_of(run / "training_res.csv")
    losses = rows_of(reported / "figures/losses.csv")
    assert [(row["epoch"], row["train_loss"], row["test_loss"]) for row in losses] == [
        (row["epoch"], row["train_loss"], row["test_loss"]) for row in recorded
    ]
    alignment = {row["epoch"]: row for row in rows_of(reported / "figures/alignment.csv")}
    assert list(alignment) == ["0", "1", "2", "3"]
    for row in recorded:
        assert alignment[row["epoch"]]["rho"] == row["behavioral_rsa_rho"]
        assert (
            float(alignment[row["epoch"]]["low"])
            < float(row["behavioral_rsa_rho"])
            < float(alignment[row["epoch"]]["high"])
        )
    assert len(rows_of(reported / "figures/pairs.csv")) == 1128
    assert len(rows_of(reported / "figures/dimensions.csv")) == 66
    movement = rows_of(reported / "figures/movement.csv")
    assert {float(value) for name, value in movement[0].items() if name != "epoch"} == {0.0}
    assert all(float(value) > 0 for name, value in movement[-1].items() if name != "epoch")
    page = (reported / "index.html").read_text(encoding="utf-8")
    assert "Recorded RSA and that of the checkpoints</dt><dd>equal in every epoch" in page


def test_measured_dissimilarities_are_the_human_ones_and_the_naive_p_is_nowhere(run: Path, reported: Path) -> None:
    human = read_human_rdm(Path(str(RunDirectory(run).read_config().RDM48_triplet_dir)))
    measured = [float(row["measured"]) for row in rows_of(reported / "figures/pairs.csv")]
    assert measured == human[np.triu_indices(48, k=1)].tolist()
    page = (reported / "index.html").read_text(encoding="utf-8")
    for row in rows_of(run / "training_res.csv"):
        assert row["behavioral_rsa_p_value"] not in page
        assert f"{float(row['behavioral_rsa_p_value']):.5g}" not in page
    assert "by 9,999 permutations of the images’ labels (Mantel)" in page
    assert "targets annotations.csv, human RDM RDM48_triplet.mat; 32 training images, 8 test images" in page
    assert page.count("by the loss of these images") == 1
    assert "of the test images; the epoch was chosen by it" in page
    assert ("; 0.0001 is the least that 9,999 permutations can give" in page) == ("<dd>0.0001," in page)
    assert "--split-half RDM48_triplet_splithalf.mat" in page
    assert "synthetic" not in page


def test_a_page_of_the_synthetic_data_set_says_so_and_asks_for_no_halves(run: Path) -> None:
    (record,) = read_records(find_sources([run]))
    assert record.config is not None
    synthetic = replace(record, config=record.config.model_copy(update={"csv_file": None}))
    page = render_page(run_page(synthetic, Request(), Session(logging.getLogger("a")))[0])
    assert "the synthetic data set: images, targets and RDM are drawn, none is of people; 32 training" in page
    assert "--split-half" not in page
    assert "the small CLIP that comes with the package" in page


def test_best_and_worst_images_are_shown_with_thumbnails(reported: Path) -> None:
    import base64
    import io

    page = (reported / "index.html").read_text(encoding="utf-8")
    thumbnails = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="([^"]+)"', page)
    assert len(thumbnails) == 8  # of 8 test images
    assert len({name for _, name in thumbnails}) == 8
    for content, _ in thumbnails:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert (image.format, image.size) == ("JPEG", (224, 224))


def test_a_report_of_a_run_is_below_three_megabytes(reported: Path) -> None:
    assert sum(map(len, files_of(reported).values())) < 3e6


def test_without_the_images_the_page_says_so_and_the_code_is_1(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "things")
    write_standin_dataset(tmp_path / "data")
    elsewhere = data_keys(tmp_path / "data") | {"img_dir": str(tmp_path / "nowhere")}
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump(elsewhere))
    done = clip_hba("report", tmp_path / "things", "--config", tmp_path / "elsewhere.yaml")
    assert done.code == 1, done.output
    assert "left out: " in done.output
    assert "nowhere" in done.output
    page = (tmp_path / "things/report/index.html").read_text(encoding="utf-8")
    assert "Not shown: intervals, RDMs and pairs." in page
    assert "Not shown: dimensions and images." in page
    assert f"clip-hba report {tmp_path / 'things'} --config" in page
    figures = {each.stem for each in (tmp_path / "things/report/figures").iterdir()}
    assert figures == {"losses", "trajectory", "alignment", "movement", "times"}
    alignment = rows_of(tmp_path / "things/report/figures/alignment.csv")
    assert list(alignment[0]) == ["epoch", "behavioral_rsa_rho"]


def test_other_images_under_the_same_names_are_not_taken_for_the_run_s(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    write_standin_dataset(tmp_path / "data", num_images=40)
    image = min((tmp_path / "data/images").glob("*.png"))
    Image.new("RGB", (64, 64), "white").save(image)
    (tmp_path / "elsewhere.yaml").write_text(yaml.safe_dump(data_keys(tmp_path / "data")))
    done = clip_hba("report", run, "--config", tmp_path / "elsewhere.yaml", "--out", tmp_path / "report")
    assert done.code == 1, done.output
    assert f"images that differ: {image.name}" in done.output


def certificate_of(run: Path, epoch: int, digest: str) -> str:
    claim = {"level": "L0", "meaning": "same machine and versions: every bit is claimed", "reasons": []}
    epochs = [{"epoch": epoch, "word": "reproducible", "recorded_digest": digest}]
    head = {"certificate": "verification", "format_version": 1, "program": "clip_hba_behavior 0", "date": "D"}
    return json.dumps(head | {"verdict": "reproducible", "summary": "1 of 1", "claim": claim, "epochs": epochs})


def digest_of(run: Path, epoch: int) -> str:
    (line,) = [
        each
        for each in (run / "steps.jsonl").read_text().splitlines()
        if f'"epoch": {epoch}, "step": "end"' in each
    ]
    return str(json.loads(line)["state_digest"])


@pytest.fixture(scope="module")
def halves(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The human RDM twice, with other noise."""
    human = read_human_rdm(Path(str(RunDirectory(run).read_config().RDM48_triplet_dir)))
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 48, 48))
    path = tmp_path_factory.mktemp("halves") / "RDM48_triplet_splithalf.mat"
    names = ("RDM48_triplet_split1", "RDM48_triplet_split2")
    scipy.io.savemat(path, {name: human + each + each.T for name, each in zip(names, noise, strict=True)})
    return path


@pytest.fixture(scope="module")
def with_all(run: Path, halves: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The report of a run with a damaged checkpoint, a noise ceiling and a certificate; and what was printed."""
    directory = tmp_path_factory.mktemp("all")
    shutil.copytree(run, directory / "things")
    (directory / "things/dora_params/epoch2_dora_params.pth").write_bytes(b"torn")
    (directory / "own.json").write_text(certificate_of(run, 2, digest_of(run, 2)))
    (directory / "things/other.json").write_text(certificate_of(run, 2, digest_of(run, 1)))
    (directory / "things/cut.json").write_text(certificate_of(run, 2, digest_of(run, 2))[:90])
    (directory / "things/mine.json").write_text('{"a": 1}')
    options = ["--split-half", str(halves), "--certificate", str(directory / "own.json")]
    words = ["report", str(directory / "things"), *options]
    outcome = fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")
    assert outcome.code == 1, outcome.output
    return directory / "things/report", outcome.output


def test_a_damaged_checkpoint_is_named_and_left_out(with_all: tuple[Path, str]) -> None:
    report, output = with_all
    assert re.search(r"left out: .*epoch2_dora_params.pth", output)
    assert [row["epoch"] for row in rows_of(report / "figures/alignment.csv")] == ["0", "1", "3"]
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "dora_params/epoch2_dora_params.pth" in page
    assert f"{report.parent}/dora_params" not in page


def test_the_split_halves_give_the_ceiling(with_all: tuple[Path, str], halves: Path) -> None:
    expected = noise_ceiling(*read_human_halves(halves))
    page = (with_all[0] / "index.html").read_text(encoding="utf-8")
    assert f"most that any model can reach: {expected.maximum:.3f}" in page
    assert f"the RDMs of two halves of the human data correlate at {expected.split_half:.3f}" in page
    assert "Not shown: the noise ceiling" not in page


def test_a_certificate_of_the_run_is_shown_with_its_level_and_one_of_another_is_not(
    with_all: tuple[Path, str], run: Path
) -> None:
    report, output = with_all
    page = (report / "index.html").read_text(encoding="utf-8")
    assert "<dt>Level</dt><dd>L0: same machine and versions: every bit is claimed</dd>" in page
    assert page.count("<dt>Certificate</dt>") == 1
    assert "Not shown: a certificate" not in page
    assert re.search(r"left out: .*other.json is not of .*: the state after epoch 2 is another", output)
    assert digest_of(run, 2) in output


def test_a_damaged_certificate_is_told_and_another_file_of_the_user_is_not(with_all: tuple[Path, str]) -> None:
    report, output = with_all
    page = (report / "index.html").read_text(encoding="utf-8")
    assert re.search(r"left out: .*cut.json is no certificate of a verification: ", output)
    assert "<p>cut.json is no certificate of a verification: " in page
    assert "mine.json" not in output + page


def test_a_missing_backbone_is_told_in_a_sentence_and_an_earlier_best_beside_the_model(
    run: Path, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    RunDirectory.at(tmp_path / "run").write_best(0, 0.5)
    (record,) = read_records(find_sources([tmp_path / "run"]))
    elsewhere = Request(keys={"backbone": str(tmp_path / "none")})
    page, left_out = run_page(record, elsewhere, Session(logging.getLogger("a")))
    html = render_page(page)
    assert len(left_out) == 1
    assert "They need the run’s data, backbone and checkpoints. There is no backbone " in html
    assert html.count(str(tmp_path / "none")) == 3  # summary, and two parts
    assert "clip-hba report" in html
    assert "--config where-the-data-are.yaml" in html
    assert "Its loss was lower still after epoch 0 (0.5000), with which the run began: best.json names" in html
    (record,) = read_records(find_sources([run]))
    assert "best.json" not in render_page(run_page(record, elsewhere, Session(logging.getLogger("a")))[0])


def test_a_certificate_of_another_run_that_is_named_is_refused(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text(certificate_of(run, 2, digest_of(run, 1)))
    refused = clip_hba("report", run, "--certificate", other, "--out", tmp_path / "none")
    assert refused.code == 2, refused.output
    assert f"{other} is not of {run}: the state after epoch 2 is another" in refused.output
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("report none", "there is nothing at the path none"),
        ("report .", "there is neither a run nor a sweep in ."),
        ("report {run} {run}", "is given twice"),
        ("report {run} --out {run}", "holds what no report wrote"),
        ("report {run} --split-half none.mat", "there is no file none.mat"),
        ("report {run} --certificate none.json", "none.json is no certificate of a verification"),
        ("report {run} --config none.yaml", "there is no configuration file none.yaml"),
        ("report {run} {run}/training_res.csv", "--out report"),
        ("report {run} {run}/training_res.csv --out new --split-half x.mat", "only for the report of one run"),
        ("report {run}/training_log.txt --out new", "is no results CSV"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_written(
    run: Path, clip_hba: ClipHba, tmp_path: Path, words: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files_of(run)
    done = clip_hba(*words.format(run=run).split())
    assert done.code == 2, done.output
    assert said in done.output
    assert files_of(run) == before
    assert not (tmp_path / "new").exists()


def test_a_device_that_cannot_be_is_told_and_nothing_is_written(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    done = clip_hba("report", run, "--device", "gpu", "--out", tmp_path / "report")
    assert done.code == 2
    assert "device: found 'gpu', expected auto, cpu, cuda" in done.output
    done = clip_hba("report", run / "training_res.csv", "--device", "cpu", "--out", tmp_path / "report")
    assert done.code == 2
    assert "--device cpu: only for the report of one run" in done.output
    assert not (tmp_path / "report").exists()


def test_the_model_looked_at_is_said_not_to_be_the_best_where_that_one_is_lost(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "lost")
    (tmp_path / "lost/dora_params/epoch3_dora_params.pth").unlink()
    assert clip_hba("report", tmp_path / "lost").code == 0
    page = (tmp_path / "lost/report/index.html").read_text(encoding="utf-8")
    assert "that of epoch 2, with the lowest test loss of those with a checkpoint that can be read" in page
    assert "epoch 3 has a lower one" in page


def test_a_damaged_line_of_the_ledger_is_named(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    ledger = RunDirectory.at(tmp_path / "run").ledger_file
    lines = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join([*lines[:2], "garbage\n", *lines[3:]]))
    (record,) = read_records(find_sources([tmp_path / "run"]))
    assert len(record.notes) == 1
    assert record.notes[0].startswith("steps.jsonl, line 3: ")
    (whole,) = read_records(find_sources([run]))
    assert whole.notes == ()


def test_a_run_without_its_checkpoints_is_shown_by_its_results_alone(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    for epoch in (1, 2, 3):
        (tmp_path / f"run/dora_params/epoch{epoch}_dora_params.pth").unlink()
    done = clip_hba("report", tmp_path / "run")
    assert done.code == 1
    assert "has no checkpoint of an epoch with results" in done.output


def test_figures_are_drawn_with_the_modules_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numbers.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    monkeypatch.setattr(drawing, "usable_cores", lambda: 2)
    panel = Panel((Series([1, 2], [1, 2]),))
    with drawing.drawing() as draw:
        draw(Figure("a", "A", "", "", (panel,)))
        assert draw.files(Figure("a", "A", "", "", (panel,)))["png"]
        assert draw._worker is not None
        assert draw._worker.poll() is None


def test_once_the_process_that_draws_is_killed_one_thread_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib's settings are the process's: two threads that draw at once spoil each other's figures."""
    threads: list[threading.Thread] = []

    def draw(figure: Figure) -> dict[str, bytes]:
        threads.append(threading.current_thread())
        return {"png": figure.name.encode()}

    monkeypatch.setattr(drawing, "usable_cores", lambda: 2)
    monkeypatch.setattr(drawing, "_draw", draw)
    figures = [Figure(name, "", "", "", ()) for name in "abc"]
    with drawing.drawing() as drawer:
        assert drawer._worker is not None
        drawer._worker.kill()
        drawer._worker.wait()
        for each in figures:
            drawer(each)
        assert [drawer.files(each)["png"] for each in figures] == [b"a", b"b", b"c"]
    assert set(threads) == {threading.main_thread()}
