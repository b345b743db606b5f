"""A Lightning module in a loop of one's own: `training_step` and `configure_optimizers` are called as they are."""

from functools import partial

from task import Images, Record, read_settings
from torch.utils.data import DataLoader
from with_lightning import Network

from clip_hba_behavior.reproducibility import digest, track


def main() -> None:
    """Train; the same command goes on."""
    settings = read_settings()
    record = Record(settings)
    module = Network(settings)
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    images = Images(settings)
    run = track(
        settings.directory / "run",
        settings={**module.hparams, "epochs": settings.epochs},
        data=digest(images.pixels, images.labels),
        checkpoint_every_steps=settings.checkpoint_every or None,
        module=module,
        optimizer=optimizer,
        schedule=schedule,
    )
    images.generator_of = partial(run.generator, "noise")
    for epoch in run.epochs(settings.epochs):
        module.train()
        batches = run.batches(len(images), settings.batch_size)
        loader = DataLoader(images, batch_sampler=batches, num_workers=settings.workers)
        for index, batch in enumerate(loader, start=run.step_in_epoch):
            loss = module.training_step(batch, index)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            record.step((epoch - 1) * len(batches) + index + 1, loss)
            run.step(loss, batch)
        run.end_epoch()
    record.end(module.network, optimizer)


if __name__ == "__main__":
    main()
