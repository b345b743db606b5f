"""The Trainer's model, data collator, optimizer and schedule in a loop of one's own."""

from functools import partial

from task import Images, Record, make_optimizer, read_settings
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from with_trainer import Network

from clip_hba_behavior.reproducibility import digest, track


def main() -> None:
    """Train; the same command goes on."""
    settings = read_settings()
    record = Record(settings)
    arguments = TrainingArguments(
        output_dir=str(settings.directory),
        learning_rate=settings.lr,
        per_device_train_batch_size=settings.batch_size,
        remove_unused_columns=False,
        use_cpu=True,
        report_to=[],
    )
    network, images = Network(), Images(settings)
    trainer = Trainer(network, arguments, train_dataset=images, optimizers=make_optimizer(network, settings))
    trainer.create_optimizer_and_scheduler(settings.epochs * settings.steps_per_epoch)  # makes what is not given
    optimizer, schedule = trainer.optimizer, trainer.lr_scheduler
    run = track(
        settings.directory / "run",
        settings={"lr": arguments.learning_rate, "batch_size": settings.batch_size, "epochs": settings.epochs},
        data=digest(images.pixels, images.labels),
        checkpoint_every_steps=settings.checkpoint_every or None,
        model=network,
        optimizer=optimizer,
        schedule=schedule,
    )
    images.generator_of = partial(run.generator, "noise")
    for epoch in run.epochs(settings.epochs):
        network.train()
        batches = run.batches(len(images), settings.batch_size)
        loader = DataLoader(
            images, batch_sampler=batches, collate_fn=trainer.data_collator, num_workers=settings.workers
        )
        for batch in loader:
            loss = trainer.compute_loss(network, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            record.step((epoch - 1) * len(batches) + run.step_in_epoch + 1, loss)
            run.step(loss, batch)
        run.end_epoch()
    record.end(network.network, optimizer)


if __name__ == "__main__":
    main()
