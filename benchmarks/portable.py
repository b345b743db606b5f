"""Time portable arithmetic beside native, in turn in one process: medians of several, and their ratios.

    python benchmarks/portable.py [--size small] [--size ViT-B/32] [--threads 1] [--threads 2] [--repeats 5]

A step is forward, backward and AdamW on one batch of random features; an epoch two steps, and the predictions of
112 images; the prefix is the frozen part of the image tower on random pixels. Weights are random. With one thread
the processor's time is measured, which other programs disturb less than the clock's.
"""

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))

import torch

from clip_hba_behavior import exact
from clip_hba_behavior.data.standin import standin_backbone_directory
from clip_hba_behavior.model.architecture import ClipConfig, weight_shapes
from clip_hba_behavior.model.clip import Clip
from clip_hba_behavior.model.clip_hba import CLIPHBA, FrozenPrefix
from clip_hba_behavior.model.operations import NativeOperations, Operations, PortableOperations
from sizes import SIZES, architecture_keys

product = importlib.import_module("clip_hba_behavior.exact.product")
cross = importlib.import_module("clip_hba_behavior.exact.cross")  # the package has a function of this name
KINDS = ("native", "portable")
PROMPT_TOKENS = 9
BATCH = 64


def architecture(size: str) -> ClipConfig:
    """Return the architecture of a size."""
    if size == "small":  # the small CLIP that comes with the package
        return ClipConfig.model_validate(json.loads((standin_backbone_directory() / "config.json").read_text()))
    return ClipConfig.model_validate(architecture_keys(size, vocab_size=1000))


def random_weights(config: ClipConfig) -> dict[str, torch.Tensor]:
    """Draw weights; the blocks of a tower share theirs."""
    generator = torch.Generator().manual_seed(0)
    shared: dict[str, torch.Tensor] = {}
    weights = {}
    for name, shape in weight_shapes(config).items():
        of_any_block = ".".join(part for part in name.split(".") if not part.isdigit())
        if of_any_block not in shared:
            drawn = torch.randn(shape, generator=generator).mul_(0.02)
            shared[of_any_block] = drawn.add_(1.0) if "norm" in name and name.endswith("weight") else drawn
        weights[name] = shared[of_any_block]
    weights["logit_scale"] = torch.tensor(2.6592)
    return weights


class Work:
    """A model of one kind of arithmetic, with random inputs."""

    def __init__(self, kind: str, size: str, batch: int) -> None:
        torch.manual_seed(0)
        config = architecture(size)
        self.batch = batch
        self.clip = Clip(config, random_weights(config))
        ends = torch.full((66,), PROMPT_TOKENS - 1)
        self.model = CLIPHBA(self.clip, 2, 1, 32, 0.1, ends, self._operations(kind, True))
        generator = torch.Generator().manual_seed(1)
        for parameter in self.model.dora_parameters().values():
            if parameter.dim() == 2:
                parameter.data.normal_(std=0.05, generator=generator)
        vision, text = config.vision_config, config.text_config
        tokens = (vision.image_size // vision.patch_size) ** 2 + 1
        self.features = torch.randn(batch, 2, tokens, vision.hidden_size, generator=generator)
        self.prompts = torch.randn(66, 2, 1, text.hidden_size, generator=generator)
        self.targets = torch.rand(batch, 66, generator=generator)
        few = max(1, min(16, 800 // tokens))
        self.pixels = torch.randn(few, 3, vision.image_size, vision.image_size, generator=generator)
        self.prefix_of_images = FrozenPrefix(self.clip, "vision", 2, self._operations(kind, False))
        settings: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.01}
        parameters = self.model.dora_parameters().values()
        self.optimizer: torch.optim.Optimizer
        if kind == "portable":
            self.optimizer = exact.AdamW(parameters, **settings)
        else:
            self.optimizer = torch.optim.AdamW(parameters, fused=True, **settings)

    def _operations(self, kind: str, keeps_weights: bool) -> Operations:
        return PortableOperations(keeps_weights) if kind == "portable" else NativeOperations("flash")

    def step(self) -> None:
        """Train on one batch."""
        self.model.train()
        predictions = self.model(self.features, self.prompts)
        self.optimizer.zero_grad()
        self.model.operations.mse_loss(predictions, self.targets).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        """Train on two batches, predict 64 test images and 48 held-out ones."""
        self.step()
        self.step()
        self.model.eval()
        with torch.no_grad():
            predictions = self.model(self.features, self.prompts)
            self.model.operations.mse_loss(predictions, self.targets)
            self.model(self.features[: 3 * self.batch // 4], self.prompts)

    def prefix(self) -> None:
        """Compute the frozen features of a few images."""
        self.prefix_of_images(self.pixels, torch.zeros(len(self.pixels), dtype=torch.int64))


def in_turn(functions: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Call the functions in turn; return the median seconds of each."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            began = clock()
            function()
            taken[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in taken.items()}


def shares(step: Callable[[], None]) -> str:
    """Say where a portable step's time goes."""
    taken = {"products": 0.0, "rounding": 0.0}

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            began = time.process_time()
            result = function(*arguments)
            taken[part] += time.process_time() - began
            return result

        return call

    with (
        mock.patch.object(product, "multiply", timed("products", product.multiply)),
        mock.patch.object(product, "on_grids", timed("rounding", product.on_grids)),
        mock.patch.object(cross, "add_product", timed("products", cross.add_product)),
        mock.patch.object(cross, "in_two", timed("rounding", cross.in_two)),
        mock.patch.object(cross, "largest_of_columns", timed("rounding", cross.largest_of_columns)),
    ):
        began = time.process_time()
        step()
        whole = time.process_time() - began
    taken["other"] = whole - sum(taken.values())
    return ", ".join(f"{part} {seconds / whole:.0%}" for part, seconds in taken.items())


def peak_memory(size: str, batch: int) -> dict[str, float]:
    """Return the peak resident size of three steps of each kind, in a process of its own, in GiB."""
    peaks = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--memory-of", kind, "--size", size, "--batch", str(batch)]
        peaks[kind] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peaks


def print_peak_memory(kind: str, size: str, batch: int) -> None:
    """Print this process's peak resident size after three steps, in GiB."""
    torch.set_num_threads(1)
    work = Work(kind, size, batch)
    for _ in range(3):
        work.step()
    # VmHWM, not ru_maxrss, which a process takes over from its parent
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(int(status["VmHWM"].split()[0]) / 2**20)


def report(size: str, num_threads: int, repeats: int, batch: int) -> None:
    """Measure one size with a number of threads, and print a line for each piece of work."""
    torch.set_num_threads(num_threads)
    works = {kind: Work(kind, size, batch) for kind in KINDS}
    for work in works.values():
        work.step()
    print(f"{size}, batch {batch}, {num_threads} thread{'s' * (num_threads > 1)}")
    for name in ("step", "epoch", "prefix"):
        seconds = in_turn({kind: getattr(work, name) for kind, work in works.items()}, repeats)
        native, portable = (seconds[kind] * 1000 for kind in KINDS)
        print(f"  {name:7} native {native:9.1f} ms  portable {portable:9.1f} ms  ratio {portable / native:5.2f}")
    print(f"  of a portable step: {shares(works['portable'].step)}")


def main() -> None:
    """Measure, and print a report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, action="append", help="default: small and ViT-B/32")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--engine", choices=("float64", "int8", "auto"), default="float64")
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    exact.use_engine(arguments.engine)
    for size in arguments.size or ("small", "ViT-B/32"):
        if arguments.memory_of:
            print_peak_memory(arguments.memory_of, size, arguments.batch)
            continue
        for num_threads in arguments.threads or (1, 2):
            report(size, num_threads, arguments.repeats, arguments.batch)
        peaks = peak_memory(size, arguments.batch)
        print(
            f"  peak memory: native {peaks['native']:.2f} GiB, portable {peaks['portable']:.2f} GiB, "
            f"ratio {peaks['portable'] / peaks['native']:.2f}"
        )


if __name__ == "__main__":
    main()
