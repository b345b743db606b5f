"""What an epoch costs beside its computation: batches put together, digests, ledger, results, checkpoint.

    python benchmarks/overhead.py [--epochs 20] [--repeats 3] [--before CHECKOUT]

Trains the synthetic data set as `clip-hba train` does. After each epoch the same number of bare steps and
evaluations is computed, on inputs that are at hand: forward, backward, optimizer, and one pass over test and
held-out images with the prompts encoded once. The overhead is the first less the second, median of all epochs,
in the processor's time and by the clock. With --before, another checkout of this project is measured too, in turn.
"""

import argparse
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from clip_hba_behavior.config import Config, make_config
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.life import start
from clip_hba_behavior.run.log import silent
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.state import TrainingState

Times = tuple[float, float]  # of the processor, by the clock; in seconds


def now() -> Times:
    """Return both times."""
    return time.process_time(), time.perf_counter()


def since(began: Times) -> Times:
    """Return what has passed of both."""
    cpu, clock = now()
    return cpu - began[0], clock - began[1]


class BareEpoch:
    """The computation of one epoch, and nothing else; written against what every version has."""

    def __init__(self, config: Config) -> None:
        """Gather the inputs of all batches."""
        trainer, _ = build_trainer(config, Session(logging.getLogger("bench")))
        trainer.begin()
        inputs, split = trainer.inputs, trainer.split
        self.trainer, self.prompts = trainer, inputs.prompt_features
        self.batches = [
            (inputs.image_features(rows), inputs.targets[rows]) for rows in split.train.split(config.batch_size)
        ]
        size = config.eval_batch_size
        rows_of_each = [*split.test.split(size), *inputs.inference_rows().split(size)]
        self.evaluated = [inputs.image_features(rows) for rows in rows_of_each]

    def run(self) -> None:
        """Compute."""
        model, optimizer = self.trainer.model, self.trainer.optimizer
        model.train()
        for features, targets in self.batches:
            loss = model.operations.mse_loss(model(features, self.prompts), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            prompts = model.encode_prompts(self.prompts)
            for features in self.evaluated:
                model.operations.linear(model.logit_scale * model.encode_images(features), prompts, None)


def measure(arguments: argparse.Namespace) -> None:
    """Train a run, and print the times of each epoch and of its computation alone."""
    silent()
    keys = {"epochs": arguments.epochs, "batch_size": 32, "num_threads": 1, "arithmetic": arguments.arithmetic}
    with tempfile.TemporaryDirectory() as folder:
        config = make_config(keys | {"run_dir": str(Path(folder) / "run")})
        bare = BareEpoch(resolve_config(config))
        before: Times | None = None
        epochs: list[tuple[Times, Times]] = []

        def at_the_end_of_an_epoch(_state: TrainingState) -> None:
            # Before it is written down: what is between two such moments has everything of an epoch.
            nonlocal before
            of_epoch = since(before) if before is not None else None
            began = now()
            bare.run()
            if of_epoch is not None:
                epochs.append((of_epoch, since(began)))
            before = now()

        start(config, check=at_the_end_of_an_epoch)
    for of_epoch, of_bare in epochs:
        print(*of_epoch, *of_bare)


def measured(checkout: Path, arguments: argparse.Namespace) -> list[list[float]]:
    """Measure a checkout in a process of its own."""
    command = [sys.executable, __file__, "--measure", "--epochs", str(arguments.epochs)]
    command += ["--arithmetic", arguments.arithmetic]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return [[float(number) for number in line.split()] for line in output.splitlines()]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="of each run; the first is not counted")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--arithmetic", choices=("native", "portable"), default="native")
    parser.add_argument("--before", type=Path, help="another checkout of this project")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    checkouts = {"now": Path(__file__).parents[1]}
    if arguments.before is not None:
        checkouts = {"before": arguments.before.resolve()} | checkouts
    rows: dict[str, list[list[float]]] = {name: [] for name in checkouts}
    for _ in range(arguments.repeats):
        for name, checkout in checkouts.items():
            rows[name] += measured(checkout, arguments)
    print(f"{'':8}{'epoch':>12}{'computation':>14}{'overhead':>12}{'by the clock':>14}")
    for name, found in rows.items():
        epoch, bare = (statistics.median(row[column] for row in found) for column in (0, 2))
        overhead = statistics.median(row[0] - row[2] for row in found)
        by_clock = statistics.median(row[1] - row[3] for row in found)
        milliseconds = [1e3 * each for each in (epoch, bare, overhead, by_clock)]
        print(f"{name:8}" + "{:>9.1f} ms{:>11.1f} ms{:>9.1f} ms{:>11.1f} ms".format(*milliseconds))


if __name__ == "__main__":
    main()
