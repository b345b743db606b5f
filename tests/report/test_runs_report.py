"""`clip-hba report` of several runs and of results tables: overlays, mean and spread, where they part."""

import csv
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clip_hba_behavior.config import make_config
from clip_hba_behavior.report.groups import groups_of
from clip_hba_behavior.report.runs_page import runs_page
from clip_hba_behavior.report.site import render_page
from clip_hba_behavior.report.sources import find_sources, read_records
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.results import COLUMNS
from fresh_process import Outcome

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, losses: list[float]) -> Path:
    """Write a results table as the earlier pipeline did."""
    rows = [f"{epoch},{loss + 1},{loss},{1 - loss / 10},1e-9" for epoch, loss in enumerate(losses, start=1)]
    path.write_text("\n".join([",".join(COLUMNS[:5]), *rows]) + "\n")
    return path


def test_tables_alone_are_overlaid_with_mean_and_spread(clip_hba: ClipHba, tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", [3.0, 2.0, 1.0])
    b = write_table(tmp_path / "b.csv", [3.0, 2.0, 2.0, 1.5])
    done = clip_hba("report", a, b, "--out", tmp_path / "report")
    assert done.code == 0, done.output
    table = rows_of(tmp_path / "report/figures/losses.csv")
    assert table[3] == {
        "epoch": "4", "a test_loss": "", "b test_loss": "1.5", "a train_loss": "", "b train_loss": "2.5"
    }  # fmt: skip
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "mean of 2" in page
    assert "mean 1.25, standard deviation 0.35 (n − 1; n = 2), 1 to 1.5" in page
    (parting,) = rows_of(tmp_path / "report/figures/partings.csv")
    assert parting == {"run": "b", "first_epoch": "3", "what": "train_loss in the results", "settings": ""}
    assert "Thin: single runs. Thick: the mean" in page
    assert "Spearman’s rho of the model’s and the human RDM of 48 held-out images." in page
    assert page.count("test loss (mean squared error)") > 1
    assert "1e-09" not in page  # the p of dependent pairs


def test_one_table_alone_has_a_page(tmp_path: Path) -> None:
    (record,) = read_records(find_sources([write_table(tmp_path / "a.csv", [3.0])]))
    page = render_page(runs_page([record], Session(logging.getLogger("a"))))
    assert "Results a" in page
    assert "Where they part" not in page
    assert "Thin: " not in page
    assert "A results table says nothing of seed and settings" in page


def test_losses_that_are_no_numbers_have_no_spread_and_are_no_best_epoch(tmp_path: Path) -> None:
    a = write_table(tmp_path / "a.csv", [float("nan"), 2.0, 1.0])
    b = write_table(tmp_path / "b.csv", [float("nan"), float("inf")])
    records = read_records(find_sources([a, b]))
    assert [record.best_epoch() for record in records] == [3, 1]
    page = render_page(runs_page(records, Session(logging.getLogger("a"))))
    assert "mean nan, standard deviation nan" in page


def test_a_run_that_stopped_earlier_with_the_same_results_counts_once(tmp_path: Path) -> None:
    tables = [[3.0, 2.0], [3.0, 2.0, 1.0], [3.5, 2.5, 1.5]]
    paths = [write_table(tmp_path / f"{name}.csv", losses) for name, losses in zip("abc", tables, strict=True)]
    (group,) = groups_of(read_records(find_sources(paths)))
    assert [run.name for run in group.distinct()] == ["b", "c"]
    assert [run.name for run in group.repeating()] == ["a"]


def test_a_name_that_is_no_text_is_shown_with_question_marks(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.csv"))
    try:
        write_table(path, [1.0])
    except OSError:
        pytest.skip("names are UTF-8 on this file system")
    (record,) = read_records(find_sources([path]))
    assert record.name == "caf?"


def test_a_copy_of_a_run_counts_once_and_is_said_to_be_equal(run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "copy")
    other = tmp_path / "other"
    assert clip_hba("train", run / "config.yaml", "--run-dir", other, "--set", "random_seed=2").code == 0
    done = clip_hba("report", run, tmp_path / "copy", other, "--out", tmp_path / "report")
    assert done.code == 0, done.output
    partings = {row["run"]: row for row in rows_of(tmp_path / "report/figures/partings.csv")}
    assert partings["copy"]["first_epoch"] == ""
    assert partings["copy"]["what"] == "nothing: 4 states are equal to the last bit"
    assert partings["other"]["first_epoch"] == "0"
    assert partings["other"]["settings"] == "random_seed 1 | 2"
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "mean of 2" in page
    assert "they repeat another run’s results: copy" in page


def test_a_fork_parts_in_its_first_perturbed_epoch(run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    done = clip_hba("fork", run, "--at-epoch", 2, "--perturb", "label_shuffle", "--run-dir", fork)
    assert done.code == 0, done.output
    assert clip_hba("report", run, fork, "--out", tmp_path / "report").code == 0
    (parting,) = rows_of(tmp_path / "report/figures/partings.csv")
    assert (parting["run"], parting["first_epoch"], parting["what"]) == ("fork", "2", "batch content")
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "fork: from epoch 2" in page
    assert "perturb_type label_shuffle" in page


def test_runs_are_grouped_by_settings_and_not_by_seed_or_length(run: Path, tmp_path: Path) -> None:
    changes: dict[str, dict[str, object]] = {
        "seed": {"random_seed": 3},
        "rate": {"lr": 1e-4},
        "longer": {"epochs": 9},
    }
    for name, change in changes.items():  # of other settings, with the same results
        shutil.copytree(run, tmp_path / name)
        other = RunDirectory(tmp_path / name)
        other.write_config(make_config(other.read_config().model_dump() | {"lr_schedule_epochs": None} | change))
    records = read_records(find_sources([run, *(tmp_path / name for name in changes)]))
    groups = groups_of(records)
    assert [[each.name for each in group.runs] for group in groups] == [["things", "seed", "longer"], ["rate"]]
    assert [(group.name, group.settings) for group in groups] == [("A", "lr 0.001"), ("B", "lr 0.0001")]
    assert [each.name for each in groups[0].distinct()] == ["things"]
    assert groups[0].over_epochs("test_loss")[0] == [1.0, 2.0, 3.0]


def test_names_of_runs_are_as_long_as_tells_them_apart(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other" / run.name)
    records = read_records(find_sources([run, tmp_path / "other" / run.name]))
    assert [each.name for each in records] == [f"{run.parent.name}/{run.name}", f"other/{run.name}"]


def test_the_recorded_runs_of_the_earlier_pipeline(things: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    tables = sorted((things / "recorded_runs").glob("*.csv"))
    assert len(tables) == 3
    done = clip_hba("report", *tables, "--out", tmp_path / "report")
    assert done.code == 0, done.output
    table = rows_of(tmp_path / "report/figures/table.csv")
    for path, row in zip(tables, table, strict=True):
        recorded = rows_of(path)
        best = min(recorded, key=lambda each: float(each["test_loss"]))
        assert (row["run"], row["best_epoch"], row["behavioral_rsa_rho"]) == (
            path.stem, best["epoch"], repr(float(best["behavioral_rsa_rho"]))
        )  # fmt: skip
    rho = [float(row["behavioral_rsa_rho"]) for row in table]
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert f"mean {np.mean(rho):.4g}, standard deviation {np.std(rho, ddof=1):.2g}" in page


@pytest.mark.parametrize("name", ["empty.csv", "header.csv"])
def test_a_table_without_rows_is_refused(clip_hba: ClipHba, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty.csv").touch()
    write_table(tmp_path / "header.csv", [])
    done = clip_hba("report", tmp_path / name, "--out", tmp_path / "report")
    assert done.code == 2, done.output
    assert not (tmp_path / "report").exists()
