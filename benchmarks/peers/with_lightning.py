"""Lightning: `ModelCheckpoint`, `fit(..., ckpt_path=...)`, and a loader that Lightning can resume.

Lightning saves no random states; `--streams` adds a callback of one's own that does.
"""

import random
import sys
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from task import (
    SEED,
    Record,
    ResumableImages,
    Settings,
    loss_of,
    make_model,
    make_optimizer,
    read_settings,
    seed_worker,
)
from torch import Tensor
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler


class Network(lightning.LightningModule):
    """The model as a Lightning module."""

    def __init__(self, settings: Settings) -> None:
        """Make the network, and keep the settings in the checkpoint as Lightning's page says."""
        super().__init__()
        self.settings = settings
        self.save_hyperparameters({"lr": settings.lr, "batch_size": settings.batch_size})
        self.network = make_model()

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Return the loss."""
        return loss_of(self.network, batch)

    def configure_optimizers(self) -> Any:
        """Return the optimizer, and its schedule, which steps after each training step."""
        optimizer, schedule = make_optimizer(self.network, self.settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Steps(Callback):
    """Records each step."""

    def __init__(self, record: Record) -> None:
        """Keep the record."""
        self._record = record

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        """Record it."""
        self._record.step(trainer.global_step, outputs["loss"])


class Streams(Callback):
    """The random states, which Lightning leaves out; put back before the first step."""

    def __init__(self, seeds: torch.Generator) -> None:
        """Keep the loader's generator; nothing is loaded yet."""
        self._seeds = seeds
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the three streams, and the loader's generator."""
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "seeds": self._seeds.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep them until the first step: Lightning draws in between."""
        self._loaded = state

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        """Put them back."""
        if self._loaded is not None:
            random.setstate(self._loaded["python"])
            np.random.set_state(self._loaded["numpy"])
            torch.set_rng_state(self._loaded["torch"])
            self._seeds.set_state(self._loaded["seeds"])
            self._loaded = None


def main(with_streams: bool) -> None:
    """Train, or go on with `--resume`."""
    settings = read_settings()
    record = Record(settings)
    lightning.seed_everything(SEED, workers=True, verbose=False)
    every, seeds = settings.checkpoint_every, torch.Generator().manual_seed(SEED)
    saving = ModelCheckpoint(
        settings.directory / "checkpoints",
        save_last=True,
        **({"every_n_train_steps": every} if every else {"save_on_train_epoch_end": True}),
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=settings.epochs,
        deterministic=True,
        callbacks=[Steps(record), saving, *([Streams(seeds)] if with_streams else [])],
        default_root_dir=settings.directory,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    network = Network(settings)
    images = ResumableImages(settings)
    loader = StatefulDataLoader(
        images,
        settings.batch_size,
        sampler=RandomSampler(images, generator=torch.Generator().manual_seed(SEED)),
        num_workers=settings.workers,
        worker_init_fn=seed_worker,
        generator=seeds,
    )
    trainer.fit(network, loader, ckpt_path="last" if settings.resume else None, weights_only=False)
    record.end(network.network, trainer.optimizers[0])


if __name__ == "__main__":
    if with_streams := "--streams" in sys.argv:
        sys.argv.remove("--streams")
    main(with_streams)
