"""Tools of the tests of forks: how a fork is made, and what of two runs is compared."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.training.state import TrainingState
from fresh_process import Outcome

ClipHba = Callable[..., Outcome]

LAST = 5
# cosine and dropout: an epoch depends on its number, and on every draw before it
KEYS = {"epochs": LAST, "lr_schedule": "cosine", "dora_dropout": 0.1, "random_seed": 5}
KINDS: dict[str, list[str]] = {
    "random_target": ["--perturb", "random_target", "--perturb-seed", "7"],
    "random_target of the table": ["--perturb", "random_target", "--perturb-distribution", "target"],
    "label_shuffle": ["--perturb", "label_shuffle"],
    "image_noise": ["--perturb", "image_noise"],
    "uniform_images": ["--perturb", "uniform_images"],
    "reorder": ["--perturb", "reorder", "--perturb-seed", "7"],
    "earlier random_target": ["--perturb", "random_target", "--set", "perturb_rule=earlier"],
    "earlier label_shuffle": ["--perturb", "label_shuffle", "--set", "perturb_rule=earlier"],
}


def command(directory: Path) -> ClipHba:
    numbers = itertools.count()

    def run(*arguments: object) -> Outcome:
        output = directory / f"output{next(numbers)}.txt"
        return fresh_process.call(fresh_process.clip_hba, [str(each) for each in arguments], output=output)

    return run


def forked(clip_hba: ClipHba, baseline: Path, fork: Path, at_epoch: int, *options: object) -> Path:
    outcome = clip_hba("fork", baseline, "--at-epoch", at_epoch, *options, "--run-dir", fork)
    assert outcome.code == 0, outcome.output
    return fork


def state_of(run: Path, epoch: int) -> TrainingState:
    return read_checkpoint(checkpoint_path(run / "dora_params", epoch)).whole_state()


def later(run: Path, first: int) -> tuple[dict[int, Any], list[str], list[str]]:
    """States, rows and ledger lines of a run from an epoch on."""
    states = {
        epoch: read_checkpoint(path).state_digest
        for epoch, path in list_checkpoints(run / "dora_params").items()
        if epoch >= first
    }
    rows = (run / "training_res.csv").read_text().splitlines()[1:]
    lines = (run / "steps.jsonl").read_text().splitlines()
    return (
        states,
        [row for row in rows if int(row.partition(",")[0]) >= first],
        [line for line in lines if json.loads(line)["epoch"] >= first],
    )


def batches(run: Path) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for line in map(json.loads, (run / "steps.jsonl").read_text().splitlines()):
        if "batch" in line:
            found.setdefault(line["epoch"], []).append(line["batch"])
    return found


def parent_of(fork: Path) -> dict[str, Any]:
    return dict(json.loads((fork / "environment.json").read_text())["parent"])
