from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.report.output import write_report
from fresh_process import Outcome
from run_tools import write_config

Called = Callable[..., Outcome]


@pytest.fixture(scope="session")
def call(tmp_path_factory: pytest.TempPathFactory) -> Called:
    """Run `clip-hba` in a fresh process."""
    output = tmp_path_factory.mktemp("output") / "output.txt"
    return lambda *words: fresh_process.call(fresh_process.clip_hba, [str(each) for each in words], output=output)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic data set, and `config.yaml`, which says where it is."""
    directory = tmp_path_factory.mktemp("data")
    write_standin_dataset(directory, num_images=20)
    write_config(directory / "config.yaml", data_keys(directory))
    return directory


@pytest.fixture(scope="session")
def train(tmp_path_factory: pytest.TempPathFactory, data: Path, call: Called) -> Callable[..., Path]:
    """Train a run with some keys, and return its directory."""

    def train(**keys: Any) -> Path:
        directory = tmp_path_factory.mktemp("trained")
        small = {"epochs": 4, "batch_size": 8, "rank": 2, "lr": 1e-3, "num_threads": 1, "device": "cpu"}
        config = write_config(directory / "run.yaml", data_keys(data) | small | keys)
        outcome = call("train", config, "--run-dir", directory / "things")
        assert outcome.code == 0, outcome.output
        return directory / "things"

    return train


@pytest.fixture(scope="session")
def run(train: Callable[..., Path], call: Called) -> Path:
    """A run in portable arithmetic with a certificate and a report. Nothing may be written into it."""
    run = train(arithmetic="portable")
    outcome = call("verify", "checkpoints", run, "--epochs", "4", "--json", run / "certificate.json")
    assert outcome.code == 0, outcome.output
    # drawn pages take long, and are bytes like others here
    write_report(run / "report", {"index.html": b"<html>\n", "figures/losses.pdf": b"%PDF\n"})
    return run


@pytest.fixture(scope="session")
def bundle(run: Path, call: Called, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's bundle."""
    path = tmp_path_factory.mktemp("bundle") / "things.zip"
    outcome = call("bundle", run, "--out", path)
    assert outcome.code == 0, outcome.output
    return path
