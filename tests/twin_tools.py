"""One model in three arithmetics, from pixels to trained parameters: portable, native float32, and float64."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from clip_hba_behavior import exact
from clip_hba_behavior.model.clip import Clip
from clip_hba_behavior.model.clip_hba import CLIPHBA, FrozenPrefix
from clip_hba_behavior.model.operations import NativeOperations, Operations, PortableOperations
from exact_tools import F64, relative_error

Kind = Literal["portable", "native", "float64"]
KINDS: tuple[Kind, ...] = ("portable", "native", "float64")


@dataclass(frozen=True)
class Data:
    """What the towers read, and the targets.

    Attributes:
        pixels: `[n, 3, size, size] float32`.
        token_ids: `[66, tokens]`.
        ends: `[66]`.
        targets: `[n, 66] float32`.
    """

    pixels: torch.Tensor
    token_ids: torch.Tensor
    ends: torch.Tensor
    targets: torch.Tensor


class Twin:
    """A model in one arithmetic, with the frozen features of all images and prompts."""

    def __init__(self, kind: Kind, backbone: Clip, data: Data, layers: tuple[int, int], rank: int) -> None:
        self.dtype = F64 if kind == "float64" else torch.float32
        self.targets = data.targets.to(self.dtype)
        backbone = Clip(backbone.config, {name: each.to(self.dtype) for name, each in backbone.weights.items()})
        operations: Operations = PortableOperations(True) if kind == "portable" else NativeOperations()
        vision, text = (
            FrozenPrefix(backbone, tower, number, operations)
            for tower, number in zip(("vision", "text"), layers, strict=True)
        )
        class_tokens = torch.zeros(len(data.pixels), dtype=torch.int64)
        self.image_features = vision(data.pixels.to(self.dtype), class_tokens)
        self.prompt_features = text(data.token_ids, data.ends)
        self.model = CLIPHBA(backbone, *layers, rank, 0.0, data.ends, operations)
        self.parameters = self.model.dora_parameters()
        settings: dict[str, Any] = {"lr": 3e-4, "weight_decay": 1e-4}
        self.optimizer: torch.optim.Optimizer = (
            exact.AdamW(self.parameters.values(), **settings)
            if kind == "portable"
            else torch.optim.AdamW(self.parameters.values(), fused=True, **settings)
        )

    @torch.no_grad()
    def load(self, parameters: dict[str, torch.Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(parameters[name])

    def predict(self, rows: torch.Tensor) -> torch.Tensor:
        """Predictions of some images, without a gradient."""
        with torch.no_grad():
            return self.model(self.image_features[rows], self.prompt_features)

    def step(self, rows: torch.Tensor, changes: bool = True) -> float:
        """Leave the gradients of a batch's loss, take a step, and return the loss."""
        predictions = self.model(self.image_features[rows], self.prompt_features)
        loss = self.model.operations.mse_loss(predictions, self.targets[rows])
        self.optimizer.zero_grad()
        loss.backward()
        if changes:
            self.optimizer.step()
        return loss.item()

    def train(self, batches: Iterable[torch.Tensor]) -> list[float]:
        """The loss of every step."""
        return [self.step(rows) for rows in batches]


def twins(
    backbone: Clip, data: Data, layers: tuple[int, int], rank: int, seed: int = 1
) -> tuple[Twin, Twin, Twin]:
    """Portable, native and float64, from the same parameters."""
    made = tuple(Twin(kind, backbone, data, layers, rank) for kind in KINDS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in made[0].model.dora_layers().values():
            layer.draw_initial_factors("portable")
    for each in made[1:]:
        each.load(made[0].parameters)
    return made[0], made[1], made[2]


Errors = dict[str, tuple[float, float]]


def errors_of(portable: torch.Tensor, native: torch.Tensor, float64: torch.Tensor) -> tuple[float, float]:
    """Root mean square errors relative to float64: portable, native."""
    return relative_error(portable.detach(), float64.detach()), relative_error(native.detach(), float64.detach())


def errors_of_a_step(three: tuple[Twin, Twin, Twin], rows: torch.Tensor) -> Errors:
    """The errors of the features, the predictions, and each parameter's gradient."""
    for each in three:
        each.step(rows, changes=False)
    errors = {
        "image features": errors_of(*(each.image_features for each in three)),
        "prompt features": errors_of(*(each.prompt_features for each in three)),
        "predictions": errors_of(*(each.predict(rows) for each in three)),
    }
    for name in three[0].parameters:
        gradients = [each.parameters[name].grad for each in three]
        errors[name] = errors_of(*gradients)  # type: ignore[arg-type]
    return errors
