"""One run that met no fault, for all tests of faults."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from run_tools import write_config


@pytest.fixture(scope="package")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of half a second."""
    data = tmp_path_factory.mktemp("data")
    write_standin_dataset(data, num_images=20)
    return {
        **data_keys(data),
        "epochs": 3,
        "batch_size": 4,
        "num_threads": 1,
        "rank": 2,
        "lr": 1e-3,
        "dora_dropout": 0.2,
        "checkpoint_every_steps": 2,
        "device": "cpu",
    }


@pytest.fixture(scope="package")
def uninterrupted(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that met no fault; to be read only."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    config = write_config(directory / "config.yaml", keys)
    arguments = ["train", str(config), "--run-dir", str(directory / "run")]
    outcome = fresh_process.call(fresh_process.clip_hba, arguments, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return directory / "run"


@pytest.fixture
def run(uninterrupted: Path, tmp_path: Path) -> Path:
    """A copy of the uninterrupted run, to be damaged."""
    shutil.copytree(uninterrupted, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount, or mount again with other options, a file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(options: str) -> Path:
        if path.is_mount():
            options += ",remount"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], capture_output=True)
        if done.returncode:
            pytest.skip("mounting is not allowed here")
        return path

    yield mount
    if path.is_mount():
        subprocess.run(["umount", str(path)], check=True)
