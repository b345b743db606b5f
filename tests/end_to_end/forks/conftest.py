"""One baseline for all tests of forks: what damages it works on a copy."""

from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.data.standin import data_keys
from fork_tools import KEYS, command
from run_tools import write_config


@pytest.fixture(scope="package")
def keys(standin_data: Path) -> dict[str, Any]:
    more = {"batch_size": 16, "num_threads": 1, "rank": 4, "lr": 1e-3, "device": "cpu"}
    return {**data_keys(standin_data), **more, **KEYS}


@pytest.fixture(scope="package")
def baseline(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("baseline")
    config = write_config(directory / "baseline.yaml", keys)
    outcome = command(directory)("train", config, "--run-dir", directory / "run")
    assert outcome.code == 0, outcome.output
    return directory / "run"
