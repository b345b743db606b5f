"""Several processes that share each batch write the bytes that one process writes."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.run.checkpoint_files import list_step_checkpoints
from fresh_process import Outcome
from old_run_tools import restored
from rank_tools import Ranks, run_ranks, start_ranks, torchrun
from run_tools import differences, trained, write_config

ClipHba = Callable[..., Outcome]


@pytest.fixture(scope="module")
def keys(standin_data: Path) -> dict[str, Any]:
    """Batches of 16, 16 and 1 image: of the last one most processes have none."""
    return {
        **data_keys(standin_data),
        "arithmetic": "portable",
        "epochs": 2,
        "batch_size": 16,
        "train_portion": 0.55,
        "num_threads": 1,
        "rank": 4,
        "lr": 1e-3,
        "dora_dropout": 0.1,
        "perturb_type": "label_shuffle",
        "perturb_epoch": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def baseline(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that all others are compared with."""
    folder = tmp_path_factory.mktemp("baseline")
    config = write_config(folder / "run.yaml", keys)
    arguments = ["train", str(config), "--run-dir", str(folder / "run")]
    outcome = fresh_process.call(fresh_process.clip_hba, arguments, output=folder / "output.txt")
    assert outcome.code == 0, outcome.output
    return folder / "run"


def wait_for_line(run: Path, start: str, ranks: Ranks | None = None) -> None:
    """Wait until the ledger has a line with this beginning."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ledger = run / "steps.jsonl"
        if ledger.exists() and any(line.startswith(start) for line in ledger.read_text().splitlines()):
            return
        time.sleep(0.01)
    raise TimeoutError(f"no line {start} in {run}\n{ranks.printed() if ranks else ''}")


def line_of(epoch: int, step: int) -> str:
    return f'{{"epoch": {epoch}, "step": {step},'


def test_two_processes_write_the_bytes_of_one(keys: dict[str, Any], baseline: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "two.yaml", keys)
    codes, printed = run_ranks(2, "train", config, "--run-dir", tmp_path / "two", folder=tmp_path / "ranks")
    assert codes == [0, 0], printed
    assert differences(baseline, tmp_path / "two") == []
    assert printed.count("Sharing each batch among 2 processes") == 1
    assert printed.count("Epoch 2/2") == 1


@pytest.mark.system
@pytest.mark.parametrize("kind", ["image_noise", "reorder"])
def test_three_processes_share_augmented_and_perturbed_images(
    kind: str, clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    changes = {
        "augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"],
        "perturb_type": kind,
        "num_workers": 1,
    }
    one = trained(clip_hba, tmp_path, keys, "one", **changes)
    config = write_config(tmp_path / "three.yaml", keys, **changes)
    codes, printed = run_ranks(3, "train", config, "--run-dir", tmp_path / "three", folder=tmp_path / "ranks")
    assert codes == [0, 0, 0], printed
    assert differences(one, tmp_path / "three") == []


@pytest.mark.system
def test_early_stopping_ends_all_processes(clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path) -> None:
    changes = {"lr": 0.5, "epochs": 6, "early_stopping_patience": 1}
    one = trained(clip_hba, tmp_path, keys, "one", **changes)
    config = write_config(tmp_path / "two.yaml", keys, **changes)
    codes, printed = run_ranks(2, "train", config, "--run-dir", tmp_path / "two", folder=tmp_path / "ranks")
    assert codes == [0, 0], printed
    assert printed.count("Stopped early after epoch") == 1
    assert differences(one, tmp_path / "two") == []


@pytest.mark.parametrize("asked", [pytest.param(0, marks=pytest.mark.system), 1])
def test_a_signal_to_any_process_saves_and_another_number_resumes(
    clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path, asked: int
) -> None:
    config = write_config(tmp_path / "run.yaml", keys)
    run = tmp_path / "run"
    ranks = start_ranks(2, "train", config, "--run-dir", run, folder=tmp_path / "ranks")
    wait_for_line(run, line_of(1, 1), ranks)
    os.kill(ranks.processes[asked].pid, signal.SIGTERM)
    assert ranks.codes() == [75, 75], ranks.printed()
    whose = "SIGTERM" if asked == 0 else "a signal to another process"
    assert ranks.printed().count(f"stopped by {whose} after epoch 1, step ") == 1
    assert f"go on with: clip-hba resume {run}" in ranks.printed()
    assert len(list_step_checkpoints(run / "step_checkpoints")) == 1
    if asked == 0:
        outcome = clip_hba("resume", run)
        assert outcome.code == 0, outcome.output
    else:
        codes, printed = run_ranks(3, "resume", run, folder=tmp_path / "again")
        assert codes == [0, 0, 0], printed
    assert differences(baseline, run) == []


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.system), 1])
def test_the_death_of_a_process_ends_the_others_and_the_run_goes_on(
    clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path, killed: int
) -> None:
    config = write_config(tmp_path / "run.yaml", keys, checkpoint_every_steps=1)
    run = tmp_path / "run"
    ranks = start_ranks(2, "train", config, "--run-dir", run, folder=tmp_path / "ranks")
    wait_for_line(run, line_of(1, 2), ranks)
    os.kill(ranks.processes[killed].pid, signal.SIGKILL)
    began = time.monotonic()
    codes = ranks.codes(30)
    assert time.monotonic() - began < 20
    expected = [1, 1]
    expected[killed] = -signal.SIGKILL
    assert codes == expected, ranks.printed()
    if killed == 1:
        assert "error: another process of this run has ended" in ranks.printed()
        assert f"go on with: clip-hba resume {run}, in any number of processes" in ranks.printed()
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output
    assert differences(baseline, run) == []


@pytest.mark.system
def test_the_first_process_gives_the_exit_code(keys: dict[str, Any], tmp_path: Path) -> None:
    """Whatever befalls the first one alone, such as the loss of its lease, ends the others too."""
    config = write_config(tmp_path / "run.yaml", keys, epochs=50)
    ranks = start_ranks(2, "train", config, "--run-dir", tmp_path / "run", folder=tmp_path / "ranks")
    wait_for_line(tmp_path / "run", line_of(1, 1), ranks)
    (tmp_path / "run" / "run.lock").unlink()
    assert ranks.codes(30) == [1, 1], ranks.printed()
    assert ranks.printed().count("is no longer held by this process") == 1
    assert ranks.printed().count("error:") == 1


def test_a_loss_that_is_no_number_ends_all_with_one_message(keys: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", keys, lr=1e30)
    codes, printed = run_ranks(2, "train", config, "--run-dir", tmp_path / "run", folder=tmp_path / "ranks")
    assert codes == [1, 1], printed
    assert printed.count("error: the ") == printed.count("loss is nan") == 1


def test_native_arithmetic_is_refused_once(keys: dict[str, Any], standin_data: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "native.yaml", keys, arithmetic="native")
    codes, printed = run_ranks(3, "train", config, "--run-dir", tmp_path / "new", folder=tmp_path / "ranks")
    assert codes == [2, 2, 2], printed
    assert printed.count("error: native arithmetic cannot share a batch among processes") == 1
    assert "found:    3 processes, arithmetic: native" in printed
    assert not (tmp_path / "new").exists()

    native = restored("plain", tmp_path, standin_data, tmp_path / "cache")
    new = ["--run-dir", tmp_path / "new"]
    for words in (["resume", native, *new], ["fork", native, "--at-epoch", 2, "--perturb", "none", *new]):
        codes, printed = run_ranks(2, *words, folder=tmp_path / "ranks")
        assert codes == [2, 2], printed
        assert printed.count("native arithmetic cannot share") == 1
        assert not (tmp_path / "new").exists()


def test_a_wrong_start_is_told_once(keys: dict[str, Any], baseline: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", keys)
    codes, printed = run_ranks(2, "train", config, "--run-dir", baseline, folder=tmp_path / "ranks")
    assert codes == [2, 2], printed
    assert printed.count("is not empty: it holds a run") == 1


@pytest.mark.parametrize("words", [["sweep", "status", "sweep.yaml"], ["inspect", "run"]])
def test_other_commands_are_refused(words: list[str], tmp_path: Path) -> None:
    codes, printed = run_ranks(2, *words, folder=tmp_path / "ranks")
    assert codes == [2, 2], printed
    assert printed.count(f"error: clip-hba {words[0]} works in one process") == 1
    assert "found:    2 processes, started by torchrun" in printed


@pytest.mark.system
def test_two_processes_fork_a_run_as_one_does(clip_hba: ClipHba, baseline: Path, tmp_path: Path) -> None:
    words = ["fork", baseline, "--at-epoch", "2", "--perturb", "uniform_images", "--run-dir"]
    outcome = clip_hba(*words, tmp_path / "one")
    assert outcome.code == 0, outcome.output
    codes, printed = run_ranks(2, *words, tmp_path / "two", folder=tmp_path / "ranks")
    assert codes == [0, 0], printed
    assert differences(tmp_path / "one", tmp_path / "two") == []


def test_dry_run_prints_once(keys: dict[str, Any], tmp_path: Path) -> None:
    config = write_config(tmp_path / "run.yaml", keys)
    codes, printed = run_ranks(2, "train", config, "--dry-run", folder=tmp_path / "ranks")
    assert codes == [0, 0], printed
    assert printed.count("arithmetic: portable 1") == 1


@pytest.mark.system
@pytest.mark.parametrize("size", [2, 4])
def test_processes_of_torchrun_write_the_bytes_of_one(
    keys: dict[str, Any], baseline: Path, tmp_path: Path, size: int
) -> None:
    config = write_config(tmp_path / "run.yaml", keys)
    started = torchrun(size, "train", config, "--run-dir", tmp_path / "run", folder=tmp_path)
    code = started.wait(280)
    printed = (tmp_path / "torchrun.txt").read_text()
    assert code == 0, printed
    assert differences(baseline, tmp_path / "run") == []
    assert printed.count(f"Sharing each batch among {size} processes") == 1
    assert printed.count("Epoch 2/2") == 1


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_that_is_asked_to_stop_saves_the_run(
    clip_hba: ClipHba, keys: dict[str, Any], baseline: Path, tmp_path: Path, number: signal.Signals
) -> None:
    config, run = write_config(tmp_path / "run.yaml", keys), tmp_path / "run"
    started = torchrun(2, "train", config, "--run-dir", run, folder=tmp_path)
    wait_for_line(run, line_of(1, 1))
    started.send_signal(number)
    assert started.wait(60) != 0
    printed = (tmp_path / "torchrun.txt").read_text()
    assert printed.count("the state is saved") == 1, printed
    outcome = clip_hba("resume", run)
    assert outcome.code == 0, outcome.output
    assert differences(baseline, run) == []


@pytest.mark.system
@pytest.mark.parametrize("killed", [0, 1])
def test_torchrun_ends_after_the_death_of_a_process(
    keys: dict[str, Any], baseline: Path, tmp_path: Path, killed: int
) -> None:
    config, run = write_config(tmp_path / "run.yaml", keys, checkpoint_every_steps=1), tmp_path / "run"
    started = torchrun(2, "train", config, "--run-dir", run, folder=tmp_path)
    wait_for_line(run, line_of(1, 2))
    os.kill(worker_of(started.pid, killed), signal.SIGKILL)
    began = time.monotonic()
    assert started.wait(60) == 1
    assert time.monotonic() - began < 30
    codes, printed = run_ranks(3, "resume", run, folder=tmp_path / "again")
    assert codes == [0, 0, 0], printed
    assert differences(baseline, run) == []


def worker_of(launcher: int, rank: int) -> int:
    """Return the process that torchrun started for a rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in children:
        if f"RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes().replace(b"LOCAL_RANK", b""):
            return int(child)
    raise ProcessLookupError(f"torchrun {launcher} has no process of rank {rank}: {children}")
