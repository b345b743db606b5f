"""Forks that are refused, and the commands that their messages offer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.fork import publish_first_state
from fork_tools import KINDS, LAST, ClipHba, forked
from run_tools import offered, rewrite_state


def epoch_missing(run: Path) -> None:
    checkpoint_path(run / "dora_params", 2).unlink()


def damaged(run: Path) -> None:
    path = checkpoint_path(run / "dora_params", 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def changed(run: Path) -> None:
    """A file that is valid in itself, and not the state that the run reached."""
    path = checkpoint_path(run / "dora_params", 2)
    state = read_checkpoint(path).whole_state()
    next(iter(state.parameters.values()))[0] += 1
    rewrite_state(path, state)


def partial(run: Path) -> None:
    path = checkpoint_path(run / "dora_params", 2)
    content = {
        key: value for key, value in torch.load(path).items() if key.startswith(("clip_model", "rng_state"))
    }
    path.write_bytes(to_bytes(content))


def swapped(run: Path) -> None:
    shutil.copy(checkpoint_path(run / "dora_params", 3), checkpoint_path(run / "dora_params", 2))


def no_run(run: Path) -> None:
    (run / "config.yaml").unlink()


REFUSED = {
    epoch_missing: "epoch2_dora_params.pth\n  found:    epochs 0 to 1, 3 to 5",
    damaged: "epoch2_dora_params.pth",
    changed: "is not the state that its run recorded\n  in the file:   ",
    partial: "does not hold the complete training state\n  found:    parameters and random states",
    swapped: "holds another state than its name says",
    no_run: "there is no run in",
}


@pytest.mark.parametrize("corrupt", REFUSED, ids=lambda each: each.__name__)
def test_a_parent_that_cannot_be_trusted_is_refused(
    corrupt: Callable[[Path], None], baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    shutil.copytree(baseline, tmp_path / "baseline")
    corrupt(tmp_path / "baseline")
    options = ("--at-epoch", 3, "--perturb", "none", "--run-dir", tmp_path / "fork")
    outcome = clip_hba("fork", tmp_path / "baseline", *options)
    assert outcome.code == 2, outcome.output
    assert REFUSED[corrupt] in outcome.output
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "fork").exists()


def test_a_changed_first_state_of_a_fork_is_refused_too(baseline: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    fork = forked(clip_hba, baseline, tmp_path / "fork", 3, "--perturb", "none", "--epochs", 3)
    changed(fork)
    outcome = clip_hba("fork", fork, "--at-epoch", 3, "--perturb", "none", "--run-dir", tmp_path / "second")
    assert outcome.code == 2
    assert "in environment.json: " in outcome.output


def test_a_parent_that_changes_while_it_is_copied_leaves_no_fork(baseline: Path, tmp_path: Path) -> None:
    shutil.copytree(baseline, tmp_path / "baseline")
    parent = read_checkpoint(checkpoint_path(tmp_path / "baseline/dora_params", 2))
    swapped(tmp_path / "baseline")
    with pytest.raises(NotReproducibleError, match="the fork's first state is not its parent's"):
        publish_first_state(parent, tmp_path / "dora_params")
    assert list((tmp_path / "dora_params").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--perturb", "blur"], "perturb_type: found 'blur', expected 'none', 'random_target'"),
        (["--perturb", "image_noise", "--perturb-length", "0"], "perturb_length: found 0"),
        (["--perturb", "image_noise", "--set", "perturb_epoch=2"], "expected: some of epochs 3 to 5"),
        (["--perturb", "image_noise", "--set", "perturb_epoch=6"], "found:    epochs 6 to 6 to perturb"),
        (
            ["--perturb", "none", "--epochs", "2"],
            "it begins with epoch 3, and ends before\n  found:    last epoch 2",
        ),
        (["--perturb", "none", "--early-stopping", "on"], "fork_early_stopping: found 'on'"),
        (["--perturb", "none", "--set", "training_run=2"], "training_run: a fork gets these from BASELINE"),
        (["--perturb", "none", "--set", "random_seed=6"], "of another random_seed"),
        ([], "Missing option '--perturb'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_what_means_nothing_is_refused(
    options: list[str], message: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba("fork", baseline, "--at-epoch", 3, *options, "--run-dir", tmp_path / "fork")
    assert outcome.code == 2, outcome.output
    assert message in outcome.output
    assert not (tmp_path / "fork").exists()


def test_a_window_beyond_the_end_is_refused_and_the_commands_offered_do_what_they_say(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    fork = tmp_path / "my fork"
    options = [*KINDS["random_target"], "--perturb-length", 3, "--set", "perturb_rule=earlier"]
    outcome = clip_hba("fork", baseline, "--at-epoch", LAST, *options, "--run-dir", fork)
    assert outcome.code == 2, outcome.output
    assert "the perturbation goes beyond the fork's last epoch" in outcome.output
    assert f"epochs {LAST} to {LAST + 2} to perturb" in outcome.output
    assert f"expected: none beyond epoch {LAST}, where the baseline ends" in outcome.output
    assert not fork.exists()
    further = offered(outcome.output, "train further:")
    assert further[further.index("--epochs") + 1] == str(LAST + 2)
    assert clip_hba(*further).code == 0
    config = RunDirectory(fork).read_config()
    assert (config.perturb_length, config.perturb_seed, config.perturb_rule) == (3, 7, "earlier")
    assert max(list_checkpoints(fork / "dora_params")) == LAST + 2
    fork.rename(tmp_path / "long")
    assert clip_hba(*offered(outcome.output, "or perturb less:")).code == 0
    assert RunDirectory(fork).read_config().perturb_length == 1


def test_a_fork_that_cannot_begin_names_a_command_that_does(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    where = ["--perturb", "none", "--run-dir", tmp_path / "fork"]
    outcome = clip_hba("fork", baseline, "--at-epoch", 30, *where)
    assert outcome.code == 2, outcome.output
    assert "--at-epoch 30 needs " in outcome.output
    assert f"found:    epochs 0 to {LAST} in that directory\n  expected: epoch 29" in outcome.output
    assert "training_run" not in outcome.output
    assert offered(outcome.output, "or train the baseline further first:")[-1] == "epochs=30"
    window = ["--perturb", "image_noise", "--perturb-length", 3, "--run-dir", tmp_path / "fork"]
    with_window = clip_hba("fork", baseline, "--at-epoch", 30, *window)
    longer = offered(with_window.output, "fork where there is one:")
    assert longer[longer.index("--epochs") + 1] == str(LAST + 2)
    for own, expected in (
        (["--set", "perturb_epoch=31"], f"perturb_epoch={LAST + 1}"),
        (["--epochs", 1], f"--epochs {LAST + 2}"),
        (["--set", "fork_reseed=null"], "fork_reseed=null"),
    ):
        shifted = clip_hba("fork", baseline, "--at-epoch", 30, *window, *own)
        command = offered(shifted.output, "fork where there is one:")
        assert expected in " ".join(command)
        assert clip_hba(*command).code == 0
        (tmp_path / "fork").rename(tmp_path / expected)
    possible = offered(outcome.output, "fork where there is one:")
    assert possible[possible.index("--at-epoch") + 1] == str(LAST)
    assert clip_hba(*possible).code == 0
    (tmp_path / "fork").rename(tmp_path / "first")

    outcome = clip_hba("fork", baseline, "--at-epoch", LAST + 1, *where)
    assert outcome.code == 2, outcome.output
    assert (
        f"found:    last epoch {LAST}, where the baseline ends\n  expected: at least {LAST + 1}" in outcome.output
    )
    further = offered(outcome.output, "train further:")
    assert further[further.index("--epochs") + 1] == str(LAST + 1)
    assert clip_hba(*further).code == 0
