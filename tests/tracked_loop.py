"""A loop that knows nothing of this package, made resumable by `track`; with defects that must be found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from clip_hba_behavior.reproducibility import digest
from clip_hba_behavior.reproducibility import track as real_track

NUM_ROWS, BATCH_SIZE, NUM_STEPS = 50, 8, 7


class Rows(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows with noise of their own, drawn where the loader's workers are."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, generator: Callable[..., torch.Generator]) -> None:
        self.x, self.y, self.generator = x, y, generator

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.randn(self.x.shape[1], generator=self.generator("noise", index))
        return self.x[index] + 0.1 * noise, self.y[index]


def main(
    track: Callable[..., Any] = real_track,
    directory: str | Path = "run",
    epochs: int = 3,
    workers: int = 0,
    defect: str | None = None,
    after_step: Callable[[Any], None] = lambda run: None,
    context: Any = None,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    x, y = torch.randn(NUM_ROWS, 6), torch.randint(0, 3, (NUM_ROWS,))
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Dropout(0.3), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)
    parts: dict[str, Any] = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if defect == "no scheduler":
        del parts["scheduler"]
    if defect == "no buffers":
        parts["model"] = WithoutBuffers(model)
    options = {"settings": {"lr": 1e-2}, "data": digest(x, y), "checkpoint_every_steps": 1} | options
    run = track(directory, **options, **parts)
    loader = DataLoader(
        Rows(x, y, run.generator),
        batch_sampler=run.batches(len(x), BATCH_SIZE),
        num_workers=workers,
        multiprocessing_context=context,
    )
    for _ in run.epochs(epochs):
        model.train()
        for inputs, targets in loader:
            if defect == "extra draw":
                torch.rand(1)
            loss = functional.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            run.step(loss, targets)
            after_step(run)
        scheduler.step()
        model.eval()
        run.end_epoch({"test": functional.cross_entropy(model(x), y)})
    return run


class WithoutBuffers:
    """A part that forgets batch norm's running statistics."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.model.load_state_dict(state, strict=False)
