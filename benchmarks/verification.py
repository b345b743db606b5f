"""What verifying an epoch costs beside training it, in turn in one process, medians of several.

    python benchmarks/verification.py [--size ViT-B/32] [--images 320] [--epochs 2] [--repeats 3]

Training is `train_model` with all it writes; verifying is what `clip-hba verify checkpoints` does for each
epoch. Start-up (imports, weights, frozen features) is left out of both, since both do the same.
"""

import argparse
import logging
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import write_standin_dataset
from clip_hba_behavior.reproducibility.record.judge import Verdict
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.checkpoint import save_dora_parameters
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.environment import describe_environment, provenance
from clip_hba_behavior.run.life import train_model
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.training.trainer import Trainer
from clip_hba_behavior.verification.files import RunFiles
from clip_hba_behavior.verification.replays import ReplayHistory
from clip_hba_behavior.verification.verify import EpochVerifier
from sizes import SIZES
from step_time import build, write_backbone

LOGGER = logging.getLogger("benchmark")


def train(trainer: Trainer, start: TrainingState, path: Path) -> float:
    """Train from a state into a new run directory; return the seconds."""
    trainer.restore(start)
    session = Session(LOGGER)
    environment = describe_environment(trainer.config, trainer.inputs)
    directory = RunDirectory(path)
    with directory.created():
        directory.write_config(trainer.config)
        directory.write_environment(environment)
        origin = provenance(trainer.config, environment)
        save_dora_parameters(
            trainer.model, directory.checkpoints, 0, LOGGER, training_state=start, provenance=origin
        )
        began = time.perf_counter()
        train_model(trainer, directory, environment, session)
        return time.perf_counter() - began


def verify(trainer: Trainer, path: Path) -> float:
    """Verify every epoch of a run; return the seconds.

    Raises:
        RuntimeError: an epoch was not reproducible; then the times mean nothing.
    """
    built = trainer, describe_environment(trainer.config, trainer.inputs)
    began = time.perf_counter()
    files = RunFiles(path)
    verifier = EpochVerifier(files, ReplayHistory(files, Replayer(trainer.config, Session(LOGGER), built)))
    for epoch in range(1, trainer.config.epochs + 1):
        outcome = verifier.verify(epoch).outcome
        if outcome.word is not Verdict.REPRODUCIBLE:
            raise RuntimeError(f"epoch {epoch}: {outcome.differences}")
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="ViT-B/32")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_standin_dataset(folder / "data", num_images=arguments.images, image_size=64)
        write_backbone(folder / "backbone", arguments.size)
        trainer = build(folder, arguments.threads, arguments.device, arguments.batch)
        trainer.config = make_config(trainer.config.model_dump() | {"epochs": arguments.epochs})
        start = trainer.snapshot()
        ratios, times = [], []
        for repeat in range(arguments.repeats + 1):
            run = folder / f"run{repeat}"
            pair = train(trainer, start, run), verify(trainer, run)
            if repeat > 0:  # the first warms up
                times.append(pair)
                ratios.append(pair[1] / pair[0])
            shutil.rmtree(run)
    trained, verified = (statistics.median(each) / arguments.epochs for each in zip(*times, strict=True))
    print(
        f"{arguments.size}, {arguments.images} images, batch {arguments.batch}, {arguments.threads} threads, "
        f"{arguments.device}: an epoch trains in {trained:.3f} s and is verified in {verified:.3f} s, "
        f"ratio {statistics.median(ratios):.2f} (median of {arguments.repeats})"
    )


if __name__ == "__main__":
    main()
