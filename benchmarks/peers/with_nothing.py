"""The plain PyTorch loop, with the checkpoint of PyTorch's tutorial: model, optimizer, schedule and epoch.

The tutorial goes on at an epoch's beginning only: a checkpoint within an epoch begins that epoch again.
"""

import torch
from task import Images, Record, loss_of, make_model, make_optimizer, read_settings, seed_worker
from torch.utils.data import DataLoader


def main() -> None:
    """Train, or go on with `--resume`."""
    settings = read_settings()
    record = Record(settings)
    model = make_model()
    optimizer, schedule = make_optimizer(model, settings)
    loader = DataLoader(
        Images(settings),
        settings.batch_size,
        shuffle=True,
        num_workers=settings.workers,
        worker_init_fn=seed_worker,
    )
    path, step, first = settings.directory / "checkpoint.pt", 0, 0
    if settings.resume:
        checkpoint = torch.load(path)
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        schedule.load_state_dict(checkpoint["schedule"])
        first, step = checkpoint["epoch"], checkpoint["step"]

    def save(epoch: int) -> None:
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "step": step}
        torch.save(content | {"schedule": schedule.state_dict()}, path)

    for epoch in range(first, settings.epochs):
        model.train()
        for batch in loader:
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
