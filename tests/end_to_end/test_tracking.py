"""`tracking: tensorboard`: each point once, whatever happened to the run; and the run as it would be without."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.cli import main
from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run import event_file
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.life import run_behavioral_training
from fresh_process import Outcome
from run_tools import differences, trained, write_config
from tracker_tools import Watching, recorded, served

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


@pytest.fixture(scope="module")
def keys(standin_data: Path) -> dict[str, Any]:
    small = {"num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}
    return {**data_keys(standin_data), **small, "epochs": 4, "batch_size": 8, "dora_dropout": 0.1}


@pytest.fixture(scope="module")
def plain(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs of six steps that is not tracked."""
    directory = tmp_path_factory.mktemp("plain")

    def clip_hba(*arguments: object) -> Outcome:
        words = [str(each) for each in arguments]
        return fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")

    return trained(clip_hba, directory, keys, "plain")


def at_step(arguments: list[str], epoch: int, step: int, act: Callable[[Path], None], run: Path) -> None:
    """Run a command line as this process, and do something once a step is on record, and a point of it written."""
    from clip_hba_behavior.reproducibility.record.protocol import Event, StepDone
    from clip_hba_behavior.run.tracking import Tracker

    record = Tracker.record

    def acting(self: Tracker, event: Event) -> None:
        record(self, event)
        if isinstance(event, StepDone) and (event.epoch, event.step) == (epoch, step):
            act(run)

    Tracker.record = acting  # type: ignore[method-assign]
    fresh_process.clip_hba(arguments)


def kill(run: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def remove_folder(run: Path) -> None:
    shutil.rmtree(run / "tensorboard")


def fill_disk(run: Path) -> None:
    """Let the event file be one on a full disk."""
    (event,) = (run / "tensorboard").iterdir()
    for each in Path("/proc/self/fd").iterdir():
        if each.is_symlink() and os.path.realpath(each) == str(event.resolve()):
            full = os.open("/dev/full", os.O_WRONLY)
            os.dup2(full, int(each.name))


def test_after_two_kills_and_resumes_each_point_is_seen_once(
    keys: dict[str, Any], plain: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    config, run = write_config(tmp_path / "run.yaml", keys, tracking="tensorboard"), tmp_path / "run"
    output = tmp_path / "output.txt"
    words = ["train", str(config), "--run-dir", str(run)]
    watching = []
    for epoch, step in ((2, 3), (3, 5)):
        outcome = fresh_process.call(at_step, words, epoch, step, kill, run, output=output)
        assert outcome.code == -signal.SIGKILL, outcome.output
        watching.append(Watching(run / "tensorboard"))  # stays open from here on
        for each in watching:
            assert each.both() == [recorded(run)] * 2
        words = ["resume", str(run)]
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output

    expected = recorded(plain)
    assert {name: len(found) for name, found in expected.items()} == {
        **dict.fromkeys(("loss/train", "loss/test", "rsa/rho"), 4),
        "loss/step": 24,
    }
    for each in (*watching, Watching(run / "tensorboard")):
        assert each.both() == [expected] * 2
    assert served(run, tmp_path / "port") == {"tensorboard": expected}
    assert differences(plain, run) == []

    written = sorted((run / "tensorboard").iterdir())
    assert [each.stat().st_size > 0 for each in written] == [False, False, True]
    for _ in range(2):  # made of the record it is the same file
        outcome = clip_hba("publish", run, "--to", "tensorboard")
        assert outcome.code == 0, outcome.output
        assert sorted((run / "tensorboard").iterdir()) == written
    outcome = clip_hba("publish", plain, "--to", "tensorboard", "--out", tmp_path / "published")
    assert outcome.code == 0, outcome.output
    (published,) = (tmp_path / "published").iterdir()
    assert published.read_bytes() == written[-1].read_bytes()


def test_after_an_accepted_mismatch_only_the_new_points_are_seen(
    keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    run = trained(clip_hba, tmp_path, keys, epochs=3, tracking="tensorboard")
    watching = Watching(run / "tensorboard")
    assert watching.both() == [recorded(run)] * 2
    (run / "dora_params" / "epoch3_dora_params.pth").unlink()
    ledger = run / "steps.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    lines[15] = lines[15].replace('"loss": ', '"loss": 1')  # epoch 3, step 2
    ledger.write_text("".join(lines))
    outcome = clip_hba("resume", run)
    assert outcome.code == 1, outcome.output
    assert watching.both() == [recorded(run)] * 2
    outcome = clip_hba("publish", run, "--to", "tensorboard", "--out", tmp_path / "published")
    assert outcome.code == 1, outcome.output
    assert "left out: " in outcome.output
    assert f"lines that it has still to repeat; go on with it: clip-hba resume {run}" in outcome.output
    outcome = clip_hba("resume", run, "--accept-mismatch", 3)
    assert outcome.code == 0, outcome.output
    found = recorded(run)
    assert len(found["loss/step"]) == 18
    assert [*watching.both(), *Watching(run / "tensorboard").both()] == [found] * 4


FAILURES = {
    "directory removed": (remove_folder, "No such file or directory"),
    "disk full": (fill_disk, "No space"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_told_once_and_neither_ends_the_run_nor_changes_its_bits(
    failure: str, keys: dict[str, Any], plain: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    act, said = FAILURES[failure]
    config, run = write_config(tmp_path / "run.yaml", keys, tracking="tensorboard"), tmp_path / "run"
    words = ["train", str(config), "--run-dir", str(run)]
    outcome = fresh_process.call(at_step, words, 2, 3, act, run, output=tmp_path / "output.txt")
    assert outcome.code == 0, outcome.output
    for told in (outcome.output, (run / "training_log.txt").read_text()):
        assert told.count("No more points go to TensorBoard: ") == 1
        assert said in told
        assert f"to have them: clip-hba publish {run} --to tensorboard" in told
    assert differences(plain, run) == []
    assert clip_hba("publish", run, "--to", "tensorboard").code == 0
    assert Watching(run / "tensorboard").both() == [recorded(run)] * 2


def test_a_resume_may_begin_to_track_and_the_key_shapes_no_bit(
    keys: dict[str, Any], plain: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    run = trained(clip_hba, tmp_path, keys, epochs=3)
    assert not (run / "tensorboard").exists()
    (run / "tensorboard").mkdir()
    theirs = run / "tensorboard" / "theirs"
    theirs.touch()
    more = ("--set", "epochs=4", "--set", "tracking=tensorboard")
    outcome = clip_hba("resume", run, *more)
    assert outcome.code == 2, outcome.output
    assert f"{run / 'tensorboard'} cannot take a run's event files: it holds theirs" in outcome.output
    theirs.unlink()
    outcome = clip_hba("resume", run, *more)
    assert outcome.code == 0, outcome.output
    assert differences(plain, run) == []
    assert Watching(run / "tensorboard").both() == [recorded(plain)] * 2
    assert "tracking" not in RunDirectory(run).read_environment()["trajectory"]
    assert make_config({"tracking": "tensorboard"}).trajectory() == make_config({}).trajectory()


def test_where_tensorboard_is_not_installed_it_is_told_before_anything_is_done(
    keys: dict[str, Any],
    plain: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(event_file, "_PACKAGE", "tensorboard_of_nobody")
    config, run = write_config(tmp_path / "run.yaml", keys, tracking="tensorboard"), tmp_path / "run"
    before = sorted(plain.iterdir())
    new = ["--run-dir", str(run)]
    asked = "tracking=tensorboard"
    for words in (
        ["train", str(config), *new],
        ["resume", str(plain), "--set", asked],
        ["resume", str(plain), "--from-epoch", "2", "--set", asked, *new],
        ["fork", str(plain), "--at-epoch", "3", "--perturb", "none", "--set", asked, *new],
        ["publish", str(plain), "--to", "tensorboard"],
    ):
        assert main(words) == 2, words
        said = capsys.readouterr().err
        assert "tensorboard needs the package tensorboard, which is not installed" in said
        assert "pip install 'clip-hba-behavior[tensorboard]'" in said
    with pytest.raises(BadInputError, match="is not installed"):
        run_behavioral_training({**keys, "tracking": "tensorboard", "run_dir": str(run)})
    assert not run.exists()
    assert sorted(plain.iterdir()) == before
