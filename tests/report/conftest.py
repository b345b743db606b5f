from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from run_tools import write_config


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 epochs on 40 images, of which 8 are tested on. Nothing may be written into it."""
    directory = tmp_path_factory.mktemp("reported")
    write_standin_dataset(directory / "data", num_images=40)
    keys: dict[str, Any] = {**data_keys(directory / "data"), "num_threads": 1, "rank": 2, "device": "cpu"}
    config = write_config(directory / "run.yaml", keys, epochs=3, batch_size=8, lr=1e-3)
    words = ["train", str(config), "--run-dir", str(directory / "things")]
    outcome = fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")
    assert outcome.code == 0, outcome.output
    return directory / "things"
