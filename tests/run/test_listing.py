"""Lists of runs and caches: one that is damaged is listed with its fault, and hides no other."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fresh_process import Outcome

ClipHba = Callable[..., Outcome]
OLD_RUN = Path(__file__).parents[1] / "old_runs" / "plain"
END = '{"epoch": %d, "step": "end", "metrics": {"test_loss": %r}, "state_digest": "0", "state": {}}\n'


def loop(path: Path, record: str = "{}") -> Path:
    """As much of the run of a user's own loop as is looked at."""
    (path / "checkpoints").mkdir(parents=True)
    (path / "run.json").write_text(record)
    (path / "steps.jsonl").write_text(END % (1, 0.5) + END % (2, 0.25))
    for epoch in range(3):
        (path / f"checkpoints/epoch{epoch}.pth").touch()
    return path


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("{", "run.json cannot be read: "),
        ("[1]", "run.json is damaged: found [1], expected the record of a run"),
        ('{"parent": {}}', "its record of its parent is damaged: {}"),
        ('{"parent": [1]}', "its record of its parent is damaged: [1]"),
        ("[" * 100_000, "run.json cannot be read: "),
    ],
    ids=["torn", "a list", "parent without run", "parent a list", "deep"],
)
def test_a_damaged_record_of_a_loop_is_listed_with_its_fault(
    record: str, fault: str, clip_hba: ClipHba, tmp_path: Path
) -> None:
    loop(tmp_path / "runs/bad", record)
    loop(tmp_path / "runs/good")
    outcome = clip_hba("runs", tmp_path / "runs")
    assert outcome.code == 0, outcome.output
    assert fault in outcome.output
    states = [line.split()[:3] for line in outcome.output.splitlines()[1:3]]
    assert states == [["bad", "(loop)", "damaged"], ["good", "(loop)", "at"]]
    (tmp_path / "cache").mkdir()
    outcome = clip_hba("cache", "list", "--cache-dir", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert (outcome.code, outcome.output) == (0, "0 caches, 0.0 MB\n")


def test_a_run_and_a_cache_that_are_damaged_are_named_with_the_caches(clip_hba: ClipHba, tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "runs/bad"))
    environment = json.loads((run / "environment.json").read_text())
    (run / "environment.json").write_text(json.dumps(environment | {"digests": 3}))
    (tmp_path / "cache/torn").mkdir(parents=True)
    (tmp_path / "cache/torn/key.json").write_text("[1]")
    outcome = clip_hba("cache", "list", "--cache-dir", tmp_path / "cache", "--runs", tmp_path / "runs")
    assert outcome.code == 0, outcome.output
    assert f"{run}: not known which caches it uses: {run}/environment.json is damaged;" in outcome.output
    assert f"{tmp_path}/cache/torn: key.json is damaged: found [1]" in outcome.output
    assert "0 caches, 0.0 MB" in outcome.output


def test_the_test_loss_of_a_loop_is_listed_where_it_records_one(clip_hba: ClipHba, tmp_path: Path) -> None:
    loop(tmp_path / "runs/digits", '{"parent": {"run": "/elsewhere", "epoch": 1}}')
    (listed,) = json.loads(clip_hba("runs", tmp_path / "runs", "--json").output)
    assert (listed["best_test_loss"], listed["epoch"], listed["parent"]) == (0.25, 2, "/elsewhere, epoch 1")


@pytest.mark.parametrize("within", ["", "dora_params"])
def test_inspect_shows_a_run(within: str, clip_hba: ClipHba, tmp_path: Path) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    config = run / "config.yaml"  # recorded without the paths of its machine
    config.write_text(re.sub(r"\{[A-Z]+\}", "/elsewhere", config.read_text()))
    environment = json.loads((run / "environment.json").read_text())
    changed = {"parent": {"run": "/base", "epoch": 4}, "drift": ["torch: 1 became 2", "threads: 1 became 3"]}
    (run / "environment.json").write_text(json.dumps(environment | changed))
    (run / "forks.txt").write_text("2 /forks/a\n3 /forks/b\n")
    outcome = clip_hba("inspect", run / within)
    assert outcome.code == 0, outcome.output
    best = json.loads((run / "best.json").read_text())
    for line in (
        f"{run}: a run in native arithmetic",
        "  state   finished",
        "  epochs  3/3",
        f"  best    epoch {best['epoch']}, test loss {best['test_loss']!r}, {run / best['checkpoint']}",
        "  parent  /base, epoch 4",
        "  forks   from epoch 2 /forks/a",
        "          from epoch 3 /forks/b",
        "  drift   torch: 1 became 2",
        "          threads: 1 became 3",
    ):
        assert line in outcome.output.splitlines()


def test_inspect_shows_the_run_of_a_loop_and_refuses_what_is_no_run(clip_hba: ClipHba, tmp_path: Path) -> None:
    outcome = clip_hba("inspect", loop(tmp_path / "runs/digits", '{"drift": ["torch: 1 became 2"]}'))
    assert outcome.code == 0, outcome.output
    assert "a run of a training loop of your own" in outcome.output
    assert "  best    test_loss 0.25\n" in outcome.output
    assert "  drift   torch: 1 became 2\n" in outcome.output
    (tmp_path / "empty").mkdir()
    for path, message in (("empty", "there is no run in"), ("runs", f"clip-hba runs {tmp_path / 'runs'}")):
        outcome = clip_hba("inspect", tmp_path / path)
        assert outcome.code == 2, outcome.output
        assert message in outcome.output


def test_a_run_without_best_json_is_shown_with_the_command_that_writes_it(
    clip_hba: ClipHba, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    (run / "best.json").unlink()
    outcome = clip_hba("inspect", run)
    assert outcome.code == 0, outcome.output
    assert f"clip-hba resume {run}" in outcome.output


def test_a_run_is_listed_with_its_arithmetic_and_one_of_a_later_definition_with_what_reads_it(
    clip_hba: ClipHba, tmp_path: Path
) -> None:
    for name, arithmetic in (("exact", "portable"), ("later", "portable 2"), ("plain", "native")):
        run = Path(shutil.copytree(OLD_RUN, tmp_path / "runs" / name))
        config = re.sub(r"\{[A-Z]+\}", "/elsewhere", (run / "config.yaml").read_text())
        (run / "config.yaml").write_text(f"{config}\narithmetic: {arithmetic}\n")
    exact, later, plain = json.loads(clip_hba("runs", tmp_path / "runs", "--json").output)
    assert (exact["arithmetic"], plain["arithmetic"], later["arithmetic"]) == ("portable 1", "native", "")
    assert "portable 2" in later["detail"]
    assert "use the version that made the run" in later["detail"]
    table = clip_hba("runs", tmp_path / "runs").output
    assert "arithmetic" in table.splitlines()[0]
    assert "portable 1" in table.splitlines()[1]
