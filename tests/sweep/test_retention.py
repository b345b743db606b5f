"""Which states a sweep keeps: in portable arithmetic few, and the others are made again when they are needed."""

import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.life import resume, start
from clip_hba_behavior.verification.missing_states import make_again
from clip_hba_behavior.verification.state_request import missing_state
from fresh_process import Outcome
from sweep_tools import epochs_on_disk, write_sweep

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]
LAST = 6
KEYS = {"epochs": [2, 4], "kinds": ["random_target"], "lengths": [1, 2], "processes": 2}


@pytest.fixture(scope="module")
def portable(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline in portable arithmetic."""
    run = tmp_path_factory.mktemp("portable") / "baseline"
    keys = {**data_keys(standin_data), "epochs": LAST, "batch_size": 16, "num_threads": 1, "rank": 4, "lr": 1e-3}
    start(make_config(keys | {"device": "cpu", "arithmetic": "portable", "run_dir": str(run)}))
    return run


def bytes_of_checkpoints(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.glob("runs/*/dora_params/*.pth"))


def test_in_portable_arithmetic_few_states_stay_and_the_table_is_the_same(
    portable: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    keys = KEYS | {"epochs": [2], "controls": False}
    few = write_sweep(tmp_path, portable, "few", **keys)
    everything = write_sweep(tmp_path, portable, "everything", settings={"keep_checkpoints": "all"}, **keys)
    for sweep in (few, everything):
        outcome = clip_hba("sweep", "run", sweep)
        assert outcome.code == 0, outcome.output
    assert (tmp_path / "few/sweep.csv").read_bytes() == (tmp_path / "everything/sweep.csv").read_bytes()
    kept, of = epochs_on_disk(tmp_path / "few"), epochs_on_disk(tmp_path / "everything")
    assert of["e002_random_target_l1_s0"] == [1, 2, 3, 4, 5, 6]
    assert kept["e002_random_target_l1_s0"][:2] == [1, 2]  # the longer one begins with 2
    assert all({epochs[0], LAST} <= set(epochs) and len(epochs) <= 4 for epochs in kept.values())
    assert bytes_of_checkpoints(tmp_path / "few") < 0.8 * bytes_of_checkpoints(tmp_path / "everything")


def test_what_comes_later_makes_the_states_that_it_needs(
    portable: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    keys = KEYS | {"epochs": [2], "controls": False}
    sweep = write_sweep(tmp_path, portable, "few", **keys)
    assert clip_hba("sweep", "run", sweep).code == 0
    outcome = clip_hba("sweep", "verify", sweep, "--sample", 2)
    assert outcome.code == 0, outcome.output
    # a window that is added later begins with a state that was not kept
    longer = write_sweep(tmp_path, portable, "few", **keys | {"lengths": [1, 2, 3]})
    assert 3 not in epochs_on_disk(tmp_path / "few")["e002_random_target_l2_s0"]
    outcome = clip_hba("sweep", "run", longer)
    assert outcome.code == 0, outcome.output
    assert 3 in epochs_on_disk(tmp_path / "few")["e002_random_target_l2_s0"]


def test_a_baseline_that_kept_few_states_gives_the_same_sweep(
    portable: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    thinned = Path(shutil.copytree(portable, tmp_path / "baseline"))
    config = thinned / "config.yaml"
    config.write_text(config.read_text().replace(str(portable), str(thinned)))
    (thinned / "forks.txt").unlink(missing_ok=True)  # of other tests' forks
    resume(thinned, {"keep_checkpoints": "best"})
    assert 3 not in list_checkpoints(thinned / "dora_params")
    keys = KEYS | {"epochs": [4], "lengths": [1]}
    sweep = write_sweep(tmp_path, thinned, "thinned", **keys)
    outcome = clip_hba("sweep", "plan", sweep)
    assert outcome.code == 0, outcome.output
    assert "1 states of the baseline are made again first" in outcome.output
    outcome = clip_hba("sweep", "run", sweep)
    assert outcome.code == 0, outcome.output
    whole = write_sweep(tmp_path, portable, "whole", **keys)
    assert clip_hba("sweep", "run", whole).code == 0
    tables = [(tmp_path / name / "sweep.csv").read_text() for name in ("thinned", "whole")]
    assert tables[0].replace(str(thinned), str(portable)) == tables[1]


def test_the_plan_tells_disk_and_time_of_both_retentions(
    portable: Path, baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    outcome = clip_hba("sweep", "plan", write_sweep(tmp_path, portable, **KEYS))
    assert outcome.code == 0, outcome.output
    assert "keep_checkpoints is best" in outcome.output
    # of epoch 2: a control, windows of 1 and 2; of epoch 4 the same
    assert f"all:  {6 + 6 + 5 + 4 + 4 + 3} checkpoints" in outcome.output
    assert f"best: {3 + 4 + 3 + 3 + 4 + 3} checkpoints at most" in outcome.output
    assert "any other is made again in at most" in outcome.output
    settings = {"keep_checkpoints": "last 2"}
    outcome = clip_hba("sweep", "plan", write_sweep(tmp_path, portable, settings=settings, **KEYS))
    assert "keep_checkpoints is last 2" in outcome.output
    outcome = clip_hba("sweep", "plan", write_sweep(tmp_path, baseline, **KEYS | {"epochs": [2]}))
    assert "keep_checkpoints is all" in outcome.output


@pytest.mark.timeout(1200)
def test_any_of_fifty_random_states_of_a_sweep_is_made_again_bit_for_bit(
    portable: Path, clip_hba: ClipHba, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = KEYS | {"epochs": [1, 2, 3, 4], "kinds": ["random_target", "label_shuffle", "image_noise"]}
    few = write_sweep(tmp_path, portable, "few", **keys)
    everything = write_sweep(tmp_path, portable, "everything", settings={"keep_checkpoints": "all"}, **keys)
    for sweep in (few, everything):
        assert clip_hba("sweep", "run", sweep).code == 0
    assert (tmp_path / "few/sweep.csv").read_bytes() == (tmp_path / "everything/sweep.csv").read_bytes()
    kept, of = epochs_on_disk(tmp_path / "few"), epochs_on_disk(tmp_path / "everything")
    removed = [(name, epoch) for name in of for epoch in of[name] if epoch not in kept[name]]
    times = []
    for name, epoch in random.Random(0).sample(removed, min(50, len(removed))):
        made, began = tmp_path / f"{name}_{epoch}.pth", time.monotonic()
        make_again(missing_state(tmp_path / "few/runs" / name, epoch, out=made))
        times.append(time.monotonic() - began)
        original = checkpoint_path(tmp_path / "everything/runs" / name / "dora_params", epoch)
        assert _without_directories(made, tmp_path) == _without_directories(original, tmp_path)
    sizes = [bytes_of_checkpoints(tmp_path / name) / 1e6 for name in ("few", "everything")]
    with capsys.disabled():
        print(f"\n{len(times)} of {len(removed)} states made again, {min(times):.1f} to {max(times):.1f} s each")
        print(f"checkpoints: {sizes[0]:.1f} MB instead of {sizes[1]:.1f} MB; the table is the same")


def _without_directories(path: Path, directory: Path) -> dict[str, object]:
    """Everything in a checkpoint, with the names of its sweep's and its parent's directory replaced."""
    from clip_hba_behavior.reproducibility.state import safe_load
    from clip_hba_behavior.reproducibility.state.digest import leaf_digest
    from clip_hba_behavior.reproducibility.state.tree import tree_leaves

    found: dict[str, object] = {}
    for name, leaf in tree_leaves(safe_load.load(path)):
        if isinstance(leaf, str):
            found[name] = leaf.replace(f"{directory}/few/", "").replace(f"{directory}/everything/", "")
        else:
            found[name] = repr(leaf) if isinstance(leaf, dict | list | tuple) else leaf_digest(leaf)
    return found
