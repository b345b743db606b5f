"""The hand-written loop around torchdata's StatefulDataLoader; the random states are saved by hand beside it.

The sampler and the loader get a generator each. With one for both, as in PyTorch's page on reproducibility, the
order of the epoch after a resume is another one; with none, the loader draws from the stream of the dropout. The
streams are put back after the first batch is fetched, since the loader draws when its iterator is made.
"""

import random
from typing import Any

import numpy as np
import torch
from task import SEED, Record, ResumableImages, loss_of, make_model, make_optimizer, read_settings, seed_worker
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler


def main() -> None:
    """Train, or go on with `--resume`."""
    settings = read_settings()
    record = Record(settings)
    model = make_model()
    optimizer, schedule = make_optimizer(model, settings)
    images, seeds = ResumableImages(settings), torch.Generator().manual_seed(SEED)
    loader = StatefulDataLoader(
        images,
        settings.batch_size,
        sampler=RandomSampler(images, generator=torch.Generator().manual_seed(SEED)),
        num_workers=settings.workers,
        worker_init_fn=seed_worker,
        generator=seeds,
    )
    path, step, first = settings.directory / "checkpoint.pt", 0, 0
    checkpoint: dict[str, Any] | None = None
    if settings.resume:
        checkpoint = torch.load(path, weights_only=False)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        loader.load_state_dict(checkpoint["loader"])
        first, step = checkpoint["epoch"], checkpoint["step"]

    def save(epoch: int) -> None:
        content = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "loader": loader.state_dict(),
            "epoch": epoch,
            "step": step,
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "seeds": seeds.get_state(),
        }
        torch.save(content, path)

    for epoch in range(first, settings.epochs):
        model.train()
        for batch in loader:
            if checkpoint is not None:
                random.setstate(checkpoint["python"])
                np.random.set_state(checkpoint["numpy"])
                torch.set_rng_state(checkpoint["torch"])
                seeds.set_state(checkpoint["seeds"])
                checkpoint = None
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            record.step(step, loss)
            if settings.checkpoint_every and step % settings.checkpoint_every == 0:
                save(epoch)
        if not settings.checkpoint_every:
            save(epoch + 1)
    record.end(model, optimizer)


if __name__ == "__main__":
    main()
