import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys
from fresh_process import Outcome
from run_tools import trained


@pytest.fixture(scope="package", autouse=True)
def _workers_without_slow_imports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(fresh_process.SERVER_IN_ADVANCE, "1")
        yield


@pytest.fixture(scope="session")
def baseline(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four epochs."""
    return _trained(standin_data, tmp_path_factory, {"epochs": 4, "batch_size": 16})


@pytest.fixture(scope="session")
def second_baseline(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with another seed."""
    return _trained(standin_data, tmp_path_factory, {"epochs": 4, "batch_size": 16, "random_seed": 2})


@pytest.fixture(scope="session")
def slow_baseline(standin_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that takes seconds, so that a signal comes within a fork of it."""
    return _trained(standin_data, tmp_path_factory, {"epochs": 12, "batch_size": 1})


@pytest.fixture
def own_baseline(baseline: Path, tmp_path: Path) -> Path:
    """A copy of the baseline that a test may change."""
    mine = tmp_path / "baseline"
    shutil.copytree(baseline, mine)
    config = mine / "config.yaml"
    config.write_text(config.read_text().replace(str(baseline), str(mine)))
    return mine


@pytest.fixture
def requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine where `sbatch` takes every job and runs none; the file names what `scontrol` was asked for."""
    commands, asked = tmp_path / "commands", tmp_path / "scontrol.txt"
    commands.mkdir()
    for name, line in (("sbatch", "echo 7"), ("squeue", ":"), ("scontrol", f'echo "$@" >> {asked}')):
        (commands / name).write_text(f"#!/bin/sh\n{line}\n")
        (commands / name).chmod(0o755)
    asked.touch()
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    return asked


def _trained(data: Path, factory: pytest.TempPathFactory, keys: dict[str, Any]) -> Path:
    directory = factory.mktemp("baseline")
    config = {**data_keys(data), "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}

    def clip_hba(*arguments: object) -> Outcome:
        texts = [str(each) for each in arguments]
        return fresh_process.call(fresh_process.clip_hba, texts, output=directory / "output.txt")

    return trained(clip_hba, directory, config | keys, "baseline")
