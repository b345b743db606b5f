"""One small run for all tests that only read it."""

from pathlib import Path

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from run_tools import write_config


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A portable run of 2 epochs; its data are in `data` beside it. No test may change either."""
    directory = tmp_path_factory.mktemp("finished")
    write_standin_dataset(directory / "data", num_images=20)
    keys = {**data_keys(directory / "data"), "num_threads": 1, "rank": 2, "device": "cpu", "epochs": 2}
    config = write_config(directory / "run.yaml", keys, batch_size=8, arithmetic="portable")
    arguments = ["train", str(config), "--run-dir", str(directory / "run")]
    done = fresh_process.call(fresh_process.clip_hba, arguments, output=directory / "output.txt")
    assert done.code == 0, done.output
    return directory / "run"
