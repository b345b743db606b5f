"""What all frameworks train alike: settings, data, model, and the record of each step that is compared.

Each script beside this one takes the same command line, trains in the given directory, and may be killed there.
"""

import argparse
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, get_worker_info

NUM_SAMPLES = 500
SEED = 1


@dataclass(frozen=True)
class Settings:
    """One run of one script.

    Attributes:
        directory: of the run: its checkpoints, `steps.txt` and `final.bin`.
        epochs: how many.
        batch_size: images of a step; the last batch of an epoch is shorter.
        lr: learning rate at the beginning; it falls along a cosine, step by step.
        workers: processes that load images.
        checkpoint_every: steps between checkpoints; 0: a checkpoint at the end of each epoch.
        augment: add noise to each image, drawn where the image is loaded.
        changed_data: one label is another.
        kill_at: the step after which the process kills itself; 0: none.
        resume: go on from the newest checkpoint in the directory.
    """

    directory: Path
    epochs: int
    batch_size: int
    lr: float
    workers: int
    checkpoint_every: int
    augment: bool
    changed_data: bool
    kill_at: int
    resume: bool

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches of an epoch."""
        return -(-NUM_SAMPLES // self.batch_size)


def read_settings() -> Settings:
    """Read the command line, and begin alike: one thread, deterministic kernels, all three streams seeded."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=0)
    parser.add_argument("--augment", action="store_true")
    parser.add_argument("--changed-data", action="store_true")
    parser.add_argument("--kill-at", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    settings = Settings(**vars(parser.parse_args()))
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    return settings


class Images(Dataset[dict[str, Tensor]]):
    """Images `[1, 16, 16] float32` with labels 0 to 9, the same in each process."""

    def __init__(self, settings: Settings) -> None:
        """Draw them; the settings say whether to augment, and whether a label is another."""
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randn(NUM_SAMPLES, 1, 16, 16, generator=generator)
        self.labels = torch.randint(10, (NUM_SAMPLES,), generator=generator)
        self.generator_of: Callable[[int], torch.Generator] | None = None
        """Gives the generator of an image's noise; without it, the global stream is drawn from."""
        self._augment = settings.augment
        if settings.changed_data:
            self.labels[7] = (self.labels[7] + 1) % 10

    def __len__(self) -> int:
        """Return the number of images."""
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return an image and its label."""
        pixels = self.pixels[index]
        if self._augment:
            generator = self.generator_of(index) if self.generator_of else None
            pixels = pixels + 0.1 * torch.randn(pixels.shape, generator=generator)
        return {"pixels": pixels, "labels": self.labels[index]}


class ResumableImages(Images):
    """Images whose state is the random stream of the loader's worker, as torchdata's tutorial says to save it."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return the worker's stream; nothing in the process that trains."""
        return {} if get_worker_info() is None else {"torch": torch.get_rng_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the worker's stream back."""
        if state and get_worker_info() is not None:
            torch.set_rng_state(state["torch"])


def make_model() -> nn.Module:
    """Return a small convolutional network with batch norm and dropout."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(16 * 8 * 8, 10)),
    )


def make_optimizer(model: nn.Module, settings: Settings) -> tuple[torch.optim.Optimizer, "Schedule"]:
    """Return AdamW and its cosine schedule, which steps after each training step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr)
    num_steps = settings.epochs * settings.steps_per_epoch
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)


Schedule = torch.optim.lr_scheduler.LRScheduler


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the cross entropy of a batch."""
    return functional.cross_entropy(model(batch["pixels"]), batch["labels"])


def seed_worker(worker: int) -> None:
    """Seed a loader's worker, as PyTorch's page on reproducibility says."""
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


class Record:
    """The steps of a process, a line each in `steps.txt` or `resumed.txt`: number, loss, CPU time so far."""

    def __init__(self, settings: Settings) -> None:
        """Open the file."""
        self._settings = settings
        self._file = (settings.directory / ("resumed.txt" if settings.resume else "steps.txt")).open("w")

    def step(self, number: int, loss: Tensor) -> None:
        """Write down a completed step, counted from 1; kill this process if it is the one to be killed at."""
        self._file.write(f"{number} {float(loss.item()).hex()} {time.process_time()}\n")
        self._file.flush()
        if number == self._settings.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def end(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Write the raw bytes of the model and the optimizer at the end of training to `final.bin`."""
        state = optimizer.state_dict()
        tensors = {f"model {name}": value for name, value in model.state_dict().items()} | {
            f"optimizer {index} {name}": value
            for index, values in state["state"].items()
            for name, value in values.items()
        }
        with (self._settings.directory / "final.bin").open("wb") as file:
            for name, value in tensors.items():
                file.write(f"{name} {value.dtype} {list(value.shape)}\n".encode())
                file.write(value.detach().contiguous().numpy().tobytes())
            file.write(repr([float(group["lr"]).hex() for group in state["param_groups"]]).encode())
        self._file.close()
