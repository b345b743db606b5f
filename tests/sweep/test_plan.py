from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.sweep.plan import make_plan, make_sweep_file
from fresh_process import Outcome
from sweep_tools import write_sweep


def baseline_of(tmp_path: Path, epochs: int) -> Path:
    """As much of a run as a plan looks at."""
    run = tmp_path / "baseline"
    (run / "dora_params").mkdir(parents=True)
    (run / "config.yaml").write_text(f"epochs: {epochs}\nnum_threads: 1\n")
    for epoch in range(epochs + 1):
        (run / f"dora_params/epoch{epoch}_dora_params.pth").touch()
    return run


def sweep_of(tmp_path: Path, **keys: Any) -> Any:
    baseline = baseline_of(tmp_path, 12)
    given = {"baseline": str(baseline), "directory": str(tmp_path / "sweep"), "kinds": ["label_shuffle"]}
    return make_plan(make_sweep_file(given | keys))


def test_a_full_sweep_has_every_epoch_kind_length_and_seed_and_a_control_an_epoch(tmp_path: Path) -> None:
    kinds = ["random_target", "label_shuffle", "image_noise", "uniform_images"]
    plan = sweep_of(tmp_path, kinds=kinds, lengths=[1, 2])
    # length 2 does not fit into the last epoch
    assert [(run.epoch, run.length) for run in plan.left_out] == [(12, 2)] * 4
    assert len(plan.runs()) == 12 * (1 + 4 * 2) - 4
    assert len({run.name for run in plan.runs()}) == len(plan.runs())
    assert sum(run.kind == "none" for run in plan.runs()) == 12


def test_a_longer_window_continues_from_the_shorter_one_with_the_same_start(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path, epochs=[3], lengths=[4, 1, 2], seeds=[5], controls=False)
    (chain,) = plan.chains
    assert [run.length for run in chain] == [1, 2, 4]
    assert [run.extends for run in chain] == [None, chain[0].name, chain[1].name]
    assert [plan.first_own_epoch(run) for run in chain] == [3, 4, 5]
    assert plan.epochs_to_train() == 10 + 9 + 8
    assert plan.epochs_alone() == 30


def test_a_kind_that_draws_nothing_is_run_for_one_seed(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path, epochs=[1], kinds=["uniform_images", "image_noise"], seeds=[1, 2], controls=False)
    assert [(run.kind, run.seed) for run in plan.runs()] == [
        ("uniform_images", 1),
        ("image_noise", 1),
        ("image_noise", 2),
    ]


def test_reseeded_forks_are_so_many_an_epoch(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path, epochs=[2, 3], reseeds=3, controls=False, kinds=["label_shuffle"])
    assert sum(run.kind == "reseed" for run in plan.runs()) == 6


def test_the_matched_null_has_every_seed_at_each_start_and_length_and_shares_beginnings(tmp_path: Path) -> None:
    plan = sweep_of(tmp_path, epochs=[2, 12], null_seeds=3, lengths=[1, 2], controls=False, kinds=[])
    assert [run.name for run in plan.runs()] == [
        *(f"e002_reorder_l{length}_s{seed}" for seed in (1, 2, 3) for length in (1, 2)),
        *(f"e012_reorder_l1_s{seed}" for seed in (1, 2, 3)),
    ]
    assert plan.runs()[1].extends == "e002_reorder_l1_s1"
    assert plan.runs()[1].settings() == {
        "perturb_type": "reorder",
        "perturb_epoch": 2,
        "perturb_length": 2,
        "perturb_seed": 1,
    }
    assert len(plan.left_out) == 3


def test_plan_counts_the_null(clip_hba: Callable[..., Outcome], tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, 4)
    (baseline / "training_log.txt").touch()
    outcome = clip_hba("sweep", "plan", write_sweep(tmp_path, baseline, null_seeds=19))
    assert outcome.code == 0, outcome.output
    assert "86 runs, " in outcome.output
    assert (
        "76 of them are the null of effects: reorder, seeds 1 to 19, for each start and length" in outcome.output
    )
    assert "with 19 null runs no p-value is below 0.05; null_seeds: 19 is the least for 0.05" in outcome.output
    outcome = clip_hba("sweep", "plan", write_sweep(tmp_path, baseline, null_seeds=3))
    assert "with 3 null runs no p-value is below 0.25;" in outcome.output


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"kinds": ["reorder"]},
            r"kinds: found \['reorder'\], expected a list of some of random_target, label_shuffle, image_noise, "
            r"uniform_images; asked for elsewhere: none by controls: true, reorder by null_seeds: 19",
        ),
        (
            {"kinds": ["none"]},
            r"kinds: found \['none'\], expected a list of .* none by controls: true",
        ),
        ({"null_seeds": -1}, "null_seeds: found -1"),
        ({"band_epochs": 0}, "band_epochs: found 0"),
        ({"epochs": [13]}, "no fork can start with epoch 13"),
        ({"kinds": ["noise"]}, r"kinds: found \['noise'\], expected a list of some of random_target, "),
        ({"lengths": [0]}, "lengths.0"),
        ({"surprise": 1}, "surprise"),
        ({"slurm": {"gpu": "x"}}, "slurm.gpu"),
        ({"epochs": 3}, r"epochs: found 3, expected all, or a list of epochs from 1 on, such as \[3, 10\]"),
        ({"epochs": [0, 2]}, r"epochs: found \[0, 2\], expected all, or a list"),
        ({"kinds": "label_shuffle"}, r"kinds: found 'label_shuffle', expected a list, such as \[a, b\]"),
        ({"slurm": 3}, "slurm: found 3, expected keys with values"),
        ({"seed": [1]}, r"seed: no such key; did you mean seeds\?"),
        ({"learning_rate": 1}, r"learning_rate: no such key of a sweep; did you mean settings: {lr: ...}\?"),
        ({"settings": {"learning_rate": 1}}, r"learning_rate: no such key; did you mean lr\?"),
        ({"kind": []}, r"kind: no such key; did you mean kinds\?"),
        ({"baseline": "/nowhere"}, "there is no run in /nowhere: the sweep's baseline has no config.yaml$"),
        ({"baseline": "runs/none"}, r"config\.yaml\n  runs/none counts from the current directory, /"),
    ],
)
def test_a_wrong_sweep_is_refused_with_what_is_wrong(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        sweep_of(tmp_path, **keys)


def test_windows_beyond_the_end_are_named_by_plan_and_table(
    clip_hba: Callable[..., Outcome], tmp_path: Path
) -> None:
    baseline = baseline_of(tmp_path, 4)
    (baseline / "training_log.txt").touch()
    keys = {"epochs": [4], "kinds": ["label_shuffle", "uniform_images"], "lengths": [1, 2], "controls": False}
    sweep = write_sweep(tmp_path, baseline, **keys)
    outcome = clip_hba("sweep", "table", sweep)
    assert outcome.code == 2, outcome.output
    assert f"clip-hba sweep run {sweep}" in outcome.output
    (tmp_path / "sweep").mkdir()
    for command, code in (("plan", 0), ("table", 1)):
        outcome = clip_hba("sweep", command, sweep)
        assert outcome.code == code, outcome.output
        assert (
            "2 runs are left out: the perturbation would go beyond the baseline's last epoch, 4" in outcome.output
        )
        assert "  epochs 4 to 5: 2 of them\n" in outcome.output
        assert f"clip-hba resume {baseline} --set epochs=5" in outcome.output


def test_the_directory_of_a_sweep_is_not_the_baselines(clip_hba: Callable[..., Outcome], tmp_path: Path) -> None:
    baseline = baseline_of(tmp_path, 2)
    sweep = write_sweep(tmp_path, baseline, epochs="all", directory=f"{tmp_path}/./baseline")
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 2, outcome.output
    assert "is the baseline's own directory, so no sweep can be in it" in outcome.output
    assert sorted(each.name for each in baseline.iterdir()) == ["config.yaml", "dora_params"]


def test_a_key_of_a_sweep_that_is_given_twice_is_refused(clip_hba: Callable[..., Outcome], tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, baseline_of(tmp_path, 2))
    sweep.write_text(sweep.read_text() + "seeds: [1]\nslurm:\n  cpus: 1\n  cpus: 2\n")
    outcome = clip_hba("sweep", "plan", sweep)
    assert outcome.code == 2, outcome.output
    assert "the key cpus is given twice, in line " in outcome.output


def test_runs_that_a_smaller_file_no_longer_asks_for_are_named(
    clip_hba: Callable[..., Outcome], tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, baseline_of(tmp_path, 3), epochs=[2], lengths=[1])
    (tmp_path / "baseline/training_log.txt").touch()
    (tmp_path / "sweep/runs/e003_none").mkdir(parents=True)
    for command in ("plan", "status", "table"):
        output = clip_hba("sweep", command, sweep).output
        assert "1 run is in " in output
        assert "but not in the sweep's file, so not in the table: e003_none\n" in output
