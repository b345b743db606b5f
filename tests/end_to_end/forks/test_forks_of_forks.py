"""Forks of forks: each has its own perturbation and its parent's other keys."""

from pathlib import Path

import pytest

from fork_tools import KINDS, ClipHba, batches, forked, later, parent_of, state_of


@pytest.mark.system
def test_a_fork_of_a_fork_has_its_own_perturbation_and_its_parents_other_keys(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    options = [*KINDS["random_target"], "--perturb-length", 3, "--set", "lr=0.002"]
    fork = forked(clip_hba, baseline, tmp_path / "fork", 2, *options)
    # from within the window, and from the fork's first state, which is the baseline's file
    calm = forked(clip_hba, fork, tmp_path / "calm", 3, "--perturb", "none")
    same = forked(clip_hba, baseline, tmp_path / "same", 2, "--perturb", "none", "--set", "lr=0.002")
    from_start = forked(clip_hba, fork, tmp_path / "from_start", 2, "--perturb", "none")
    assert later(from_start, 2) == later(same, 2)
    assert {row.rpartition(",")[2] for row in later(calm, 3)[1]} == {"none"}
    assert batches(calm) == {epoch: found for epoch, found in batches(baseline).items() if epoch >= 3}
    assert (
        state_of(calm, 3).optimizer_state["param_groups"][0]["lr"]
        == (state_of(fork, 3).optimizer_state["param_groups"][0]["lr"])
    )
    changed = parent_of(calm)["changed"]
    assert changed["perturb_type"] == {"parent": "random_target", "fork": "none"}
    assert changed.keys() == {"perturb_type", "perturb_epoch", "perturb_length", "perturb_seed"}
    assert parent_of(calm)["run"] == str(fork)


@pytest.mark.system
@pytest.mark.parametrize("kind", ["random_target", "earlier label_shuffle"])
def test_a_longer_window_can_go_on_from_a_shorter_ones_end(
    kind: str, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    long = forked(clip_hba, baseline, tmp_path / "long", 2, *KINDS[kind], "--perturb-length", 2)
    short = forked(clip_hba, baseline, tmp_path / "short", 2, *KINDS[kind], "--perturb-length", 1)
    options = [*KINDS[kind], "--set", "perturb_epoch=2", "--perturb-length", 2]
    extended = forked(clip_hba, short, tmp_path / "extended", 3, *options)
    assert later(extended, 3) == later(long, 3)
    assert later(extended, 3) != later(short, 3)
