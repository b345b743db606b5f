"""The settings of a sweep: read once, as a configuration is."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_hba_behavior.config import make_config
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.sweep.plan import make_plan, read_sweep_file
from clip_hba_behavior.sweep.status import recorded_config_of
from fresh_process import Outcome
from sweep_tools import epochs_on_disk, table, write_sweep

ClipHba = Callable[..., Outcome]


def test_a_number_in_scientific_notation_is_the_number_that_trained(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, epochs=[3], kinds=["random_target"], lengths=[1])
    cache = f"{tmp_path}/./cache"  # a path, too, is recorded in another spelling
    sweep.write_text(sweep.read_text() + f"settings: {{weight_decay: 1e-2, cache_dir: {cache}}}\n")
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 0, outcome.output
    assert "2 done" in outcome.output


def test_settings_may_name_what_says_nothing_for_some_of_the_kinds(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    kinds = ["random_target", "label_shuffle", "image_noise", "uniform_images"]
    settings = {"perturb_distribution": "target", "perturb_rule": "philox"}
    sweep = write_sweep(tmp_path, baseline, epochs=[4], kinds=kinds, lengths=[1], settings=settings)
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    assert "5 of 5 runs are done" in outcome.output
    for name in epochs_on_disk(tmp_path / "sweep"):
        run = RunDirectory(tmp_path / "sweep/runs" / name)
        has_effect = "random_target" in name
        assert run.read_config().perturb_distribution == ("target" if has_effect else "normal")
        log = run.log_file.read_text()
        assert log.count("so left out: perturb_distribution target") == (0 if has_effect else 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_dcay": 0.1}, "weight_dcay: no such key; did you mean weight_decay?"),
        ({"weight_decay": "much"}, "weight_decay: found 'much', expected a valid number"),
        ({"fork_early_stopping": "on"}, "fork_early_stopping: found 'on'"),
        ({"epochs": 3}, "epochs: the sweep sets this itself"),
        ({"arithmetic": "portable"}, "arithmetic: the sweep sets this itself"),
        ({"perturb_seed": 3}, "perturb_seed: the sweep sets this itself"),
    ],
    ids=lambda each: next(iter(each)) if isinstance(each, dict) else "",
)
@pytest.mark.parametrize("command", ["plan", "run"])
def test_wrong_settings_are_refused_with_their_name_when_the_file_is_read(
    command: str, settings: dict[str, Any], message: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline, settings=settings)
    outcome = clip_hba("sweep", command, sweep)
    assert outcome.code == 2, outcome.output
    assert message in outcome.output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.system
@pytest.mark.parametrize("keep", ["last 1", "best"])
def test_a_shorter_run_keeps_the_state_that_a_longer_one_begins_with(
    keep: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    keys = {"epochs": [2], "kinds": ["random_target"], "lengths": [1, 2], "controls": False}
    sweep = write_sweep(tmp_path, baseline, settings={"keep_checkpoints": keep}, **keys)
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    kept = epochs_on_disk(tmp_path / "sweep")["e002_random_target_l1_s0"]
    assert 2 in kept
    assert len(kept) < 4  # the policy holds for the others
    everything = write_sweep(tmp_path, baseline, "everything", **keys)
    assert clip_hba("sweep", "run", everything).code == 0
    assert table(tmp_path / "sweep") == table(tmp_path / "everything")


def test_the_file_of_a_sweep_may_give_settings_an_old_key(baseline: Path, tmp_path: Path) -> None:
    from clip_hba_behavior.sweep.plan import read_sweep_file

    file = read_sweep_file(write_sweep(tmp_path, baseline, settings={"cuda": 2, "lr": "3e-4"}))
    assert file.settings == {"device": "cpu", "lr": 3e-4}
    assert yaml.safe_load(yaml.safe_dump(file.model_dump()))["settings"] == file.settings


@pytest.fixture
def portable(own_baseline: Path) -> Path:
    """The baseline, as if it had been trained in portable arithmetic."""
    config = own_baseline / "config.yaml"
    config.write_text(config.read_text().replace("arithmetic: native", "arithmetic: portable 1"))
    return own_baseline


def test_settings_that_do_not_go_with_the_baselines_arithmetic_are_refused_before_anything_runs(
    portable: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba("sweep", "run", write_sweep(tmp_path, portable, settings={"perturb_rule": "earlier"}))
    assert outcome.code == 2, outcome.output
    assert "set perturb_rule: philox" in outcome.output
    assert not (tmp_path / "sweep").exists()


def test_a_key_that_shapes_nothing_in_portable_arithmetic_makes_no_other_fork(
    portable: Path, tmp_path: Path
) -> None:
    settings = {"num_threads": 1, "weight_decay": 0.1}
    plan = make_plan(read_sweep_file(write_sweep(tmp_path, portable, settings=settings)))
    run = plan.runs()[-1]
    directory = RunDirectory(plan.path(run.name))
    directory.path.mkdir(parents=True)
    directory.write_config(resolve_config(make_config(plan.config_of(run).model_dump() | {"num_threads": 2})))
    assert recorded_config_of(plan, run, directory).num_threads == 2
    directory.config_file.unlink()
    directory.write_config(resolve_config(make_config(plan.config_of(run).model_dump() | {"weight_decay": 0.2})))
    with pytest.raises(BadInputError, match="holds another fork than the sweep's\n  weight_decay"):
        recorded_config_of(plan, run, directory)


def test_a_fork_that_recorded_the_earlier_spelling_of_precision_is_the_sweeps(
    own_baseline: Path, tmp_path: Path
) -> None:
    plan = make_plan(read_sweep_file(write_sweep(tmp_path, own_baseline, settings={"tf32": True})))
    run = plan.runs()[-1]
    directory = RunDirectory(plan.path(run.name))
    directory.path.mkdir(parents=True)
    directory.write_config(resolve_config(plan.config_of(run)))
    text = directory.config_file.read_text()
    assert "\nprecision: tf32\n" in text
    directory.config_file.write_text(text.replace("\nprecision: tf32\n", "\ntf32: true\n"))
    assert recorded_config_of(plan, run, directory).precision == "tf32"
