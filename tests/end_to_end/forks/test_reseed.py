"""Forks with random streams of their own."""

from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.digest import digest
from fork_tools import ClipHba, batches, forked, later, parent_of, state_of
from run_tools import differences, write_config


def test_reseed_changes_the_random_streams_and_nothing_else(
    baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    forks = [
        forked(clip_hba, baseline, tmp_path / f"fork{number}", 3, "--perturb", "none", "--reseed", seed)
        for number, seed in enumerate((1, 1, 2))
    ]
    before = state_of(baseline, 2).as_dict()
    for fork in forks:
        first = state_of(fork, 2).as_dict()
        assert {key for key in first if digest({"": first[key]}) != digest({"": before[key]})} == {"rng_state"}
        for stream in before["rng_state"]:
            assert digest({"": first["rng_state"][stream]}) != digest({"": before["rng_state"][stream]})
    assert differences(forks[0], forks[1]) == []
    orders = [batches(run)[3] for run in (baseline, forks[0], forks[2])]
    assert len({tuple(order) for order in orders}) == 3
    parent = parent_of(forks[0])
    assert parent["reseed"] == 1
    assert parent["changed"] == {"fork_reseed": {"parent": None, "fork": 1}}
    assert parent["state_digest"] == state_of(baseline, 2).digest()
    assert parent["first_state_digest"] == state_of(forks[0], 2).digest()
    assert clip_hba("verify", "checkpoints", forks[0]).code == 0
    assert clip_hba("resume", forks[0], "--from-epoch", 2, "--run-dir", tmp_path / "resumed").code == 0
    assert differences(forks[0], tmp_path / "resumed") == []
    again = forked(clip_hba, forks[0], tmp_path / "again", 3, "--perturb", "none")  # its parent's own streams
    assert later(again, 2) == later(forks[0], 2)


def test_reseed_is_refused_where_the_order_does_not_depend_on_the_streams(
    keys: dict[str, Any], clip_hba: ClipHba, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "later.yaml", keys | {"batch_order": "later", "epochs": 2})
    assert clip_hba("train", config, "--run-dir", tmp_path / "later").code == 0
    options = ("--at-epoch", 2, "--perturb", "none", "--reseed", 1, "--run-dir", tmp_path / "fork")
    outcome = clip_hba("fork", tmp_path / "later", *options)
    assert outcome.code == 2
    assert "fork_reseed is 1, but batch_order is later\n  its batches are a function of" in outcome.output
    assert not (tmp_path / "fork").exists()
