"""Classify scikit-learn's handwritten digits with a small convolutional network that can be killed at any step.

`python examples/digits.py [EPOCHS] [WORKERS]`, and the same again to go on, with as many workers as you like: the
run is in `runs/digits`. `digits_plain.py` is the same script without the six lines that make it so.
"""

import random
import sys

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from clip_hba_behavior.reproducibility import digest, track


def main(epochs: int = 20, workers: int = 0) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float().view(-1, 1, 8, 8)
    train = TensorDataset(images[:1400], labels[:1400])

    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, 10)),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    run = track("runs/digits", data=digest(images, labels), model=model, optimizer=optimizer, schedule=scheduler)

    for epoch in run.epochs(epochs):
        model.train()
        for batch, targets in DataLoader(train, batch_sampler=run.batches(len(train), 64), num_workers=workers):
            shift = torch.randint(-1, 2, (2,)).tolist()
            loss = functional.cross_entropy(model(batch.roll(shift, dims=(2, 3))), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss, targets)
        scheduler.step()
        model.eval()
        with torch.no_grad():
            accuracy = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()
        print(f"epoch {epoch}: accuracy {accuracy:.4f}")
        run.end_epoch({"accuracy": accuracy})


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:]))
