"""The runs of a sweep in one process: data and backbone are read once, a change of them is noticed, bits stay."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys, standin_backbone_directory
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run import assembly
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.life import run_behavioral_training
from clip_hba_behavior.sweep import work
from clip_hba_behavior.sweep.finished import recall
from clip_hba_behavior.sweep.plan import Plan, make_plan, read_sweep_file
from clip_hba_behavior.training.inputs import LazyBackbone, load_inputs
from sweep_tools import write_sweep

ALIKE = ("steps.jsonl", "training_res.csv", "dora_params")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The directories of images that are read, an hour after the files were written as the clock has it."""
    now, found = time.time_ns, []

    def load(config: Any, *arguments: Any) -> Any:
        found.append(Path(str(config.img_dir)))
        return load_inputs(config, *arguments)

    monkeypatch.setattr(time, "time_ns", lambda: now() + 3600 * 10**9)
    monkeypatch.setattr(assembly, "load_inputs", load)
    monkeypatch.setattr(work, "_KEPT", Kept())
    return found


@pytest.fixture
def plan(standin_data: Path, tmp_path: Path) -> Plan:
    """Forks of a baseline whose data a test may change."""
    data = shutil.copytree(standin_data, tmp_path / "data")
    keys = {**data_keys(data), "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu", "epochs": 2}
    run_behavioral_training({**keys, "batch_size": 16, "run_dir": tmp_path / "baseline"})
    return make_plan(read_sweep_file(write_sweep(tmp_path, tmp_path / "baseline", epochs=[1, 2], lengths=[1])))


def _bytes(run: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(run)): path.read_bytes()
        for name in ALIKE
        for path in sorted([run / name, *(run / name).glob("*")])
        if path.is_file()
    }


def test_data_and_backbone_are_read_once_and_no_bit_depends_on_it(
    plan: Plan, loads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = plan.runs()
    assert {work.execute(plan, run).state for run in runs} == {"done"}
    assert len(loads) == 1
    together = {run.name: _bytes(plan.path(run.name)) for run in runs}
    shutil.rmtree(plan.directory)
    for run in runs:
        monkeypatch.setattr(work, "_KEPT", Kept())
        assert work.execute(plan, run).state == "done"
    assert len(loads) == 1 + len(runs)
    assert {run.name: _bytes(plan.path(run.name)) for run in runs} == together
    assert all(together.values())


@pytest.mark.parametrize("what", ["images/drawn_0003.png", "annotations.csv"])
def test_data_that_change_under_a_running_worker_are_noticed(what: str, plan: Plan, loads: list[Path]) -> None:
    first, second, *_ = plan.runs()
    assert work.execute(plan, first).state == "done"
    changed = Path(str(loads[0])).parent / what
    if changed.suffix == ".png":
        shutil.copyfile(changed.with_name("drawn_0004.png"), changed)
    else:
        lines = changed.read_text().splitlines(keepends=True)
        changed.write_text("".join([lines[0], lines[1].rpartition(",")[0] + ",9.5\n", *lines[2:]]))
    status = work.execute(plan, second)
    assert status.state == "failed"
    assert "cannot be continued on other data or weights" in status.detail
    assert f"the digest of the {'images' if changed.suffix == '.png' else 'targets'}" in status.detail


def test_a_backbone_that_is_loaded_again_must_be_the_one_that_was_digested(tmp_path: Path) -> None:
    """It is dropped once the features are cached; a later run of the process may need it for noise images."""
    directory = shutil.copytree(standin_backbone_directory(), tmp_path / "backbone")
    backbone = LazyBackbone(make_config({"backbone": str(directory)}), torch.device("cpu"))
    digest = backbone.digest()
    backbone.drop()
    assert backbone.get().digest() == digest
    backbone.drop()
    file = directory / "model.safetensors"
    weights = load_file(file)
    weights["logit_scale"] += 1
    save_file(weights, file)
    with pytest.raises(
        BadInputError, match=f"changed since they were first read\n  found:.*\n  expected: {digest}"
    ):
        backbone.get()


def test_a_run_whose_note_cannot_be_written_is_done(plan: Plan) -> None:
    plan.directory.mkdir()
    (plan.directory / "finished").write_text("in the place of the notes' directory")
    run = plan.runs()[0]
    assert work.execute(plan, run).state == "done"
    assert recall(plan, run) is None


def test_what_a_finished_run_recorded_is_kept_until_a_file_of_it_or_the_plan_changes(plan: Plan) -> None:
    run = plan.runs()[0]
    assert recall(plan, run) is None
    assert work.execute(plan, run).state == "done"
    kept = recall(plan, run)
    assert kept is not None
    assert (kept.epoch, sorted(kept.results)) == (2, [1, 2] if run.epoch == 1 else [2])
    note = plan.directory / "finished" / f"{run.name}.json"
    text = note.read_text()
    note.write_text(text.replace('"epoch": 2', '"epoch": 1'))
    assert recall(plan, run) is None, "a damaged note counts as none"
    note.write_text(text)
    assert recall(plan, run) == kept

    for name in ("config.yaml", "environment.json", "steps.jsonl", "training_res.csv"):
        path = plan.path(run.name) / name
        content = path.read_bytes()
        path.write_bytes(content)
        assert recall(plan, run) is None, name
        assert work.execute(plan, run).state == "done"
        assert recall(plan, run) == kept

    other = write_sweep(plan.directory.parent, plan.baseline, epochs=[1, 2], lengths=[1], settings={"lr": 0.1})
    assert recall(make_plan(read_sweep_file(other)), run) is None
