"""Tools of the tests of sweeps: the sweep's file, its table, and what is in its directory."""

import csv
import logging
import os
from pathlib import Path
from typing import Any

import yaml

import fresh_process
from clip_hba_behavior.run.checkpoint_files import list_checkpoints


def write_sweep(tmp_path: Path, baseline: Path | list[Path], name: str = "sweep", **keys: Any) -> Path:
    given = {
        "baseline": [str(each) for each in baseline] if isinstance(baseline, list) else str(baseline),
        "directory": str(tmp_path / name),
        "epochs": [2, 3],
        "kinds": ["random_target", "uniform_images"],
        "lengths": [1, 2],
        "processes": 2,
    }
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(given | keys))
    return path


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def epochs_on_disk(directory: Path) -> dict[str, list[int]]:
    """Of each run of a sweep the epochs of its checkpoints."""
    return {
        run.name: list(list_checkpoints(run / "dora_params")) for run in sorted((directory / "runs").iterdir())
    }


def clip_hba_with_signal(arguments: list[str], line: str, number: int) -> None:
    """Run a `clip-hba` command line as this process, which gets a signal when it first logs such a line.

    An epoch's line is logged after its evaluation and before its checkpoint is saved.
    """

    class Sender(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(line):
                logging.getLogger("clip_hba_behavior").removeHandler(self)
                os.kill(os.getpid(), number)

    logging.getLogger("clip_hba_behavior").addHandler(Sender())
    fresh_process.clip_hba(arguments)
