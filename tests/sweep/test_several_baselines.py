"""One sweep over several baselines: one file, one table, effects of each baseline, one report."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fresh_process
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.names import names_of
from clip_hba_behavior.sweep.columns import read_table
from clip_hba_behavior.sweep.effects import effects_of
from clip_hba_behavior.sweep.plan import make_sweep_file
from clip_hba_behavior.sweep.sweep import make_sweep, read_sweep
from fresh_process import Outcome
from sweep_tools import table, write_sweep

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


def as_much_as_a_plan_reads(path: Path, epochs: int, threads: int = 1) -> Path:
    (path / "dora_params").mkdir(parents=True)
    (path / "config.yaml").write_text(f"epochs: {epochs}\nnum_threads: {threads}\n")
    for epoch in range(epochs + 1):
        (path / f"dora_params/epoch{epoch}_dora_params.pth").touch()
    return path


def test_each_baseline_has_the_runs_of_a_sweep_of_its_own(tmp_path: Path) -> None:
    paths = [as_much_as_a_plan_reads(tmp_path / name, epochs) for name, epochs in (("one", 3), ("two", 4))]
    keys = {"kinds": ["label_shuffle"], "lengths": [1, 2], "directory": str(tmp_path / "sweep")}
    sweep = make_sweep(make_sweep_file(keys | {"baseline": [str(path) for path in paths]}))
    assert [plan.last_epoch for plan in sweep.plans] == [3, 4]  # `all`: each baseline's own
    for plan, path, name in zip(sweep.plans, paths, ("one", "two"), strict=True):
        (alone,) = make_sweep(make_sweep_file(keys | {"baseline": str(path)})).plans
        assert [run.name for run in plan.runs()] == [f"{name}/{run.name}" for run in alone.runs()]
        assert [plan.own_keys(run) for run in plan.runs()] == [alone.own_keys(run) for run in alone.runs()]
        assert {plan.source(run) for run in plan.runs() if run.extends is None} == {path}
    assert len(sweep.chains()) == sum(len(plan.chains) for plan in sweep.plans)


def test_a_list_of_one_is_that_one(tmp_path: Path) -> None:
    path = as_much_as_a_plan_reads(tmp_path / "one", 2)
    keys = {"kinds": ["label_shuffle"], "directory": str(tmp_path / "sweep")}
    single, listed = (
        make_sweep(make_sweep_file(keys | {"baseline": given})) for given in (str(path), [str(path)])
    )
    assert single.runs()[0][1].name == "e001_none"
    assert [run for _, run in single.runs()] == [run for _, run in listed.runs()]


def test_baselines_are_told_apart_by_as_much_of_their_path_as_it_takes(tmp_path: Path) -> None:
    paths = [as_much_as_a_plan_reads(tmp_path / name / "run", 1) for name in ("seed1", "seed2")]
    keys = {"kinds": [], "directory": str(tmp_path / "sweep")}
    sweep = make_sweep(make_sweep_file(keys | {"baseline": [str(path) for path in paths]}))
    assert [run.name for _, run in sweep.runs()] == ["seed1/run/e001_none", "seed2/run/e001_none"]
    assert sweep.plans[1].path("seed2/run/e001_none") == tmp_path / "sweep/runs/seed2/run/e001_none"


def test_runs_stay_in_the_sweeps_directory_whatever_the_baselines_paths_look_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("run", "study/other/run"):
        as_much_as_a_plan_reads(tmp_path / name, 1)
    monkeypatch.chdir(tmp_path / "study")
    keys = {"kinds": [], "directory": str(tmp_path / "sweep"), "baseline": ["../run", "other/run"]}
    sweep = make_sweep(make_sweep_file(keys))
    assert [plan.prefix for plan in sweep.plans] == [f"{tmp_path.name}/run/", "other/run/"]
    assert names_of([Path("/run"), Path("/data/run")]) == ["run", "data/run"]  # not "//run", another root


def test_settings_that_one_baseline_cannot_have_are_refused_with_its_name(tmp_path: Path) -> None:
    paths = [as_much_as_a_plan_reads(tmp_path / name, 1) for name in ("native", "portable")]
    (paths[1] / "config.yaml").write_text("epochs: 1\narithmetic: portable\n")
    keys = {"kinds": [], "directory": str(tmp_path / "sweep"), "settings": {"precision": "tf32"}}
    with pytest.raises(BadInputError, match=f"a fork of {paths[1]} cannot be made: .*\n  precision: tf32"):
        make_sweep(make_sweep_file(keys | {"baseline": [str(path) for path in paths]}))


def test_so_many_runs_at_once_as_the_baseline_with_most_threads_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip_hba_behavior.sweep.sweep.usable_cores", lambda: 8)
    paths = [as_much_as_a_plan_reads(tmp_path / str(threads), 1, threads) for threads in (1, 4)]
    keys = {"kinds": [], "directory": str(tmp_path / "sweep")}
    sweep = make_sweep(make_sweep_file(keys | {"baseline": [str(path) for path in paths]}))
    assert sweep.num_processes() == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected a run's directory, or a list of some"),
        (["{a}", "{a}/../a"], "one run is given more than once; leave out all but one"),
        (["{a}", "{a}-absent"], "-absent: the sweep's baseline has no config.yaml"),
        (["{a}", 3], "baseline: found ['{a}', 3], expected a run's directory, or a list of some"),
        (["{a}", ""], "baseline: found ['{a}', ''], expected a run's directory, or a list of some"),
    ],
)
def test_a_wrong_list_is_refused(given: list[object], message: str, tmp_path: Path) -> None:
    path = as_much_as_a_plan_reads(tmp_path / "a", 2)
    listed = [each.replace("{a}", str(path)) if isinstance(each, str) else each for each in given]
    with pytest.raises(BadInputError) as raised:
        make_sweep(make_sweep_file({"baseline": listed, "directory": str(tmp_path / "s"), "kinds": []}))
    assert message.replace("{a}", str(path)) in str(raised.value)


def test_runs_of_a_file_with_one_baseline_are_named_once_it_has_several(clip_hba: ClipHba, tmp_path: Path) -> None:
    paths = [as_much_as_a_plan_reads(tmp_path / name, 2) for name in ("one", "two")]
    (tmp_path / "sweep/runs/e002_none").mkdir(parents=True)
    file = write_sweep(tmp_path, paths, kinds=[], epochs=[2])
    outcome = clip_hba("sweep", "status", file)
    assert outcome.code == 1
    assert f"1 run is in {tmp_path / 'sweep/runs'}, but not in the sweep's file" in outcome.output
    assert outcome.output.count("e002_none: missing") == 2
    assert "2 missing" in outcome.output


@pytest.fixture(scope="module")
def two(baseline: Path, second_baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a finished sweep of two baselines that were trained with different seeds."""
    directory = tmp_path_factory.mktemp("two")
    both = [baseline, second_baseline]
    file = write_sweep(directory, both, epochs=[3], kinds=["label_shuffle"], lengths=[1, 2], null_seeds=2)
    words = ["sweep", "run", str(file)]
    outcome = fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    assert "controls equal to the baseline byte for byte: 2 of 2" in outcome.output
    return file


def test_one_table_has_the_rows_of_a_sweep_of_each_baseline(
    two: Path, baseline: Path, second_baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    rows = table(two.parent / "sweep")
    assert {row["parent"] for row in rows} == {str(baseline), str(second_baseline)}
    alone = write_sweep(
        tmp_path, second_baseline, epochs=[3], kinds=["label_shuffle"], lengths=[1, 2], null_seeds=2
    )
    assert clip_hba("sweep", "run", alone).code == 0
    of_second = [row for row in rows if row["parent"] == str(second_baseline)]
    (_, plan) = read_sweep(two).plans
    assert [row | {"run": row["run"].removeprefix(plan.prefix)} for row in of_second] == table(tmp_path / "sweep")
    for run in plan.runs():
        its = RunDirectory(plan.path(run.name))
        single = RunDirectory(tmp_path / "sweep/runs" / run.name.removeprefix(plan.prefix))
        assert its.ledger_file.read_bytes() == single.ledger_file.read_bytes()


def test_effects_are_of_each_baseline_and_over_both(two: Path, baseline: Path, second_baseline: Path) -> None:
    found = effects_of(read_table(two.parent / "sweep/sweep.csv"))
    assert {each.baseline for each in found.effects} == {str(baseline), str(second_baseline)}
    assert all(each.matched is not None and len(each.matched.effects) == 2 for each in found.effects)
    assert found.baselines.number() == 2
    assert found.over_baselines
    for each in found.over_baselines:
        assert each.baselines == (str(baseline), str(second_baseline))


def test_what_is_done_is_not_done_again_and_a_damaged_run_is_named(
    two: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    directory = two.parent / "sweep"
    before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert clip_hba("sweep", "resume", two).code == 0
    assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
    shutil.copytree(directory, tmp_path / "sweep")
    own = tmp_path / "sweep.yaml"
    own.write_text(two.read_text().replace(str(directory), str(tmp_path / "sweep")))
    (_, plan) = read_sweep(own).plans
    name = plan.runs()[0].name
    shutil.rmtree(plan.path(name))
    outcome = clip_hba("sweep", "table", own)
    assert outcome.code == 1, outcome.output
    assert "13 of 14 runs are done" in outcome.output
    assert name not in {row["run"] for row in table(tmp_path / "sweep")}
    outcome = clip_hba("sweep", "verify", two, "--sample", 1)
    assert outcome.code == 0, outcome.output
    assert "1 of 1 sampled epochs are reproducible" in outcome.output


def test_the_report_shows_what_that_of_several_sweeps_shows(two: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    outcome = clip_hba("report", two, "--out", tmp_path / "report")
    assert outcome.code == 0, outcome.output
    index = (tmp_path / "report/index.html").read_text()
    assert "Sweep sweep of 2 baselines" in index
    assert "The baseline is the random unit" in index
    assert "The same perturbations of several baselines: what they did in all of them." in index
    for number, plan in enumerate(read_sweep(two).plans, start=1):
        page = (tmp_path / f"report/sweep-{number}.html").read_text()
        assert f"Sweep sweep, {plan.prefix[:-1]}" in page
        assert "1 of 1 controls are equal to the baseline to the last bit" in page


def test_a_task_of_a_job_array_is_of_the_baseline_that_its_runs_are_of(
    baseline: Path, second_baseline: Path, requeued: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    slurm = {"chains_per_task": 1}
    file = write_sweep(tmp_path, [baseline, second_baseline], epochs=[4], kinds=[], slurm=slurm)
    outcome = clip_hba("sweep", "run", file, "--engine", "slurm")
    assert outcome.code == 0, outcome.output
    assert "2 tasks, 2 chains, 2 runs" in outcome.output
    outcome = clip_hba("sweep", "task", tmp_path / "sweep/slurm/1", "--index", 1)
    assert outcome.code == 0, outcome.output
    (first, second) = read_sweep(file).plans
    assert not first.path(first.runs()[0].name).exists()
    forked = RunDirectory(second.path(second.runs()[0].name))
    assert forked.read_environment()["parent"]["run"] == str(second_baseline)
    assert forked.newest_epoch() == 4
