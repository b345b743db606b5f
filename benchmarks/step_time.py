"""Step and epoch beside the full forward, in turn in one process, medians of several.

    python benchmarks/step_time.py [--size ViT-B/32] [--images 128] [--repeats 3]

Prints seconds and ratios, the share of the measured matrix-multiply peak that the suffix reaches, the
cost of ledger and checkpoints, where a step's time goes by operation, and the peak resident memory of either
way in a process of its own.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from safetensors.torch import save_file

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys, standin_backbone_directory, write_standin_dataset
from clip_hba_behavior.model.architecture import ClipConfig, weight_shapes
from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.model.tokenizer import tokenize_prompts
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, LEDGER, format_record
from clip_hba_behavior.reproducibility.record.protocol import EpochDone, StepDone, end_record, step_record
from clip_hba_behavior.reproducibility.record.record_file import RecordFile
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.process import keep_freed_memory
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import save_dora_parameters
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.environment import describe_environment, provenance
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.run.results import RESULTS, format_row
from clip_hba_behavior.training.trainer import Trainer
from full_forward import BaselineEpoch, FullForward
from sizes import SIZES, architecture_keys
from step_profile import step_profile

ROUNDS = 3  # of steps and products, in turn, for each step of the full forward


def write_backbone(directory: Path, size: str) -> None:
    """Write a CLIP of a given size with random weights and the small CLIP's tokenizer."""
    standin = json.loads((standin_backbone_directory() / "config.json").read_text())["text_config"]
    of_text = {key: standin[key] for key in ("vocab_size", "bos_token_id", "eos_token_id")}
    keys = architecture_keys(size, **of_text)
    torch.manual_seed(0)
    weights = {}
    for name, shape in weight_shapes(ClipConfig.model_validate(keys)).items():
        is_norm = "norm" in name or "layrnorm" in name
        weights[name] = torch.ones(shape) if is_norm else torch.empty(shape).normal_(std=0.02)
        if name.endswith("bias"):
            weights[name].zero_()
    weights["logit_scale"].fill_(2.6592)  # CLIP's initial temperature
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(keys, indent=2))
    save_file(weights, directory / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((standin_backbone_directory() / name).read_bytes())


def build(folder: Path, num_threads: int, device: str, batch_size: int, precision: str = "float32") -> Trainer:
    """Make the project's trainer on the benchmark's files."""
    config = make_config(
        {
            **data_keys(folder / "data"),
            "backbone": folder / "backbone",
            "cache_dir": folder / "cache",
            "batch_size": batch_size,
            "eval_batch_size": batch_size,
            "num_threads": num_threads,
            "precision": precision,
            "device": device,
        }
    )
    trainer, _ = build_trainer(resolve_config(config), Session(logging.getLogger("bench")))
    trainer.begin()
    return trainer


def build_baseline(trainer: Trainer, batch_size: int) -> BaselineEpoch:
    """Make the earlier pipeline's loop on the same model and data."""
    config = trainer.config
    backbone = load_backbone(config.backbone).to(trainer.inputs.device)
    prompts = Path(str(config.prompts_file)).read_text().splitlines()
    text = backbone.config.text_config
    token_ids, _ = tokenize_prompts(prompts, config.backbone, None, text.vocab_size, text.max_position_embeddings)
    model = FullForward(backbone, trainer.model, token_ids.to(trainer.inputs.device))
    return BaselineEpoch(model, trainer.inputs, batch_size)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time one call, waiting for the device."""
    synchronize(device)
    began = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until a CUDA device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Measure the best rate of a product, in multiply-adds x 2 a second."""
    size = 8192 if device.type != "cpu" else 2048 if dtype == torch.float32 else 512
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / min(seconds(lambda: a @ b, device) for _ in range(8))


def suffix_operations(trainer: Trainer, batch: int) -> float:
    """Count the multiply-adds x 2 of one step's large products, forward and backward.

    A token that passes a block's `out_proj` and MLP costs 9 width^2 forward; backward the MLP's inputs
    (8) and the adapted weight (1). The last block does this for one token an image, plus its query and
    the two projections of one vector a head.
    """
    width = trainer.inputs.image_cache.row_shape[-1]
    tokens = trainer.inputs.image_cache.row_shape[-2]
    return 2 * batch * width**2 * (18 * tokens + 18 + 6)


def one_step(trainer: Trainer) -> Callable[[], object]:
    """Return a call that does the next training step, beginning a new epoch where one ends."""
    steps = trainer.steps()

    def step() -> None:
        nonlocal steps
        if next(steps, None) is None:
            trainer.finish_epoch()
            steps = trainer.steps()
            next(steps)

    return step


def one_epoch(trainer: Trainer) -> None:
    """Train and evaluate one epoch."""
    for _ in trainer.steps():
        pass
    trainer.finish_epoch()


def bookkeeping(trainer: Trainer, folder: Path) -> float:
    """Time what one epoch writes: ledger lines, CSV row, checkpoint; in seconds."""
    directory = RunDirectory(folder / "run")
    directory.path.mkdir(exist_ok=True)
    directory.checkpoints.mkdir(exist_ok=True)
    origin = provenance(trainer.config, describe_environment(trainer.config, trainer.inputs))
    logger = logging.getLogger("bench")
    ledger = RecordFile(directory.ledger_file, (trainer.epoch - 1, 0), LEDGER)
    results = RecordFile(directory.results_file, (0, 0), RESULTS)
    began = time.perf_counter()
    epoch = trainer.epoch
    for step in range(1, trainer.num_steps() + 1):
        event = StepDone(epoch, step, trainer.num_steps(), "0" * 16, 1.0)
        ledger.append((epoch - 1, step), format_record(epoch, step, step_record(event, trainer)))
    state = trainer.snapshot()
    record = end_record(EpochDone(epoch, trainer.metrics), state, trainer)
    ledger.append((epoch, 0), format_record(epoch, END_OF_EPOCH, record))
    ledger.commit()
    results.append((trainer.epoch, 0), format_row(trainer.metrics))
    results.commit()
    save_dora_parameters(trainer.model, directory.checkpoints, trainer.epoch, logger, True, state, origin)
    directory.write_best(trainer.epoch, trainer.metrics["test_loss"])
    took = time.perf_counter() - began
    ledger.close()
    results.close()
    return took


def memory(which: str, arguments: argparse.Namespace, folder: Path) -> str:
    """Run one epoch of one way in a process of its own; say how much memory it held."""
    command = [sys.executable, __file__, "--memory-of", which, "--folder", str(folder)]
    command += ["--threads", str(arguments.threads), "--device", arguments.device, "--batch", str(arguments.batch)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]


def measure_memory(arguments: argparse.Namespace) -> None:
    """Do one epoch and print the resident size: at its peak, start included, and after the epoch."""
    trainer = build(arguments.folder, arguments.threads, arguments.device, arguments.batch)
    if arguments.memory_of == "project":
        trainer.inputs.backbone.drop()
        one_epoch(trainer)
    else:
        trainer.inputs.backbone.drop()  # the baseline brings its own
        build_baseline(trainer, arguments.batch).run(trainer.split.train, trainer.split.test)
    # VmHWM, not ru_maxrss, which a process takes over from its parent
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, now = (int(status[name].split()[0]) / 2**20 for name in ("VmHWM", "VmRSS"))
    print(f"{peak:.2f} GiB at the peak, {now:.2f} GiB after the epoch")


def main() -> None:
    """Measure, and print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="ViT-B/32")
    parser.add_argument("--images", type=int, default=160, help="annotated images; 0.8 of them train")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory-of", choices=["project", "baseline"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        measure_memory(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary:
        report(arguments, Path(temporary))


def report(arguments: argparse.Namespace, folder: Path) -> None:
    """Measure one size, and print the figures."""
    write_standin_dataset(folder / "data", num_images=arguments.images, image_size=64)
    write_backbone(folder / "backbone", arguments.size)
    began = time.perf_counter()
    trainer = build(folder, arguments.threads, arguments.device, arguments.batch)
    device = trainer.inputs.device
    print(f"{arguments.size}, batch {arguments.batch}, {arguments.threads} threads, {device}")
    print(f"images: {len(trainer.split.train)} train, {len(trainer.split.test)} test, 48 held out")
    print(f"start, with the frozen features computed once: {time.perf_counter() - began:.1f} s")
    baseline = build_baseline(trainer, arguments.batch)
    keep_freed_memory()  # as training does, for both ways
    rows = trainer.split.train[: arguments.batch]

    times: dict[str, list[float]] = {name: [] for name in ("step", "epoch", "base step", "base epoch", "files")}
    fastest: list[float] = []
    peaks: list[float] = []
    one_epoch(trainer)  # warm up
    for _ in range(arguments.repeats):
        times["base step"].append(seconds(lambda: baseline.step(rows), device))
        steps = []
        for _ in range(ROUNDS):
            step = one_step(trainer)
            steps += [seconds(step, device) for _ in range(trainer.num_steps())]
            trainer.finish_epoch()
            peaks.append(matmul_peak(device))
        times["step"].append(statistics.median(steps))
        fastest.append(min(steps))
        times["base epoch"].append(seconds(lambda: baseline.run(trainer.split.train, trainer.split.test), device))
        times["epoch"].append(seconds(lambda: one_epoch(trainer), device))
        times["files"].append(bookkeeping(trainer, folder))
        print(".", end="", flush=True)
    print()
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':8}{'full forward':>14}{'this project':>14}{'ratio':>8}")
    for name in ("step", "epoch"):
        base, mine = median[f"base {name}"], median[name]
        print(f"{name:8}{base:>12.3f} s{mine:>12.3f} s{base / mine:>7.1f}x")
    # the fastest of both: other programs slow a step and a product down, each in its own moment
    rate, peak = suffix_operations(trainer, len(rows)) / min(fastest), max(peaks)
    print(
        f"suffix, fastest step: {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the fastest matrix product's rate"
    )
    full_epoch = 23 * median["step"]  # 1,444 training images are 23 batches
    print(
        f"ledger, CSV row and checkpoint: {median['files'] * 1e3:.1f} ms an epoch, "
        f"{median['files'] / median['epoch']:.2%} of this epoch, "
        f"{median['files'] / full_epoch:.2%} of the steps of one with 1,444 training images"
    )
    of_step = step_profile(one_step(trainer), min(3, trainer.num_steps()), device)
    for group, spent in of_step.items():
        print(f"  {group:<32}{spent * 1e3:>9.1f} ms{spent / sum(of_step.values()):>6.0%} of a step")
    for which in ("baseline", "project"):
        print(f"resident memory, {which}: {memory(which, arguments, folder)}")


if __name__ == "__main__":
    main()
