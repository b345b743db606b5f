"""One model in three arithmetics, from pixels to trained parameters: portable, native float32, and float64."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from clip_hba_behavior import exact
from clip_hba_behavior.config import make_config
from clip_hba_behavior.data import things
from clip_hba_behavior.data.images import Preprocessing, load_pixels
from clip_hba_behavior.data.standin import PROMPTS, standin_backbone_directory
from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.model.clip import Clip
from clip_hba_behavior.model.clip_hba import CLIPHBA, FrozenPrefix
from clip_hba_behavior.model.operations import NativeOperations, Operations, PortableOperations
from clip_hba_behavior.training.fit import tokens_of
from exact_tools import F64

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

    def part(self, num_images: int, num_prompts: int) -> "Data":
        """The first images and prompts."""
        prompts = slice(num_prompts)
        targets = self.targets[:num_images, prompts]
        return Data(self.pixels[:num_images], self.token_ids[prompts], self.ends[prompts], targets)


class Twin:
    """A model in one arithmetic, with the frozen features of all images and prompts."""

    def __init__(
        self,
        kind: Kind,
        backbone: Clip,
        data: Data,
        layers: tuple[int, int],
        rank: int,
        weight_decay: float = 0.01,
    ) -> None:
        self.dtype = F64 if kind == "float64" else torch.float32
        self.layers = layers
        self.targets = data.targets.to(self.dtype)
        backbone = Clip(backbone.config, {name: each.to(self.dtype) for name, each in backbone.weights.items()})
        operations: Operations = PortableOperations(True) if kind == "portable" else NativeOperations()
        vision = FrozenPrefix(backbone, "vision", layers[0], operations)
        text = FrozenPrefix(backbone, "text", layers[1], operations)
        class_tokens = torch.zeros(len(data.pixels), dtype=torch.int64)
        self.image_features = vision(data.pixels.to(self.dtype), class_tokens)
        self.prompt_features = text(data.token_ids, data.ends)
        self.model = CLIPHBA(backbone, *layers, rank, 0.0, data.ends, operations)
        self.parameters = self.model.dora_parameters()
        settings: dict[str, Any] = {"lr": 3e-4, "weight_decay": weight_decay}
        self.optimizer: torch.optim.Optimizer = (
            exact.AdamW(self.parameters.values(), **settings)
            if kind == "portable"
            else torch.optim.AdamW(self.parameters.values(), fused=True, **settings)
        )

    def draw(self) -> None:
        """Begin with factors that are the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for layer in self.model.dora_layers().values():
                layer.draw_initial_factors()

    @torch.no_grad()
    def load(self, parameters: Mapping[str, torch.Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(parameters[name])

    def predict(self, rows: torch.Tensor) -> torch.Tensor:
        """Predictions of some images, without a gradient."""
        with torch.no_grad():
            predictions: torch.Tensor = self.model(self.image_features[rows], self.prompt_features)
        return predictions

    def backward(self, rows: torch.Tensor) -> float:
        """Leave the gradients of a batch's loss, and return it."""
        predictions = self.model(self.image_features[rows], self.prompt_features)
        loss = self.model.operations.mse_loss(predictions, self.targets[rows])
        self.optimizer.zero_grad()
        loss.backward()
        return loss.item()

    def train(self, batches: Iterable[torch.Tensor]) -> list[float]:
        """Take a step with each batch, and return their losses."""
        losses = []
        for rows in batches:
            losses.append(self.backward(rows))
            self.optimizer.step()
        return losses


def standin_data_of(directory: Path) -> tuple[Clip, Data]:
    """The package's small CLIP, and a synthetic data set's annotated images and prompts for it."""
    config = make_config({"backbone": str(standin_backbone_directory())})
    backbone = load_backbone(config.backbone, False)
    annotations = things.read_annotations(directory / "annotations.csv")
    paths = [directory / "images" / name for name in annotations.image_names]
    preprocessing = Preprocessing(image_size=backbone.config.vision_config.image_size, rule=config.preprocessing)
    token_ids, ends = tokens_of(PROMPTS, config, backbone.config)
    targets = torch.from_numpy(annotations.targets).float()
    return backbone, Data(load_pixels(paths, preprocessing), token_ids, ends, targets)


def twins(
    backbone: Clip, data: Data, layers: tuple[int, int], rank: int, weight_decay: float = 0.01
) -> tuple[Twin, Twin, Twin]:
    """Portable, native and float64, from the same parameters."""
    portable, native, float64 = (Twin(kind, backbone, data, layers, rank, weight_decay) for kind in KINDS)
    portable.draw()
    for each in (native, float64):
        each.load(portable.parameters)
    return portable, native, float64
