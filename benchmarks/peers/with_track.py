"""The loop with `track`."""

from functools import partial

from task import Images, Record, loss_of, make_model, make_optimizer, read_settings
from torch.utils.data import DataLoader

from clip_hba_behavior.reproducibility import digest, track


def main() -> None:
    """Train; the same command goes on."""
    settings = read_settings()
    record = Record(settings)
    model = make_model()
    optimizer, schedule = make_optimizer(model, settings)
    images = Images(settings)
    run = track(
        settings.directory / "run",
        settings={"lr": settings.lr, "batch_size": settings.batch_size, "epochs": settings.epochs},
        data=digest(images.pixels, images.labels),
        checkpoint_every_steps=settings.checkpoint_every or None,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
    )
    images.generator_of = partial(run.generator, "noise")
    for epoch in run.epochs(settings.epochs):
        model.train()
        batches = run.batches(len(images), settings.batch_size)
        for batch in DataLoader(images, batch_sampler=batches, num_workers=settings.workers):
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            record.step((epoch - 1) * len(batches) + run.step_in_epoch + 1, loss)
            run.step(loss, batch)
        run.end_epoch()
    record.end(model, optimizer)


if __name__ == "__main__":
    main()
