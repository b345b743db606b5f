"""A pretrained CLIP: its architecture, its plain weight tensors, and what goes into and out of its blocks."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch.nn import functional

from clip_hba_behavior.model.architecture import ClipConfig, TowerConfig, weight_shapes
from clip_hba_behavior.model.block import Block, LayerNorm, Linear, make_block, make_norm
from clip_hba_behavior.model.operations import Operations
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError

TowerName = Literal["vision", "text"]


@dataclass(frozen=True)
class Clip:
    """A CLIP with a vision transformer.

    Attributes:
        config: its architecture.
        weights: every weight, float32, by its name in the Hugging Face format.
    """

    config: ClipConfig
    weights: Mapping[str, torch.Tensor]

    def to(self, device: torch.device) -> "Clip":
        """Return the same CLIP on a device."""
        return Clip(self.config, {name: weight.to(device) for name, weight in self.weights.items()})

    def upper(self, num_blocks: Mapping[TowerName, int]) -> "Clip":
        """Return the same CLIP with no weights but of so many last blocks of each tower and of what follows."""
        lower = tuple(
            f"{tower}_model.encoder.layers.{index}."
            for tower, number in num_blocks.items()
            for index in range(self.tower(tower).num_hidden_layers - number)
        )
        kept = {
            name: weight
            for name, weight in self.weights.items()
            if not name.startswith(lower) and "_model.embeddings." not in name
        }
        return Clip(self.config, kept)

    def tower(self, name: TowerName) -> TowerConfig:
        """Return one tower's architecture."""
        return self.config.vision_config if name == "vision" else self.config.text_config

    def block(self, tower: TowerName, index: int) -> Block:
        """Return one of a tower's blocks, counted from 0."""
        return make_block(self.weights, f"{tower}_model.encoder.layers.{index}", self.tower(tower))

    def embed(self, tower: TowerName, inputs: torch.Tensor, operations: Operations) -> torch.Tensor:
        """Return what enters a tower's first block, `[batch, tokens, width]`.

        Args:
            tower: which.
            inputs: pixels `[batch, 3, size, size] float32`, or token ids `[batch, tokens] int64`.
            operations: what computes.
        """
        embeddings = f"{tower}_model.embeddings"
        positions = self.weights[f"{embeddings}.position_embedding.weight"]
        if tower == "text":
            tokens = functional.embedding(inputs, self.weights[f"{embeddings}.token_embedding.weight"])
            return tokens + positions[: inputs.shape[1]]
        kernel = self.weights[f"{embeddings}.patch_embedding.weight"]
        patches = operations.patches(inputs, kernel)
        class_token = self.weights[f"{embeddings}.class_embedding"].expand(len(inputs), 1, -1)
        # the name is spelt so in the format
        norm = self._norm("vision", "pre_layrnorm")
        return operations.layer_norm(torch.cat([class_token, patches], dim=1) + positions, *norm)

    def final_norm(self, tower: TowerName) -> LayerNorm:
        """Return the normalisation after a tower's last block."""
        return self._norm(tower, "post_layernorm" if tower == "vision" else "final_layer_norm")

    def projection(self, tower: TowerName) -> Linear:
        """Return the map from a tower's width to the embedding that both share."""
        return Linear(self.weights[f"{'visual' if tower == 'vision' else 'text'}_projection.weight"], None)

    def digest(self) -> str:
        """Return the digest of all weights, the same for every file format.

        With them goes what decides how they are used and shows in no weight's shape.
        """
        towers = {name: self.tower(name) for name in get_args(TowerName)}
        used_as = {
            name: [tower.hidden_act, tower.num_attention_heads, tower.layer_norm_eps]
            for name, tower in towers.items()
        }
        return digest({"weights": dict(self.weights), "used_as": used_as})

    def _norm(self, tower: TowerName, name: str) -> LayerNorm:
        return make_norm(self.weights, f"{tower}_model.{name}", self.tower(tower))


def make_clip(config: ClipConfig, weights: Iterable[tuple[str, torch.Tensor]], source: str) -> Clip:
    """Make a CLIP of weights of any precision, each converted to float32 in memory of its own.

    A file's weights may lie unaligned in a map of it, and a kernel's bits may depend on the alignment.

    Args:
        config: the architecture.
        weights: names in the Hugging Face format, and tensors; other names are no part of a CLIP. They are taken
            one by one, so that only one need be in memory twice.
        source: where they come from: what the messages begin with.

    Raises:
        BadInputError: a weight is missing, or has another shape than the architecture says.
    """
    expected = weight_shapes(config)
    own: dict[str, torch.Tensor] = {}
    for name, weight in weights:
        if name not in expected:
            continue
        if tuple(weight.shape) != expected[name]:
            raise BadInputError(
                f"{source} has a weight of another shape than its architecture says: {name}\n"
                f"  found:    {tuple(weight.shape)}\n  expected: {expected[name]}"
            )
        own[name] = weight.detach().contiguous().to(torch.float32, copy=True)
    absent = sorted(expected.keys() - own.keys())
    if absent:
        raise BadInputError(
            f"{source} lacks {len(absent)} weights of a CLIP, the first: {absent[0]}\n"
            "  get the model again; its file is incomplete"
        )
    return Clip(config, {name: own[name] for name in expected})
