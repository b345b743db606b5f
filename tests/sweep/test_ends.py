"""Where runs of a sweep end: with a baseline that was extended, and by their own counters."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from fresh_process import Outcome
from sweep_tools import epochs_on_disk, table, write_sweep

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


@pytest.mark.parametrize("keep", ["all", "last 1"])
def test_after_the_baseline_is_extended_its_forks_are_too(
    keep: str, own_baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, own_baseline, epochs=[3], settings={"keep_checkpoints": keep})
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    outcome = clip_hba("resume", own_baseline, "--set", "epochs=6")
    assert outcome.code == 0, outcome.output
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1
    assert "e003_none: begun at epoch 4 of 6" in outcome.output
    # a longer window fits now, and begins with the last state that the others had
    sweep = write_sweep(tmp_path, own_baseline, epochs=[3], lengths=[1, 2, 3], settings={"keep_checkpoints": keep})
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    assert "7 of 7 runs are done" in outcome.output
    rows = table(tmp_path / "sweep")
    for name in epochs_on_disk(tmp_path / "sweep"):
        assert [int(row["epoch"]) for row in rows if row["run"] == name] == [3, 4, 5, 6]
    together = write_sweep(tmp_path, own_baseline, "together", epochs=[3], lengths=[1, 2, 3])
    assert clip_hba("sweep", "run", together).code == 0
    assert table(tmp_path / "sweep") == table(tmp_path / "together")


@pytest.mark.parametrize(
    ("counters", "lr", "lengths", "ends"), [("inherit", 0.05, [1, 2, 3], 2), ("fresh", 0.005, [2, 3], 3)]
)
def test_a_run_that_its_counters_stopped_is_done(
    counters: str, lr: float, lengths: list[int], ends: int, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    settings = {"fork_early_stopping": counters, "early_stopping_patience": 1, "lr": lr}
    keys = {"epochs": [2], "kinds": ["random_target"], "lengths": lengths, "controls": False}
    sweep = write_sweep(tmp_path, baseline, settings=settings, **keys)
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    assert f"{len(lengths)} of {len(lengths)} runs are done" in outcome.output
    assert f"stopped early after epoch {ends}" in outcome.output
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 0, outcome.output
    rows = table(tmp_path / "sweep")
    for length in lengths:
        options = ["--perturb", "random_target", "--perturb-length", length, "--early-stopping", counters]
        options += ["--set", "early_stopping_patience=1", "--set", f"lr={lr}"]
        alone = tmp_path / f"alone{length}"
        assert clip_hba("fork", baseline, "--at-epoch", 2, *options, "--run-dir", alone).code == 0
        found = {
            int(row["epoch"]): row["state_digest"]
            for row in rows
            if row["run"] == f"e002_random_target_l{length}_s0"
        }
        epochs = [epoch for epoch in list_checkpoints(alone / "dora_params") if epoch > 1]
        assert found == {
            epoch: read_checkpoint(checkpoint_path(alone / "dora_params", epoch)).state_digest for epoch in epochs
        }
    shortest = [row for row in rows if row["run"] == f"e002_random_target_l{lengths[0]}_s0"]
    assert {row["censored"] for row in shortest} == {"True"}
    assert max(int(row["epoch"]) for row in shortest) == ends
    outcome = clip_hba("sweep", "verify", sweep)
    assert outcome.code == 0, outcome.output


def test_fresh_counters_leave_a_control_the_baseline(baseline: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    settings = {"fork_early_stopping": "fresh"}
    sweep = write_sweep(tmp_path, baseline, epochs=[3], kinds=["uniform_images"], lengths=[1], settings=settings)
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    assert "controls equal to the baseline byte for byte: 1 of 1" in outcome.output
