"""The report of a sweep: what it shows, what it refuses, and that the same sweep gives the same bytes."""

import csv
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import fresh_process
from browser import axe_problems, find_axe, visited
from clip_hba_behavior.config import PerturbType
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.report.blocks import Titled
from clip_hba_behavior.report.figure import Heat, Series
from clip_hba_behavior.report.paper import paper_files
from clip_hba_behavior.report.site import render_page, to_csv
from clip_hba_behavior.report.sources import find_sources
from clip_hba_behavior.report.sweeps import heat_maps, tables
from clip_hba_behavior.report.sweeps.by_start import at_the_end, at_the_window, effect_by_start
from clip_hba_behavior.report.sweeps.null import is_outside, limit_of
from clip_hba_behavior.report.sweeps.over_baselines import over_baselines_page
from clip_hba_behavior.report.sweeps.page import sweep_page
from clip_hba_behavior.report.sweeps.plans import plans_of
from clip_hba_behavior.report.sweeps.record import KIND_NAMES, SweepRecord, read_sweep, styles_of
from clip_hba_behavior.report.sweeps.recovery import recovery_curves, recovery_medians
from clip_hba_behavior.sweep.nulls import p_value
from fresh_process import Outcome
from run_tools import trained
from sweep_tools import write_sweep

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


@pytest.fixture(scope="module")
def sweep(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished sweep: two kinds, starts, lengths and seeds, and two null runs of each.

    Of uniform_images, which draws nothing, there is one seed.
    """
    directory = tmp_path_factory.mktemp("sweep")
    keys = {**data_keys(standin_data), "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu", "batch_size": 16}

    def clip_hba(*arguments: object) -> Outcome:
        texts = [str(each) for each in arguments]
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv(fresh_process.SERVER_IN_ADVANCE, "1")
            return fresh_process.call(fresh_process.clip_hba, texts, output=directory / "output.txt")

    baseline = trained(clip_hba, directory, keys | {"epochs": 4}, "baseline")
    file = write_sweep(directory, baseline, seeds=[0, 1], null_seeds=2, band_epochs=1)
    outcome = clip_hba("sweep", "run", file)
    assert outcome.code == 0, outcome.output
    return directory / "sweep"


@pytest.fixture(scope="module")
def record(sweep: Path) -> SweepRecord:
    return record_of(sweep)


def record_of(directory: Path) -> SweepRecord:
    ((file, _, plan),) = plans_of(find_sources([directory]))
    return read_sweep(file, plan, directory.name, "", lambda what, done, total: None)


@pytest.fixture
def own_sweep(sweep: Path, tmp_path: Path) -> Path:
    """A copy of the sweep and its baseline that a test may change."""
    shutil.copytree(sweep.parent / "baseline", tmp_path / "baseline")
    shutil.copytree(sweep, tmp_path / "sweep")
    for config in [
        tmp_path / "sweep" / "sweep.yaml",
        *tmp_path.glob("**/config.yaml"),
        *tmp_path.glob("**/environment.json"),
    ]:
        config.write_text(config.read_text().replace(str(sweep.parent), str(tmp_path)))
    return tmp_path / "sweep"


def page_of(record: SweepRecord) -> str:
    return render_page(sweep_page(record, styles_of([record])))


def change_file(sweep: Path, **keys: Any) -> None:
    file = sweep / "sweep.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | keys))


def test_the_command_writes_every_part_and_another_process_makes_the_same(
    sweep: Path, record: SweepRecord, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba("report", sweep, "--out", tmp_path / "report")
    assert outcome.code == 0, outcome.output
    assert f"The report is in {tmp_path / 'report' / 'index.html'}" in outcome.output
    page = (tmp_path / "report" / "index.html").read_text()
    made = sweep_page(record, styles_of([record]))
    assert page == render_page(made)
    for title in ("Controls", "At the perturbed epoch", "Effects and claims", "Recovery", "Final performance"):
        assert re.search(f"<h2 id=[^>]*>{title}</h2>", page), title
    assert "All 22 runs of the sweep are done and in this report." in page
    assert "2 of 2 controls are equal to the baseline to the last bit." in page
    assert "With 2 null runs no p-value is below 0.3333" in page
    assert "0.3333 is the least that 2 null runs can give (matched null)." in page
    assert "No p-value is adjusted for 2 epochs by Benjamini and Hochberg" in page
    assert "(claims: perturbed of length 1, " in page
    assert f"clip-hba sweep verify {sweep / 'sweep.yaml'} --sample 10" in page
    figures = tmp_path / "report" / "figures"
    assert len(made.figures()) == 12
    for figure in made.figures():
        assert figure.table is not None
        assert (figures / f"{figure.name}.csv").read_bytes() == to_csv(figure.table)
        assert all((figures / f"{figure.name}.{ending}").is_file() for ending in ("svg", "pdf", "png"))
    figure = made.figures()[2]
    assert paper_files(figure)["svg"] == (figures / f"{figure.name}.svg").read_bytes()


def test_a_moved_sweep_is_read_where_it_is(own_sweep: Path, tmp_path: Path) -> None:
    moved = own_sweep.rename(tmp_path / "moved")
    assert {run.name for run in record_of(moved).plan.runs()} == {path.name for path in (moved / "runs").iterdir()}
    assert record_of(moved).plan.directory == moved


def test_numbers_of_the_change_are_the_tables(record: SweepRecord, sweep: Path) -> None:
    figure = effect_by_start(record, "test_loss", styles_of([record]))
    assert [panel.title for panel in figure.panels] == ["after 1 perturbed epoch", "after 2 perturbed epochs"]
    assert figure.table is not None
    with (sweep / "sweep.csv").open(newline="") as file:
        rows = {(row["run"], row["epoch"]): row for row in csv.DictReader(file)}
    assert len(figure.table.rows) == 2 * 2 * (2 + 1)  # after one epoch, and after two; starts; seeds of both kinds
    for length, kind, start, seed, epoch, change, null_runs, *_ in figure.table.rows:
        row = rows[f"e{start:03}_{kind}_l{length}_s{seed}", str(epoch)]
        assert change == float(row["test_loss_minus_baseline"])
        assert epoch == start + length - 1
        assert null_runs == 2
    mean = next(
        mark for mark in figure.panels[0].marks if isinstance(mark, Series) and mark.name == "random_target"
    )
    seeds = [row[5] for row in figure.table.rows if row[:3] == (1, "random_target", 2)]
    assert mean.y[0] == pytest.approx(sum(seeds) / 2)
    band = next(mark for mark in figure.panels[0].marks if isinstance(mark, Series) and mark.low is not None)
    null = [float(rows[f"e002_reorder_l1_s{seed}", "2"]["test_loss_minus_baseline"]) for seed in (1, 2)]
    assert band.high is not None
    assert band.high[0] == max(map(abs, null))


def test_after_the_first_epoch_all_lengths_are_one_run_and_final_ones_have_each_length(
    record: SweepRecord,
) -> None:
    first = at_the_window(record, "test_loss")[1]["random_target"]
    assert {start: [each.seed for each in effects] for start, effects in first.items()} == {2: [0, 1], 3: [0, 1]}
    last = at_the_end(record, "test_loss")
    assert {
        each.epoch for of in last.values() for starts in of.values() for all_ in starts.values() for each in all_
    } == {4}


def test_heat_maps_have_one_scale_around_zero_and_nothing_before_the_start(record: SweepRecord) -> None:
    figures = list(heat_maps.over_epochs(record, "behavioral_rsa_rho"))
    heats = [
        mark for figure in figures for panel in figure.panels for mark in panel.marks if isinstance(mark, Heat)
    ]
    assert len(figures) == 2
    assert len(heats) == 4
    assert len({(heat.low, heat.high) for heat in heats}) == 1
    assert heats[0].low == -heats[0].high
    assert (
        max(abs(value) for heat in heats for row in heat.values for value in row if value == value)
        == heats[0].high
    )
    for heat in heats:
        assert heat.x_names == ["2", "3", "4"]
        assert [[value == value for value in row] for row in heat.values] == [[True] * 3, [False, True, True]]
        assert heat.marked == [[False] * 3] * 2  # two null runs can put nothing outside
    assert all("with 2 null runs no p is below 0.3333" in figure.text for figure in figures)
    assert {row[5] for figure in figures if figure.table is not None for row in figure.table.rows} == {None}


def test_cells_outside_the_null_are_marked_where_the_null_is_large_enough(record: SweepRecord) -> None:
    (effect, *_) = [each for each in record.effects.effects if each.matched is not None]
    assert effect.matched is not None
    small = tuple(1e-9 * seed for seed in range(1, 20))
    outside = replace(effect, matched=replace(effect.matched, effects=small, p_value=p_value(effect.value, small)))
    assert is_outside([outside])
    inside = replace(effect, matched=replace(effect.matched, effects=small, p_value=1.0))
    assert is_outside([outside, inside]) is False  # every seed must be
    assert is_outside([outside, effect]) is None  # two null runs cannot tell
    assert is_outside([replace(effect, matched=None)]) is None
    assert is_outside([]) is None
    marked = replace(record, effects=replace(record.effects, effects=(outside,)))
    (figure,) = heat_maps.over_epochs(marked, effect.measure)
    (heat,) = [mark for mark in figure.panels[0].marks if isinstance(mark, Heat)]
    assert heat.marked is not None
    assert sum(map(sum, heat.marked)) == 1
    assert heat.mark_name == "outside the null"
    assert "p of at most 0.05 in every seed, where" in figure.text
    assert figure.table is not None
    assert [row[5] for row in figure.table.rows] == [True]


@pytest.mark.parametrize("size", [1, 5, 19, 39, 100])
def test_the_band_ends_where_p_falls_to_its_level(size: int) -> None:
    null = [(-1) ** seed * seed for seed in range(1, size + 1)]
    limit = limit_of(null)
    assert p_value(limit, null) > 0.05
    assert size < 19 or p_value(limit + 0.5, null) <= 0.05
    assert limit_of([*null[:19], math.nan]) == math.inf


def test_the_best_of_each_run_stands_beside_the_null(record: SweepRecord) -> None:
    figure = heat_maps.best_by_length(record, "test_loss")
    titles = [panel.title for panel in figure.panels]
    assert titles == ["random_target", "uniform_images", "null (reorder): mean of 2 runs"]
    assert figure.table is not None
    losses = {epoch: row["test_loss"] for epoch, row in record.baseline.rows.items()}
    for kind, start, length, seed, difference, *_ in figure.table.rows:
        rows = [row for row in record.collected.rows if row["run"] == f"e{start:03}_{kind}_l{length}_s{seed}"]
        expected = min(row["test_loss"] for row in rows) - min(losses[row["epoch"]] for row in rows)
        assert difference == expected


def test_recovery_counts_runs_and_names_its_rule(record: SweepRecord) -> None:
    titled = recovery_medians(record)
    assert "within 2 % of the baseline’s and stays there for 1 consecutive epoch;" in titled.text
    assert titled.table.columns[5:7] == ("censored", "of them without time")
    for kind, _, runs, inside, recovered, censored, without_time, *_ in titled.table.rows:
        assert isinstance(without_time, int)
        assert 0 <= without_time <= int(censored or 0)
        assert runs == (4 if kind == "random_target" else 2)
        assert isinstance(inside, int)
        assert isinstance(recovered, int)
        assert isinstance(censored, int)
        assert inside + recovered + censored == runs
    figures = list(recovery_curves(record))
    assert [figure.name for figure in figures] == ["recovery-1", "recovery-2"]
    assert "within 2 % of the baseline" in figures[0].text


def test_a_control_that_is_not_the_baseline_is_named(own_sweep: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "baseline" / "steps.jsonl"
    digest = record_of(own_sweep).baseline.digests[4]
    ledger.write_text(ledger.read_text().replace(digest, "0" * len(digest)))
    record = record_of(own_sweep)
    assert not record.collected.is_complete()
    page = page_of(record)
    assert "0 of 2 controls are equal to the baseline to the last bit." in page
    assert "Control e002_none is not the baseline, so no effect here can be trusted." in page
    (table,) = [block for block in tables.controls(record) if isinstance(block, Titled)]
    assert [row[4] for row in table.table.rows] == [4, 4]


def test_missing_and_damaged_runs_are_named_with_the_command_that_goes_on(
    own_sweep: Path, clip_hba: ClipHba
) -> None:
    shutil.rmtree(own_sweep / "runs" / "e003_random_target_l2_s1")
    (own_sweep / "runs" / "e002_reorder_l2_s2" / "training_res.csv").unlink()
    change_file(own_sweep, lengths=[1, 2, 3])
    outcome = clip_hba("report", own_sweep / "sweep.yaml")
    assert outcome.code == 1, outcome.output
    assert "clip-hba sweep status" in outcome.output
    page = (own_sweep / "report" / "index.html").read_text()
    assert f"clip-hba sweep resume {own_sweep / 'sweep.yaml'}" in page
    assert "5 runs are left out: the perturbation would go beyond the baseline&#39;s last epoch, 4" in page
    with (own_sweep / "report" / "figures" / "not-there.csv").open(newline="") as file:
        rows = {row["run"]: (row["state"], row["what is wrong"]) for row in csv.DictReader(file)}
    assert rows["e003_random_target_l2_s1"][0] == "missing"
    assert rows["e002_uniform_images_l3_s0"][0] == "missing"
    assert rows["e002_reorder_l2_s2"][0] == "damaged"
    assert "training_res.csv does not have epoch 3" in rows["e002_reorder_l2_s2"][1]


def test_a_sweep_without_null_says_what_to_add(own_sweep: Path) -> None:
    change_file(own_sweep, null_seeds=0)
    for run in (own_sweep / "runs").glob("*_reorder_*"):
        shutil.rmtree(run)
    record = record_of(own_sweep)
    assert record.collected.is_complete()
    page = page_of(record)
    assert "add null_seeds: 19 to the sweep’s file" in page
    assert f"clip-hba sweep run {own_sweep / 'sweep.yaml'}" in page
    assert "No cell can be marked: there is no null" in page
    assert "effects below" not in page
    assert "outside the null" not in page
    assert "One claim" not in page


def test_a_sweep_of_which_no_run_is_done_has_a_page(own_sweep: Path) -> None:
    shutil.rmtree(own_sweep / "runs")
    page = page_of(record_of(own_sweep))
    assert "No perturbed run is done yet." in page
    assert "22 missing" in page


def test_controls_that_were_not_asked_for_are_named_as_missing(record: SweepRecord) -> None:
    rows = [row for row in record.collected.rows if row["kind"] != "none"]
    without = replace(record, collected=replace(record.collected, rows=rows))
    (block,) = tables.controls(without)
    assert "which must be the baseline" in str(block)


def test_what_is_no_sweep_is_refused(sweep: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    for arguments, expected in [
        ([tmp_path], "there is neither a run nor a sweep in"),
        (
            [tmp_path / "none.yaml"],
            f"there is nothing at the path {tmp_path / 'none.yaml'}\n"
            "  expected: the directory of a run or of a sweep, a sweep's YAML file, or a results CSV\n"
            f"  list the runs and sweeps that there are: clip-hba runs {tmp_path}\n",
        ),
        ([sweep, sweep.parent / "baseline"], "baseline is no sweep"),
        ([sweep, "--split-half", sweep], "only for the report of one run"),
        ([sweep, sweep / "sweep.yaml"], "is given twice"),
    ]:
        outcome = clip_hba("report", *arguments)
        assert outcome.code == 2, outcome.output
        assert expected in outcome.output
    file = tmp_path / "sweep.yaml"
    file.write_text("kinds: []\n")
    outcome = clip_hba("report", file)
    assert outcome.code == 2
    assert "the sweep file is wrong" in outcome.output
    file = write_sweep(tmp_path, sweep.parent / "baseline", "new")
    outcome = clip_hba("report", file)
    assert outcome.code == 2
    assert "the sweep has not begun" in outcome.output


def test_sweeps_of_one_baseline_and_baselines_of_other_settings_are_said_to_be(
    record: SweepRecord, own_sweep: Path
) -> None:
    other = as_another_baseline(replace(record_of(own_sweep), name="other"))
    assert other.baseline.config is not None
    pages = []
    for changed in (
        replace(record, name="other"),
        other,
        replace(
            other, baseline=replace(other.baseline, config=other.baseline.config.model_copy(update={"rank": 8}))
        ),
    ):
        page = over_baselines_page([record, changed], ["sweep-1.html", "sweep-2.html"], styles_of([record]))
        pages.append(render_page(page))
    one, copies, unlike = pages
    assert "Several sweeps of one baseline: " in one
    assert "All have the baseline baseline: a mean over baselines takes two." in one
    assert "Several sweeps of one baseline" not in copies
    assert "differ in more than their seed" not in copies
    assert "The baselines differ in more than their seed. sweep: rank 4; other: rank 8." in unlike
    assert "sweep, other: with 2 null runs no p-value is below 0.3333" in copies
    assert f"claims with p of at most 0.05: 0 of {len(record.effects.families)}" in copies


def test_kinds_are_explained_by_the_words_of_the_documentation(record: SweepRecord) -> None:
    told = (Path(__file__).parents[2] / "docs" / "PERTURBATIONS.md").read_text(encoding="utf-8").replace("'", "’")
    assert KIND_NAMES.keys() == set(get_args(PerturbType)) - {"none", "reorder"}
    assert all(f"`{kind}` | {text}" in told for kind, text in KIND_NAMES.items())
    assert "uniform_images: images in which every pixel is 0.5" in page_of(record)


def test_several_sweeps_are_summarised_over_their_baselines(record: SweepRecord, own_sweep: Path) -> None:
    other = record_of(own_sweep)
    files = ["sweep-1.html", "sweep-2.html"]
    copies = render_page(over_baselines_page([record, other], files, styles_of([record, other])))
    assert "are one baseline, and count once: they have training states in common" in copies
    assert "Several sweeps of one baseline: " in copies
    assert "Numbers" not in copies
    other = as_another_baseline(other)
    page = over_baselines_page([record, other], files, styles_of([record, other]))
    text = render_page(page)
    assert "The baseline is the random unit" in text
    assert "over 2 baselines there is a t interval" in text.lower()
    assert 'href="sweep-1.html"' in text
    (table,) = page.tables()
    assert {row[5] for row in table.table.rows} == {2}
    # the two have the same results, so each mean is a baseline's own, with nothing to either side
    for row in table.table.rows:
        assert row[6:9] == pytest.approx([row[6]] * 3)
    assert {row[4] for row in table.table.rows} == {"perturbed", "window_end", "last"}
    assert all("mean of 2 baselines (line)" in figure.text for figure in page.figures())
    third = as_another_baseline(record, "third")
    few = [row for row in third.collected.rows if row["perturb_epoch"] == 3]
    third = replace(third, collected=replace(third.collected, rows=few))
    page = over_baselines_page([record, other, third], [*files, "sweep-3.html"], styles_of([record]))
    assert "mean of 3 baselines (2 at epoch 2) (line)" in page.figures()[0].text
    shorter = [row for row in other.collected.rows if row["epoch"] < 4]
    ended = replace(other, collected=replace(other.collected, rows=shorter))
    page = over_baselines_page([record, ended], files, styles_of([record, other]))
    assert "Nothing is averaged over baselines at the end, for the sweeps end after different" in render_page(page)
    assert {row[4] for row in page.tables()[0].table.rows} == {"perturbed", "window_end"}


def as_another_baseline(record: SweepRecord, name: str = "another") -> SweepRecord:
    """The same results as of another training."""
    states = {"parent": name, "baseline_state_digest": name}
    rows = [row | states for row in record.collected.rows]
    return replace(record, collected=replace(record.collected, rows=rows))


def test_a_report_of_several_sweeps_needs_a_place(sweep: Path, own_sweep: Path, clip_hba: ClipHba) -> None:
    outcome = clip_hba("report", sweep, own_sweep)
    assert outcome.code == 2
    assert "say where it goes: clip-hba report" in outcome.output


@pytest.mark.timeout(1200)
def test_a_browser_shows_every_figure_of_sweeps_and_asks_no_network(
    sweep: Path, own_sweep: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba("report", sweep, own_sweep, "--out", tmp_path / "report")
    assert outcome.code == 0, outcome.output
    assert len(list((tmp_path / "report" / "assets").glob("plotly*"))) == 1
    axe = find_axe(tmp_path)
    for file in ("index.html", "sweep-1.html", "sweep-2.html"):
        for width, theme in [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")]:
            with visited(tmp_path / "report" / file, width, theme) as visit:
                assert visit.errors == []
                assert visit.outside() == []
                plots = visit.page.locator(".plot").count()
                assert plots == visit.num_drawn()
                assert bool(plots) == (file != "index.html")  # which has figures where baselines are several
                assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
                visit.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
                assert axe_problems(visit, axe) == []
