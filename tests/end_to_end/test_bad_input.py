"""Every kind of bad input: a clear message, exit code 2, and nothing written."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

import fresh_process
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from fresh_process import Outcome
from run_tools import write_config

ClipHba = Callable[..., Outcome]


@pytest.fixture
def data(standin_data: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may corrupt."""
    return Path(shutil.copytree(standin_data, tmp_path / "data"))


@pytest.fixture
def keys(small_config: dict[str, Any], data: Path, standin_data: Path) -> dict[str, Any]:
    return {
        key: value.replace(str(standin_data), str(data)) if isinstance(value, str) else value
        for key, value in small_config.items()
    }


def change_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_text("".join(lines))


def corrupt_no_column(data: Path, keys: dict[str, Any]) -> None:
    change_line(data / "annotations.csv", 0, lambda line: line.replace("image_name", "picture"))


def corrupt_image_missing(data: Path, keys: dict[str, Any]) -> None:
    sorted((data / "images").iterdir())[3].unlink()


def corrupt_image_unreadable(data: Path, keys: dict[str, Any]) -> None:
    sorted((data / "images").iterdir())[3].write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")


def corrupt_target_not_finite(data: Path, keys: dict[str, Any]) -> None:
    change_line(data / "annotations.csv", 2, lambda line: line.rstrip().rpartition(",")[0] + ",nan\n")


def corrupt_prompt_count(data: Path, keys: dict[str, Any]) -> None:
    with (data / "prompts.txt").open("a") as file:
        file.write("one too many\n")


def corrupt_backbone_kind(data: Path, keys: dict[str, Any]) -> None:
    BertConfig().save_pretrained(data / "bert")
    keys["backbone"] = str(data / "bert")


def corrupt_more_layers_than_blocks(data: Path, keys: dict[str, Any]) -> None:
    keys["vision_layers"] = 99


def corrupt_rdm(data: Path, keys: dict[str, Any]) -> None:
    (data / "RDM48_triplet.mat").write_bytes(b"no such format")


def corrupt_unknown_key(data: Path, keys: dict[str, Any]) -> None:
    keys["leraning_rate"] = 1


def corrupt_baseline_missing(data: Path, keys: dict[str, Any]) -> None:
    keys |= {"training_run": 3, "baseline_dora_directory": str(data)}


def corrupt_device(data: Path, keys: dict[str, Any]) -> None:
    keys["device"] = "cuda:77"


CORRUPTED = {
    corrupt_no_column: "image_name",
    corrupt_image_missing: "missing",
    corrupt_image_unreadable: "cannot be read",
    corrupt_target_not_finite: "nan",
    corrupt_prompt_count: "67",
    corrupt_backbone_kind: "is no CLIP",
    corrupt_more_layers_than_blocks: "vision_layers",
    corrupt_rdm: "RDM48_triplet.mat",
    corrupt_unknown_key: "leraning_rate: no such key",
    corrupt_baseline_missing: "training_run 3 needs",
    corrupt_device: "this machine cannot honour device: cuda:77",
}


@pytest.mark.parametrize(
    "corrupt", CORRUPTED, ids=lambda corrupt: corrupt.__name__.removeprefix("corrupt_").replace("_", " ")
)
def test_bad_input_is_refused_and_nothing_is_written(
    corrupt: Callable[[Path, dict[str, Any]], None],
    clip_hba: ClipHba,
    data: Path,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    corrupt(data, keys)
    config = write_config(tmp_path / "config.yaml", keys)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "runs/run")
    assert outcome.code == 2, outcome.output
    assert "Traceback" not in outcome.output
    assert CORRUPTED[corrupt] in outcome.output
    assert not (tmp_path / "runs").exists()


def test_a_missing_config_is_refused(clip_hba: ClipHba, tmp_path: Path) -> None:
    outcome = clip_hba("train", tmp_path / "none.yaml", "--run-dir", tmp_path / "run")
    assert outcome.code == 2
    assert "there is no configuration file" in outcome.output
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_no_checkpoint_is_refused(clip_hba: ClipHba, tmp_path: Path) -> None:
    torch.save([1, 2, 3], tmp_path / "list.pth")
    for name, message in (
        ("list.pth", "is no checkpoint: it holds a list"),
        ("none.pth", "there is no checkpoint"),
    ):
        outcome = clip_hba("inspect", tmp_path / name)
        assert outcome.code == 2
        assert message in outcome.output


def test_an_unknown_command_or_option_is_bad_use(clip_hba: ClipHba) -> None:
    assert clip_hba("trian").code == 2
    assert clip_hba("train").code == 2
    assert clip_hba("resume", "run", "--from-epoch", "-1").code == 2


@pytest.fixture
def run(clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path) -> Path:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=1)
    assert clip_hba("train", config, "--run-dir", tmp_path / "run").code == 0
    return tmp_path / "run"


def files_of(run: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}


def test_bad_uses_of_a_run_are_refused_and_the_run_stays_as_it_is(
    run: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    before = files_of(run)
    new = tmp_path / "new"
    for arguments, message in (
        (["resume", run, "--from-epoch", "0"], "--from-epoch needs a new --run-dir"),
        (
            ["resume", run, "--from-epoch", "7", "--run-dir", new],
            "no checkpoint of epoch 7\n  found:    epochs 0 to 1",
        ),
        (["resume", tmp_path / "nowhere"], "there is no run in"),
        (["resume", run, "--from-epoch", "0", "--run-dir", run], "is not empty: it holds a run"),
        (["resume", run, "--set", "lr=0.5"], "lr\n    in the run: 0.001\n    given:      0.5"),
        (["resume", run, "--set", "epochs=0"], "epochs is below what the run has done"),
        (["resume", run, "--set", "run_dir=elsewhere"], "a run stays where it is"),
        (["resume", run, "--set", "epoch=9"], "epoch: no such key; did you mean epochs?"),
        (["train", tmp_path / "config.yaml", "--run-dir", run], "is not empty: it holds a run"),
    ):
        outcome = clip_hba(*arguments)
        assert outcome.code == 2, outcome.output
        assert message in outcome.output
    after = files_of(run)
    log = str(run / "training_log.txt")
    assert after.pop(log).startswith(before.pop(log))  # it may tell of what was refused
    assert after == before
    assert not new.exists()


def test_changed_data_is_noticed_at_resume(
    run: Path, clip_hba: ClipHba, standin_data: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(standin_data, tmp_path / "changed"))
    image = sorted((changed / "images").iterdir())[0]
    other = sorted((changed / "images").iterdir())[1]
    shutil.copyfile(other, image)
    outcome = clip_hba("resume", run, "--set", f"img_dir={changed / 'images'}", "--set", "epochs=2")
    assert outcome.code == 2
    assert "the digest of the images\n    in the run: " in outcome.output
    assert f"images that differ: {image.name}" in outcome.output


def test_moved_data_is_no_change(run: Path, clip_hba: ClipHba, standin_data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(standin_data, tmp_path / "moved"))
    outcome = clip_hba("resume", run, "--set", f"img_dir={moved / 'images'}", "--set", "epochs=2")
    assert outcome.code == 0, outcome.output


def hold_run(run: str, held: str) -> None:
    from clip_hba_behavior.reproducibility.record.lease import hold

    with hold(Path(run)):
        Path(held).touch()
        time.sleep(60)


def test_a_run_directory_in_use_is_refused(run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    held = tmp_path / "held"
    holder = fresh_process.start(hold_run, str(run), str(held), output=tmp_path / "holder.txt")
    while not held.exists():
        time.sleep(0.01)
    outcome = clip_hba("resume", run, "--set", "epochs=2")
    holder.kill()
    assert outcome.code == 2
    assert "is in use" in outcome.output
    assert str(holder.pid) in outcome.output


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_whole(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, lr=1e38)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 1, outcome.output
    assert "loss is nan" in outcome.output
    assert "the last complete state is kept" in outcome.output
    assert [each.name for each in (tmp_path / "run/dora_params").iterdir()] == ["epoch0_dora_params.pth"]


def train_until_interrupted(config: str, run: str) -> None:
    """Ctrl-C after the second epoch, as a terminal sends it."""
    import os
    import signal
    import sys
    import threading

    from clip_hba_behavior.cli import main

    def wait_and_interrupt() -> None:
        while not Path(run, "dora_params/epoch2_dora_params.pth").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_interrupt, daemon=True).start()
    sys.exit(main(["train", config, "--run-dir", run]))


def test_ctrl_c_leaves_with_75_and_the_run_can_be_resumed(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=400, early_stopping_patience=400)
    outcome = fresh_process.call(
        train_until_interrupted, str(config), str(tmp_path / "run"), output=tmp_path / "interrupted.txt"
    )
    assert outcome.code == 75, outcome.output
    assert f"go on with: clip-hba resume {tmp_path / 'run'}\n" in outcome.output
    newest = max(list_checkpoints(tmp_path / "run/dora_params"))
    outcome = clip_hba("resume", tmp_path / "run", "--set", f"epochs={newest + 1}")
    assert outcome.code == 0, outcome.output


def test_an_input_output_error_leaves_with_74(clip_hba: ClipHba, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = write_config(tmp_path / "config.yaml", {"cache_dir": str(tmp_path / "file"), "num_threads": 1})
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 74, outcome.output
    assert "Traceback" not in outcome.output
    assert not (tmp_path / "run").exists()
