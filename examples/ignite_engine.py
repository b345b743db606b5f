"""pytorch-ignite's Engine, a loop that knows nothing of this package, made resumable from outside.

`python examples/ignite_engine.py [EPOCHS]`, and the same again to go on; the run is in `runs/ignite`.
"""

import random
import sys

import numpy as np
import torch
from ignite.engine import Engine, Events
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from clip_hba_behavior.reproducibility import digest, track


def main(epochs: int = 20) -> None:
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    images = (images / 16).float()
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.2), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def train_step(engine: Engine, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
        model.train()
        loss = functional.cross_entropy(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    engine = Engine(train_step)
    run = track("runs/ignite", data=digest(images, labels), model=model, optimizer=optimizer)
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: run.step(engine.state.output, engine.state.batch))
    loader = DataLoader(TensorDataset(images, labels), batch_sampler=run.batches(len(labels), 64))
    for _ in run.epochs(epochs):
        engine.run(loader, max_epochs=1)
        run.end_epoch()


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:]))
