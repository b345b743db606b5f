"""How long a run takes from SIGTERM to a whole checkpoint, and what checkpoints within epochs cost.

    python benchmarks/interruption.py [--size ViT-B/32] [--signals 7] [--every 50]

The signal goes to a real `clip-hba` process at a random moment of its training; the clock stops when the
checkpoint has appeared under its name. The cost of step checkpoints is their time beside that of the steps.
"""

import argparse
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from clip_hba_behavior.data.standin import write_standin_dataset
from clip_hba_behavior.run.checkpoint import save_step_checkpoint
from clip_hba_behavior.run.checkpoint_files import list_step_checkpoints
from clip_hba_behavior.run.environment import describe_environment, provenance
from clip_hba_behavior.training.trainer import Trainer
from sizes import SIZES
from step_time import build, one_step, write_backbone


def seconds_to_checkpoint(command: list[str], run: Path, chance: random.Random) -> float:
    """Start a run, stop it by SIGTERM somewhere in its steps; return the seconds to the checkpoint.

    Raises:
        RuntimeError: the run ended in another way than with exit code 75.
    """
    ledger = run / "steps.jsonl"
    before = len(ledger.read_bytes()) if ledger.exists() else 0
    saved = set(list_step_checkpoints(run / "step_checkpoints"))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ledger.exists() or len(ledger.read_bytes()) <= before:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 2.0))
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    while not set(list_step_checkpoints(run / "step_checkpoints")) - saved and process.poll() is None:
        time.sleep(0.0005)
    took = time.perf_counter() - began
    if process.wait(timeout=120) != 75:
        raise RuntimeError(f"the run ended with exit code {process.returncode}")
    return took


def step_checkpoint_cost(trainer: Trainer, folder: Path, every: int) -> tuple[float, float]:
    """Time one step and one step checkpoint, medians; return the seconds of both."""
    step = one_step(trainer)
    origin = provenance(trainer.config, describe_environment(trainer.config, trainer.inputs))
    steps, saves = [], []
    for number in range(12):
        began = time.perf_counter()
        step()
        between = time.perf_counter()
        path = save_step_checkpoint(folder / "steps", trainer.snapshot(), origin)
        saves.append(time.perf_counter() - between)
        path.unlink()
        if number > 1:
            steps.append(between - began)
    return statistics.median(steps), statistics.median(saves)


def main() -> None:
    """Measure, and print two lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="ViT-B/32")
    parser.add_argument("--images", type=int, default=1300)
    parser.add_argument("--signals", type=int, default=7)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_standin_dataset(folder / "data", num_images=arguments.images, image_size=64)
        write_backbone(folder / "backbone", arguments.size)
        trainer = build(folder, arguments.threads, arguments.device, arguments.batch)
        step, save = step_checkpoint_cost(trainer, folder, arguments.every)
        print(
            f"{arguments.size}, batch {arguments.batch}: a step takes {step * 1e3:.0f} ms, a step checkpoint "
            f"{save * 1e3:.1f} ms; one every {arguments.every} steps costs {save / (arguments.every * step):.2%}",
            flush=True,
        )
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(trainer.config.model_dump(exclude={"run_dir"}) | {"epochs": 500}))
        run = folder / "run"
        start = [sys.executable, "-m", "clip_hba_behavior", "train", str(config), "--run-dir", str(run)]
        resume = [sys.executable, "-m", "clip_hba_behavior", "resume", str(run)]
        chance = random.Random(1)
        times = [
            seconds_to_checkpoint(start if number == 0 else resume, run, chance)
            for number in range(arguments.signals)
        ]
    print(
        f"from SIGTERM to a whole checkpoint: median {statistics.median(times):.2f} s, worst {max(times):.2f} s "
        f"of {arguments.signals}"
    )


if __name__ == "__main__":
    main()
