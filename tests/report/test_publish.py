"""`clip-hba publish --to tensorboard`: of runs, of loops with `track`, of sweeps."""

import shutil
from pathlib import Path

import pytest

from clip_hba_behavior.cli import main
from clip_hba_behavior.reproducibility.record.lease import hold
from old_run_tools import restored
from sweep_tools import write_sweep
from tracked_loop import NUM_STEPS
from tracked_loop import main as train_loop
from tracker_tools import Watching, provided_hyperparameters, recorded, served


@pytest.fixture
def mine(run: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may write into."""
    return Path(shutil.copytree(run, tmp_path / "mine"))


def publish(*words: object) -> int:
    return main(["publish", *map(str, words), "--to", "tensorboard"])


def test_a_run_is_published_into_its_own_folder_as_often_as_one_likes(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in mine.rglob("*") if path.is_file()}
    assert publish(mine / "dora_params") == 0
    expected = recorded(mine)
    said = capsys.readouterr().out
    assert f"Published {mine}, {sum(map(len, expected.values()))} points" in said
    assert f"Look at them: tensorboard --logdir {mine}\n" in said  # not the dora_params that was named
    files = sorted((mine / "tensorboard").iterdir())
    assert publish(mine) == 0
    assert sorted((mine / "tensorboard").iterdir()) == files
    assert Watching(mine / "tensorboard").both() == [expected] * 2
    assert {path: path.read_bytes() for path in before} == before
    assert publish(mine, "--out", tmp_path / "out") == 0
    assert (tmp_path / "out" / files[0].name).read_bytes() == files[0].read_bytes()
    table = provided_hyperparameters(mine / "tensorboard")
    assert table["lr"] == 1e-3
    assert table["rank"] == 2
    assert table["batch_order"] == "earlier"
    assert "run_dir" not in table


def test_a_run_of_the_first_version_is_published(tmp_path: Path) -> None:
    run = restored("plain", tmp_path, tmp_path / "data", tmp_path / "cache")
    assert publish(run) == 0
    assert Watching(run / "tensorboard").both() == [recorded(run)] * 2


def test_what_cannot_be_published_is_refused_and_nothing_is_written(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").mkdir()
    config = mine / "config.yaml"
    before = sorted(tmp_path.rglob("*"))

    def refused(text: str, *words: object) -> None:
        assert main(["publish", *map(str, words)]) == 2
        assert text in capsys.readouterr().err
        assert sorted(tmp_path.rglob("*")) == before

    refused("--to wandb: expected tensorboard", mine, "--to", "wandb")
    to = ("--to", "tensorboard")
    refused("taken is there already, and is not replaced", mine, *to, "--out", tmp_path / "taken")
    refused(f"there is no run in {tmp_path / 'taken'}", tmp_path / "taken", *to)
    refused(f"list the runs below it: clip-hba runs {mine.parent}", mine.parent, *to)
    untracked = config.read_text()
    assert "tracking: null" in untracked
    config.write_text(untracked.replace("tracking: null", "tracking: tensorboard"))
    with hold(mine):
        before = sorted(tmp_path.rglob("*"))
        refused("is being written by the run itself, which has tracking: tensorboard", mine, *to)
        config.write_text(untracked)  # the twin: of a run that trains without, all that it has so far
        assert publish(mine) == 0
    assert Watching(mine / "tensorboard").accumulated() == recorded(mine)
    (mine / "tensorboard" / "notes.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    refused("cannot take a run's event files: it holds notes.txt", mine, *to)


def test_damaged_lines_are_left_out_by_name(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = recorded(mine)
    results, ledger = mine / "training_res.csv", mine / "steps.jsonl"
    rows = results.read_text().splitlines(keepends=True)
    results.write_text("".join([*rows[:2], "x" + rows[2], *rows[3:]]))
    ledger.write_text(ledger.read_text()[:-20])  # the end of the last epoch's line
    assert publish(mine) == 1
    said = capsys.readouterr().err
    assert f"left out: {mine}: training_res.csv, line 3: not a valid line of the results" in said
    assert "steps.jsonl: its last line was cut short" in said
    assert Watching(mine / "tensorboard").accumulated() == {
        name: points if name == "loss/step" else [points[0], points[2]] for name, points in expected.items()
    }


def test_a_run_that_recorded_nothing_yet_says_so(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("training_res.csv", "steps.jsonl"):
        (mine / name).unlink()
    assert publish(mine) == 2
    assert f"{mine} has recorded nothing yet" in capsys.readouterr().err
    assert not (mine / "tensorboard").exists()


def test_a_loop_of_ones_own_is_published_under_the_names_of_its_metrics(tmp_path: Path) -> None:
    run = train_loop(directory=tmp_path / "loop", epochs=3)
    assert publish(tmp_path / "loop") == 0
    found = Watching(tmp_path / "loop/tensorboard").accumulated()
    assert {name: [step for step, _ in points] for name, points in found.items()} == {
        "loss/step": list(range(1, 3 * NUM_STEPS + 1)),
        "epoch/train_loss": [1, 2, 3],
        "epoch/test": [1, 2, 3],
    }
    assert found["epoch/test"][-1][1] == pytest.approx(run.metrics["test"], rel=1e-6)
    train_loop(directory=tmp_path / "loop", epochs=4)  # the folder is not in the way of the loop
    assert provided_hyperparameters(tmp_path / "loop/tensorboard") == {"lr": 1e-2}


def test_each_run_of_a_sweep_is_published_under_its_name(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"epochs": [2, 3], "kinds": [], "controls": True}
    sweep = write_sweep(tmp_path, mine, **keys)
    assert publish(sweep) == 2
    said = capsys.readouterr().err
    assert "the sweep has not begun" in said
    for name in ("e002_none", "e003_none"):
        shutil.copytree(mine, tmp_path / "sweep/runs" / name)
    (tmp_path / "sweep/runs/e003_none/training_res.csv").unlink()
    (tmp_path / "sweep/sweep.yaml").write_text(sweep.read_text())
    assert publish(tmp_path / "sweep", "--out", tmp_path / "out") == 1
    assert f"left out: {tmp_path / 'sweep/runs/e003_none'}: it has not begun" in capsys.readouterr().err
    assert served(tmp_path / "out", tmp_path / "port") == {"e002_none": recorded(mine)}
    assert publish(sweep) == 1
    assert (
        "Look at them: tensorboard --logdir " + str(tmp_path / "sweep/runs/e002_none") in capsys.readouterr().out
    )
    assert served(tmp_path / "sweep", tmp_path / "port2") == {"runs/e002_none/tensorboard": recorded(mine)}


def test_a_run_of_a_sweep_that_has_just_begun_keeps_none_of_the_others(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = write_sweep(tmp_path, mine, epochs=[2, 3], kinds=[], controls=True)
    for name in ("e002_none", "e003_none"):
        shutil.copytree(mine, tmp_path / "sweep/runs" / name)
    begun = tmp_path / "sweep/runs/e002_none"
    (begun / "steps.jsonl").write_text("")
    (begun / "training_res.csv").write_text((begun / "training_res.csv").read_text().splitlines()[0] + "\n")
    assert publish(sweep, "--out", tmp_path / "out") == 1
    assert f"left out: {begun}: it has recorded nothing yet" in capsys.readouterr().err
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["e003_none"]
    (tmp_path / "sweep/runs/e003_none/config.yaml").write_text("epochs: none\n")
    (begun / "steps.jsonl").write_bytes((mine / "steps.jsonl").read_bytes())
    assert publish(sweep) == 2  # and nothing was written, as with any other wrong input
    assert not (begun / "tensorboard").exists()
