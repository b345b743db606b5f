"""States that `keep_checkpoints` removed, made again: the bytes of those that were kept, or none."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.life import resume, start, start_fork
from clip_hba_behavior.verification.missing_states import make_again, put_back
from clip_hba_behavior.verification.state_request import missing_state
from fresh_process import Outcome
from run_tools import differences

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]
LAST = 6


@pytest.fixture(scope="module")
def runs(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that differ in what they kept: `all`, with the states within epochs in `steps`, and `best`."""
    directory = tmp_path_factory.mktemp("runs")
    keys = {**data_keys(standin_data), "epochs": LAST, "batch_size": 16, "num_threads": 1, "rank": 4, "lr": 1e-3}
    keys |= {"device": "cpu", "dora_dropout": 0.1, "checkpoint_every_steps": 1, "lr_schedule": "cosine"}

    def keep_steps(state: Any) -> None:  # called before the run removes them
        shutil.copytree(directory / "all/step_checkpoints", directory / "steps", dirs_exist_ok=True)

    start(make_config(keys | {"run_dir": str(directory / "all")}), keep_steps)
    start(make_config(keys | {"run_dir": str(directory / "best"), "keep_checkpoints": "best"}))
    assert list(list_checkpoints(directory / "all/dora_params")) == list(range(LAST + 1))
    assert not {2, 3, 4} & list_checkpoints(directory / "best/dora_params").keys()
    return directory


@pytest.fixture
def thinned(runs: Path, tmp_path: Path) -> Path:
    """A copy of the run that removed states, which a test may change."""
    return _copy(runs / "best", tmp_path / "best")


def _copy(run: Path, copy: Path) -> Path:
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(copy)))
    return copy


def _record_another_digest(run: Path, epoch: int) -> str:
    """Forge the state digest of an epoch in the ledger; return the one that was there."""
    ledger = run / "steps.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    (end,) = [each for each in lines if each["epoch"] == epoch and each["step"] == "end"]
    true = str(end["state_digest"])
    end["state_digest"] = "0" * 64
    ledger.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return true


def test_every_state_after_an_epoch_made_again_has_the_bytes_of_the_one_that_was_kept(
    runs: Path, tmp_path: Path
) -> None:
    for epoch in range(1, LAST + 1):
        made = tmp_path / f"{epoch}.pth"
        make_again(missing_state(runs / "best", epoch, out=made))
        assert made.read_bytes() == checkpoint_path(runs / "all/dora_params", epoch).read_bytes()


def test_states_within_an_epoch_made_again_have_the_bytes_of_those_that_were_kept(
    runs: Path, tmp_path: Path
) -> None:
    for epoch, step in ((1, 1), (4, 2), (LAST, 2)):
        name = f"epoch{epoch}_step{step}.pth"
        make_again(missing_state(runs / "best", epoch, step, tmp_path / name))
        assert (tmp_path / name).read_bytes() == (runs / "steps" / name).read_bytes()


def test_the_command_puts_a_state_into_its_run_which_removes_it_when_it_goes_on(
    thinned: Path, runs: Path, clip_hba: ClipHba
) -> None:
    outcome = clip_hba("state", thinned, "--epoch", 3)
    assert outcome.code == 0, outcome.output
    made = thinned / "dora_params/epoch3_dora_params.pth"
    assert (
        f"Making the state after epoch 3 of {thinned} again from epoch0_dora_params.pth: 3 epochs"
        in outcome.output
    )
    assert made.read_bytes() == (runs / "all/dora_params/epoch3_dora_params.pth").read_bytes()
    outcome = clip_hba("state", thinned, "--epoch", 3)
    assert outcome.code == 2
    assert f"{made} is there already, and is not replaced" in outcome.output
    outcome = clip_hba("state", thinned, "--epoch", 4, "--step", 2)
    assert outcome.code == 0, outcome.output
    assert "again from epoch3_dora_params.pth: 1 epoch to train" in outcome.output
    step = thinned / "step_checkpoints/epoch4_step2.pth"
    assert step.read_bytes() == (runs / "steps/epoch4_step2.pth").read_bytes()
    resume(thinned)
    assert not made.exists()
    assert not step.exists()


@pytest.mark.parametrize(
    ("epoch", "step", "out", "message"),
    [
        (LAST + 1, None, None, f"--epoch {LAST + 1}: there is no state"),
        (4, 99, None, "--step 99: epoch 4 of"),
        (4, None, "none/state.pth", "none is no directory"),
        (4, None, "best", "is there already, and is not replaced"),
        (4, None, "dangling", "is there already, and is not replaced"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_trained(
    epoch: int, step: int | None, out: str | None, message: str, thinned: Path, tmp_path: Path
) -> None:
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(BadInputError, match=message):
        missing_state(thinned, epoch, step, None if out is None else tmp_path / out)


def test_a_run_without_its_first_checkpoint_is_told_what_is_missing(thinned: Path) -> None:
    for epoch, path in list_checkpoints(thinned / "dora_params").items():
        if epoch < LAST:
            path.unlink()
    with pytest.raises(BadInputError, match=f"of epoch {LAST}\n  expected: one of an earlier epoch"):
        missing_state(thinned, 2)


@pytest.mark.parametrize("epoch", [3, LAST])
def test_a_state_is_made_again_where_the_file_that_tells_its_origin_cannot_be_read(
    epoch: int, thinned: Path, runs: Path, tmp_path: Path, clip_hba: ClipHba
) -> None:
    """The run's next file, and its own."""
    for later, path in list_checkpoints(thinned / "dora_params").items():
        if later >= epoch:
            path.write_bytes(b"damaged")
    outcome = clip_hba("state", thinned, "--epoch", epoch, "--out", tmp_path / "made.pth")
    assert outcome.code == 0, outcome.output
    assert f"cannot be read: {thinned}/environment.json tells it" in outcome.output
    assert (tmp_path / "made.pth").read_bytes() == checkpoint_path(runs / "all/dora_params", epoch).read_bytes()


def test_another_state_than_the_ledgers_is_refused_with_both_digests(thinned: Path, clip_hba: ClipHba) -> None:
    true = _record_another_digest(thinned, 2)
    before = sorted(thinned.rglob("*"))
    fork = thinned.parent / "fork"
    for command in (
        ["state", thinned, "--epoch", 3],
        ["state", thinned, "--epoch", 2, "--step", 1],
        ["fork", thinned, "--at-epoch", 3, "--perturb", "none", "--run-dir", fork],
        ["resume", thinned, "--from-epoch", 2, "--run-dir", fork],
    ):
        outcome = clip_hba(*command)
        assert outcome.code == 1, outcome.output
        assert f"in steps.jsonl: {'0' * 64}" in outcome.output
        assert f"replayed:       {true}" in outcome.output
        assert sorted(thinned.rglob("*")) == before
        assert not fork.exists()
    outcome = clip_hba("verify", "checkpoints", thinned, "--epochs", "3")
    assert outcome.code == 1, outcome.output


def test_a_damaged_state_to_begin_with_and_changed_images_are_refused(thinned: Path, runs: Path) -> None:
    first = checkpoint_path(thinned / "dora_params", 0)
    content = bytearray(first.read_bytes())
    content[len(content) // 2] ^= 1
    first.write_bytes(content)
    with pytest.raises(BadInputError, match=r"no state to begin with: .*epoch0_dora_params"):
        make_again(missing_state(thinned, 1))
    shutil.copyfile(runs / "all/dora_params/epoch0_dora_params.pth", first)
    images = Path(str(RunDirectory(thinned).read_config().img_dir))
    data = Path(shutil.copytree(images.parent, thinned.parent / "data"))
    one, other = sorted((data / images.name).iterdir())[:2]
    shutil.copyfile(other, one)
    with pytest.raises(BadInputError, match="data or weights are not what the run was made with"):
        make_again(missing_state(thinned, 1), dict(data_keys(data)))
    assert not checkpoint_path(thinned / "dora_params", 1).exists()


def test_a_fork_from_a_state_that_was_not_kept_is_the_fork_from_the_one_that_was(
    thinned: Path, runs: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    options = ["--at-epoch", 4, "--perturb", "label_shuffle", "--set", "keep_checkpoints=all"]
    outcome = clip_hba("fork", thinned, *options, "--run-dir", tmp_path / "fork")
    assert outcome.code == 0, outcome.output
    assert f"Making the state after epoch 3 of {thinned} again" in outcome.output
    start_fork(runs / "all", 4, {"perturb_type": "label_shuffle"}, tmp_path / "other")
    assert differences(tmp_path / "fork", tmp_path / "other") == []
    resume(thinned)
    assert 3 in list_checkpoints(thinned / "dora_params")  # a fork began with it
    # where two thinned runs differ is found with the states that neither kept
    outcome = clip_hba("diff", thinned, tmp_path / "fork")
    assert outcome.code == 1, outcome.output
    assert "epoch 4 replayed: it repeats the record" in outcome.output
    assert "there is no checkpoint" not in outcome.output


def test_a_run_is_continued_from_an_epoch_that_was_not_kept(
    thinned: Path, runs: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba(
        "resume", thinned, "--from-epoch", 2, "--run-dir", tmp_path / "on", "--set", "keep_checkpoints=all"
    )
    assert outcome.code == 0, outcome.output
    assert f"Making the state after epoch 2 of {thinned} again" in outcome.output
    for epoch, path in list_checkpoints(tmp_path / "on/dora_params").items():
        kept = checkpoint_path(runs / "all/dora_params", epoch)
        assert path.read_bytes() == kept.read_bytes() or epoch > 2  # later ones name what they were continued with
    assert (tmp_path / "on/steps.jsonl").read_bytes() == (runs / "all/steps.jsonl").read_bytes()


def test_epochs_without_a_state_before_them_are_verified(thinned: Path, clip_hba: ClipHba) -> None:
    before = sorted(thinned.rglob("*"))
    outcome = clip_hba("verify", "checkpoints", thinned, "--epochs", "4")
    assert outcome.code == 0, outcome.output
    assert "reproducible: 4 of 4 epochs" in outcome.output
    outcome = clip_hba("verify", "checkpoints", thinned, "--epochs", "4", "--steps", 2)
    assert outcome.code == 0, outcome.output
    assert "reproducible: the first 2 steps of 1 of 1 epochs" in outcome.output
    assert sorted(thinned.rglob("*")) == before


def test_a_state_that_was_lost_is_made_again_on_request_alone(
    runs: Path, tmp_path: Path, clip_hba: ClipHba
) -> None:
    run = _copy(runs / "all", tmp_path / "all")
    lost = checkpoint_path(run / "dora_params", 2)
    lost.unlink()
    put_back(lost)
    assert not lost.exists()
    outcome = clip_hba("fork", run, "--at-epoch", 3, "--perturb", "none", "--run-dir", tmp_path / "fork")
    assert outcome.code == 2, outcome.output
    assert f"or make it again: clip-hba state {run} --epoch 2" in outcome.output
    assert clip_hba("state", run, "--epoch", 2).code == 0
    assert lost.read_bytes() == checkpoint_path(runs / "all/dora_params", 2).read_bytes()


def test_a_state_is_put_back_where_the_data_are_now(
    thinned: Path, standin_data: Path, tmp_path: Path, clip_hba: ClipHba
) -> None:
    config, where = thinned / "config.yaml", tmp_path / "where.yaml"
    config.write_text(config.read_text().replace(str(standin_data), str(tmp_path / "gone")))
    where.write_text("".join(f"{key}: {value}\n" for key, value in data_keys(standin_data).items()))
    own = make_config(data_keys(standin_data) | {"lr": 5.0, "keep_checkpoints": "all"})
    put_back(checkpoint_path(thinned / "dora_params", 4), own)  # of its keys only those
    fork = ["fork", thinned, "--at-epoch", 3, "--epochs", 3, "--perturb", "none", "--run-dir", tmp_path / "fork"]
    outcome = clip_hba(*fork)
    assert outcome.code == 2, outcome.output
    assert "say where they are now: --config FILE" in outcome.output
    outcome = clip_hba(*fork, "--config", where)
    assert outcome.code == 0, outcome.output
    assert checkpoint_path(thinned / "dora_params", 2).exists()


def test_a_fork_from_before_an_allowed_change_goes_on_as_its_baseline_did_then(
    standin_data: Path, tmp_path: Path
) -> None:
    keys = {**data_keys(standin_data), "batch_size": 16, "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}
    run, fork = tmp_path / "run", tmp_path / "fork"
    start(make_config({**keys, "epochs": 3, "keep_checkpoints": "every 3", "run_dir": str(run)}))
    resume(run, {"epochs": 4, "lr": 1e-2}, allow=["lr"])
    assert list(list_checkpoints(run / "dora_params")) == [0, 3, 4]
    put_back(checkpoint_path(run / "dora_params", 1))
    start_fork(run, 2, {"perturb_type": "none", "epochs": 2}, fork)
    assert RunDirectory(fork).read_config().lr == 1e-3
    ledgers = [(each / "steps.jsonl").read_text().splitlines() for each in (run, fork)]
    of_epoch_2 = [[line for line in lines if json.loads(line)["epoch"] == 2] for lines in ledgers]
    assert of_epoch_2[0] == of_epoch_2[1]
    start_fork(run, 4, {"perturb_type": "none", "epochs": 4}, tmp_path / "behind")
    assert RunDirectory(tmp_path / "behind").read_config().lr == 1e-2


def test_a_state_is_put_back_for_a_job_and_never_for_another_directory(
    thinned: Path, standin_data: Path, tmp_path: Path, clip_hba: ClipHba
) -> None:
    some = Path(shutil.copytree(thinned / "dora_params", thinned / "some"))
    config = tmp_path / "fork.yaml"
    before = sorted(thinned.rglob("*"))
    for directory, command, code in (
        (some, "train", 2),
        (some, "slurm-task", 2),
        (thinned / "dora_params", "slurm-task", 0),
    ):
        keys = {**data_keys(standin_data), "training_run": 3, "epochs": 3, "baseline_dora_directory": directory}
        config.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        outcome = clip_hba(command, config, "--run-dir", tmp_path / "fork")
        assert outcome.code == code, outcome.output
        assert ("expected: epoch 2" in outcome.output) == (directory == some)
        assert checkpoint_path(thinned / "dora_params", 2).exists() == (code == 0)
        assert (sorted(thinned.rglob("*")) == before) == (code != 0)


def test_python_callers_are_told_the_command(thinned: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=f"clip-hba state {thinned} --epoch 2"):
        start_fork(thinned, 3, {"perturb_type": "none"}, tmp_path / "fork")
    with pytest.raises(BadInputError, match=f"clip-hba state {thinned} --epoch 2"):
        resume(thinned, from_epoch=2, new_dir=tmp_path / "on")


@pytest.mark.parametrize("damage", [None, "parameters"])
def test_a_state_is_compared_before_it_is_written(
    damage: str | None, thinned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: with one bit of the replay changed nothing is written."""
    from clip_hba_behavior.training.trainer import Trainer

    snapshot = Trainer.snapshot

    def altered(self: Trainer) -> Any:
        state = snapshot(self)
        if damage is not None:
            name = random.Random(0).choice(sorted(state.parameters))
            state.parameters[name].view(-1)[0] += 1e-3
        return state

    monkeypatch.setattr(Trainer, "snapshot", altered)
    made = checkpoint_path(thinned / "dora_params", 2)
    if damage is None:
        make_again(missing_state(thinned, 2))
        assert made.exists()
        return
    with pytest.raises(NotReproducibleError):
        make_again(missing_state(thinned, 2))
    assert not made.exists()


def test_a_state_that_could_not_be_written_is_refused_before_it_is_trained(
    thinned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only directory; the administrator of a system may write to any that is no read-only file system's."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != thinned / "dora_params")
    with pytest.raises(
        BadInputError, match=r"epoch3_dora_params.pth cannot be written: .*\n  give another --out FILE"
    ):
        missing_state(thinned, 3)
    assert missing_state(thinned, 3, out=tmp_path / "x.pth").file == tmp_path / "x.pth"
