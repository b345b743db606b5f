"""Accelerate: `save_state` and `load_state`, and the data as its page on checkpoints says.

It skips the batches that are done with `skip_first_batches`, over its seedable sampler; with `--stateful` it saves
torchdata's StatefulDataLoader.
"""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, set_seed
from task import SEED, Record, ResumableImages, loss_of, make_model, make_optimizer, read_settings, seed_worker
from torch.utils.data import DataLoader


def main(stateful: bool) -> None:
    """Train, or go on with `--resume`."""
    settings = read_settings()
    record = Record(settings)
    set_seed(SEED, deterministic=True)
    accelerator = Accelerator(
        cpu=True,
        dataloader_config=DataLoaderConfiguration(
            use_seedable_sampler=True, data_seed=SEED, use_stateful_dataloader=stateful
        ),
    )
    model = make_model()
    optimizer, schedule = make_optimizer(model, settings)
    loader = DataLoader(
        ResumableImages(settings),
        settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        worker_init_fn=seed_worker,
        generator=torch.Generator().manual_seed(SEED),
    )
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    step, first, num_done = 0, 0, 0
    if settings.resume:
        newest = max((settings.directory / "checkpoints").iterdir())
        accelerator.load_state(str(newest))
        step = int(newest.name)
        first, num_done = divmod(step, settings.steps_per_epoch)

    for epoch in range(first, settings.epochs):
        model.train()
        loader.set_epoch(epoch)
        batches = loader
        if epoch == first and num_done and not stateful:
            batches = accelerator.skip_first_batches(loader, num_done)
            batches.set_epoch(epoch)
        for batch in batches:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            schedule.step()
            step += 1
            record.step(step, loss)
            if settings.checkpoint_every and step % settings.checkpoint_every == 0:
                accelerator.save_state(str(settings.directory / "checkpoints" / f"{step:06}"))
        if not settings.checkpoint_every:
            accelerator.save_state(str(settings.directory / "checkpoints" / f"{step:06}"))
    record.end(accelerator.unwrap_model(model), optimizer)


if __name__ == "__main__":
    if stateful := "--stateful" in sys.argv:
        sys.argv.remove("--stateful")
    main(stateful)
