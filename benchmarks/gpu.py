"""What must be shown on a GPU, in one call: tests, resumes, seconds of an epoch, a run from a cold start, memory.

    python benchmarks/gpu.py [--out figures.md]
    python benchmarks/gpu.py --size small --images 24 --epochs 2 --batch 16   # on a CPU: does it run?

Weights and images are drawn. By default 1,805 images, of which 1,444 train, at ViT-L/14 size, batch 64, in each
precision: every test that needs a GPU is run; a short run is resumed from each of its epochs, and must leave the
same bytes; an epoch is timed, with its share of the measured matrix-multiply peak, and profiled for what it waits
for; 93 epochs of `clip-hba train` are timed from the start of the process to its end. It prints a table,
writes it to a file, and exits with 1 if a test fails or a byte differs. Without a GPU it says which parts need
one.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch.profiler import ProfilerActivity, profile

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import write_standin_dataset
from clip_hba_behavior.reproducibility.state.environment import device_model
from clip_hba_behavior.run.life import resume, start
from clip_hba_behavior.run.log import silent
from clip_hba_behavior.training.trainer import Trainer
from sizes import SIZES
from step_time import (
    build,
    matmul_peak,
    one_epoch,
    seconds,
    suffix_operations,
    synchronize,
    write_backbone,
)

PRECISIONS = ("float32", "tf32", "bfloat16")
NEEDS_A_GPU = "needs a GPU"
REPOSITORY = Path(__file__).parent.parent
_EPOCHS_RESUMED = 3
# Host calls in which a process waits for its device.
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


class Figures:
    """A table by what was measured and precision, and lines below it."""

    def __init__(self, title: str) -> None:
        """Begin an empty table."""
        self.title = title
        self.rows: dict[str, dict[str, str]] = {}
        self.lines: list[str] = []
        self.failures: list[str] = []

    def put(self, what: str, precision: str, value: str) -> None:
        """Enter a value, and print it."""
        self.rows.setdefault(what, {})[precision] = value
        print(f"{precision:>9}: {what}: {value}", flush=True)

    def add(self, line: str) -> None:
        """Add a line, and print it."""
        self.lines.append(line)
        print(line, flush=True)

    def fail(self, what: str) -> None:
        """Note what is wrong."""
        self.failures.append(what)
        self.add(f"FAILED: {what}")

    def as_markdown(self) -> str:
        """Return all of it."""
        table = [f"| | {' | '.join(PRECISIONS)} |", f"|---|{len(PRECISIONS) * '---|'}"]
        for what, values in self.rows.items():
            table.append(f"| {what} | {' | '.join(values.get(each, '') for each in PRECISIONS)} |")
        return "\n".join([f"# {self.title}", "", *table, "", *(f"- {line}" for line in self.lines), ""])


def run_tests(figures: Figures, device: torch.device) -> None:
    """Run every test that is marked as one of a GPU."""
    if device.type != "cuda":
        figures.add(f"tests marked `cuda`: {NEEDS_A_GPU}")
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-p",
        "no:cacheprovider",
        str(REPOSITORY / "tests"),
    ]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    figures.add(f"tests marked `cuda`: {ended.stdout.strip().splitlines()[-1].strip('= ')}")
    if ended.returncode:
        figures.fail("a test marked `cuda`; run python -m pytest -m cuda")
        print(ended.stdout)


def written(run: Path) -> dict[str, bytes]:
    """Return the bytes that a run and its repetition must share."""
    files = [*(run / "dora_params").iterdir(), *(run / name for name in ("steps.jsonl", "training_res.csv"))]
    return {path.name: path.read_bytes() for path in files}


def resume_everywhere(
    figures: Figures, keys: dict[str, object], precision: str, epochs: int, folder: Path
) -> None:
    """Train a short run, and resume it from the state after each epoch: the bytes must be the same."""
    run = start(make_config({**keys, "epochs": epochs, "run_dir": str(folder / f"{precision}-run")}))
    expected, others = written(run), []
    for epoch in range(epochs):
        found = written(resume(run, from_epoch=epoch, new_dir=folder / f"{precision}-from{epoch}"))
        others += [f"epoch {epoch}: {name}" for name in expected if expected[name] != found.get(name)]
    figures.put("resumed from every epoch", precision, "other bytes" if others else "the same bytes")
    if others:
        figures.fail(f"{precision}: resumed, other bytes: {', '.join(others)}")


def time_epochs(figures: Figures, trainer: Trainer, precision: str, repeats: int) -> None:
    """Time epochs, and compare the steps with the device's best at products alone."""
    device = trainer.inputs.device
    one_epoch(trainer)  # warm up
    steps, epochs = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        steps.append(seconds(lambda: all(True for _ in trainer.steps(lambda step: False)), device))
        trainer.finish_epoch()
        synchronize(device)
        epochs.append(time.perf_counter() - began)
    figures.put("an epoch (training, test, RSA)", precision, f"{statistics.median(epochs):.3f} s")
    figures.put("its training steps", precision, f"{statistics.median(steps):.3f} s")
    rate = suffix_operations(trainer, len(trainer.split.train)) / statistics.median(steps)
    peak = matmul_peak(device, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    figures.put("products' rate in the steps", precision, f"{rate / 1e12:.3f} TFLOP/s")
    figures.put("share of the measured peak", precision, f"{rate / peak:.0%} of {peak / 1e12:.2f}")


def profile_epoch(figures: Figures, trainer: Trainer, precision: str) -> None:
    """Tell how long the device was busy in an epoch's steps, with what, and how often it was waited for."""
    device = trainer.inputs.device
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        took = seconds(lambda: all(True for _ in trainer.steps(lambda step: False)), device)
    trainer.finish_epoch()
    averages, of = (
        found.key_averages(),
        "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total",
    )
    if device.type == "cuda":
        kernels = [(each.time_range.start, each.time_range.end) for each in found.events() if _is_on_gpu(each)]
        figures.put("device busy in the steps", precision, f"{1e-6 * covered(kernels) / took:.0%}")
        waits = [f"{each.count} x {each.key}" for each in averages if each.key in _WAITS]
        figures.put("waits for the device", precision, ", ".join(waits) or "none")
    else:
        figures.put("device busy in the steps", precision, NEEDS_A_GPU)
        figures.put("waits for the device", precision, NEEDS_A_GPU)
    largest = sorted(averages, key=lambda each: -getattr(each, of))[:6]
    total = sum(getattr(each, of) for each in averages)
    shares = ", ".join(f"{each.key[:60]} {getattr(each, of) / total:.0%}" for each in largest)
    figures.add(f"{precision}: most of the steps' time: {shares}")


def _is_on_gpu(event: object) -> bool:
    return str(getattr(event, "device_type", "")).endswith("CUDA")


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Return how much of a line some intervals cover together."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def train_cold(figures: Figures, keys: dict[str, object], precision: str, epochs: int, folder: Path) -> None:
    """Time `clip-hba train` from the start of its process to its end; the frozen features are in the cache."""
    config = make_config({**keys, "epochs": epochs, "early_stopping_patience": epochs + 1})
    file = folder / f"{precision}.yaml"
    file.write_text(config.to_yaml())
    run = folder / f"{precision}-cold"
    command = [sys.executable, "-m", "clip_hba_behavior", "train", str(file), "--run-dir", str(run)]
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
    figures.put(f"{epochs} epochs from a cold start", precision, f"{time.perf_counter() - began:.1f} s")


def measure(figures: Figures, arguments: argparse.Namespace, folder: Path) -> None:
    """Measure in each precision."""
    device = torch.device(arguments.device)
    for precision in PRECISIONS:
        if precision == "tf32" and device.type != "cuda":
            figures.put("an epoch (training, test, RSA)", precision, NEEDS_A_GPU)
            continue
        began = time.perf_counter()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        trainer = build(folder, arguments.threads, arguments.device, arguments.batch, precision)
        figures.put(
            "start, with the features if no cache has them", precision, f"{time.perf_counter() - began:.1f} s"
        )
        trainer.inputs.backbone.drop()
        figures.add(f"{precision}: {trainer.inputs.features.describe() or 'features are read from the cache'}")
        time_epochs(figures, trainer, precision, arguments.repeats)
        memory = (
            f"{torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB" if device.type == "cuda" else NEEDS_A_GPU
        )
        figures.put("device memory at its peak", precision, memory)
        profile_epoch(figures, trainer, precision)
        keys: dict[str, object] = trainer.config.model_dump()
        del trainer
        resume_everywhere(figures, keys, precision, min(_EPOCHS_RESUMED, arguments.epochs), folder)
        train_cold(figures, keys, precision, arguments.epochs, folder)


def main() -> int:
    """Measure, print, write; 1 if something failed, 2 if something given cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="ViT-L/14")
    parser.add_argument("--images", type=int, default=1805, help="annotated images; 0.8 of them train")
    parser.add_argument("--epochs", type=int, default=93, help="from a cold start")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cuda:0" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("gpu_figures.md"), help="where the table goes")
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} is there already; name another file with --out")
    if not torch.cuda.is_available() and (arguments.device != "cpu" or arguments.size == "ViT-L/14"):
        parser.error("no CUDA device is here; whether this runs at all shows: --size small --images 24 --epochs 2")
    device = torch.device(arguments.device)
    num_train = int(0.8 * arguments.images)
    figures = Figures(
        f"{arguments.size}, {num_train:,} training images, batch {arguments.batch}, on {device_model(device)}, "
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, Python {platform.python_version()}"
    )
    print(figures.title)
    silent()
    run_tests(figures, device)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_standin_dataset(folder / "data", num_images=arguments.images, image_size=64)
        write_backbone(folder / "backbone", arguments.size)
        measure(figures, arguments, folder)
    arguments.out.write_text(figures.as_markdown(), encoding="utf-8")
    print(f"\n{figures.as_markdown()}\nwritten to {arguments.out}")
    return 1 if figures.failures else 0


if __name__ == "__main__":
    sys.exit(main())
