"""CLIP-HBA in two parts: the frozen prefix of CLIP, and the suffix that holds the DoRA layers.

Below the attention output of the first DoRA layer nothing changes in training. The prefix computes,
once an image and once a prompt, the two tensors that meet there: the residual stream and the
attention context. The suffix goes on from them and computes only what reaches the output: in the last
block of a tower just the token that is read (the image's class token, the prompt's end token).
"""

import torch
from torch import nn

from clip_hba_behavior.exact import Draw
from clip_hba_behavior.model.block import attention_context, attention_context_at, mlp
from clip_hba_behavior.model.clip import Clip, TowerName
from clip_hba_behavior.model.dora import DoRALinear
from clip_hba_behavior.model.operations import NativeOperations, Operations

DORA_PARAMETERS = ("m", "delta_D_A", "delta_D_B")


class FrozenPrefix:
    """The part of one tower below its first DoRA layer.

    Called, it maps a tower's embedded input to `[batch, 2, tokens, width]`: the residual stream at
    the first DoRA block's input, and that block's attention context. Where that block is the tower's
    last, only the token that is read is kept (`tokens` is 1).
    """

    def __init__(self, backbone: Clip, tower: TowerName, num_dora_layers: int, operations: Operations) -> None:
        self.backbone = backbone
        self.tower = tower
        self.num_dora_layers = num_dora_layers
        self.operations = operations

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Compute the features of one chunk.

        Args:
            inputs: pixels `[batch, 3, size, size] float32`, or token ids `[batch, tokens] int64`.
            position: `[batch] int64`, the token that the tower's output is read from.
        """
        causal, operations = self.tower == "text", self.operations
        hidden = self.backbone.embed(self.tower, inputs, operations)
        first_dora = self.backbone.tower(self.tower).num_hidden_layers - self.num_dora_layers
        for index in range(first_dora):
            block = self.backbone.block(self.tower, index)
            context = attention_context(block, hidden, causal, operations)
            hidden = hidden + operations.frozen(context, block.out)[0]
            hidden = hidden + mlp(block, hidden, operations)
        block = self.backbone.block(self.tower, first_dora)
        context = attention_context(block, hidden, causal, operations)
        features = torch.stack([hidden, context], dim=1)
        if self.num_dora_layers == 1:
            rows = torch.arange(len(features), device=features.device)
            features = features[rows, :, position].unsqueeze(2)
        return features


class _TrainableSuffix:
    """The part of one tower from its first DoRA layer up, to the normalised embedding."""

    def __init__(self, backbone: Clip, tower: TowerName, dora: list[DoRALinear], operations: Operations) -> None:
        num_blocks = backbone.tower(tower).num_hidden_layers
        self.is_text = tower == "text"
        self.dora = dora
        self.blocks = [backbone.block(tower, index) for index in range(num_blocks - len(dora), num_blocks)]
        self.final_norm = backbone.final_norm(tower)
        self.projection = backbone.projection(tower)
        self.operations = operations

    def __call__(self, features: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 2, tokens, width]` to unit vectors `[batch, embedding]`."""
        operations = self.operations
        hidden, context = features.unbind(1)
        rows = torch.arange(len(hidden), device=hidden.device)
        if len(self.blocks) == 1:
            hidden, context = hidden[:, 0], context[:, 0]
        for index, (block, dora) in enumerate(zip(self.blocks, self.dora, strict=True)):
            is_last = index == len(self.blocks) - 1
            if index > 0 and is_last:
                context = attention_context_at(block, hidden, position, self.is_text, operations)
                hidden = hidden[rows, position]
            elif index > 0:
                context = attention_context(block, hidden, self.is_text, operations)
            hidden = hidden + dora(context)
            hidden = hidden + mlp(block, hidden, operations)
        (projected,) = operations.frozen(operations.layer_norm(hidden, *self.final_norm), self.projection)
        return operations.unit_rows(projected)


class CLIPHBA(nn.Module):
    """CLIP with DoRA on the last attention outputs of both towers, from frozen features to 66 dimensions.

    The trainable parameters alone stand in `state_dict`, under the guide's names:
    `clip_model.visual.transformer.resblocks.<i>.attn.out_proj.{m,delta_D_A,delta_D_B}` and
    `clip_model.transformer.resblocks.<j>....`. The frozen ones are plain tensors of the backbone.
    """

    end_positions: torch.Tensor
    logit_scale: torch.Tensor

    def __init__(
        self,
        backbone: Clip,
        vision_layers: int,
        transformer_layers: int,
        rank: int,
        dora_dropout: float,
        end_positions: torch.Tensor,
        operations: Operations | None = None,
        prompt_operations: Operations | None = None,
    ) -> None:
        """Build the suffix on a frozen backbone, whose weights are shared, not copied.

        Args:
            backbone: float32, already on its device.
            vision_layers: how many of the last visual blocks get a DoRA layer, at least 1.
            transformer_layers: the same for the text blocks.
            rank: rank of the DoRA factors.
            dora_dropout: see `DoRALinear`.
            end_positions: `[66] int64`, each prompt's end-of-text token.
            operations: what computes the images' side and the predictions; native ones by default.
            prompt_operations: what computes the prompts' side, which is whole in each process of a run; by default
                the same.
        """
        super().__init__()
        self.operations = operations = operations or NativeOperations()
        self._has_dropout = dora_dropout > 0
        each_side: dict[TowerName, Operations] = {"vision": operations, "text": prompt_operations or operations}
        dora: dict[TowerName, list[DoRALinear]] = {"vision": [], "text": []}
        towers: tuple[tuple[TowerName, str, int], ...] = (
            ("vision", "clip_model.visual.transformer", vision_layers),
            ("text", "clip_model.transformer", transformer_layers),
        )
        for tower, root, num_layers in towers:
            num_blocks = backbone.tower(tower).num_hidden_layers
            for index in range(num_blocks - num_layers, num_blocks):
                layer = DoRALinear(backbone.block(tower, index).out, rank, dora_dropout, each_side[tower])
                _register(self, f"{root}.resblocks.{index}.attn.out_proj", layer)
                dora[tower].append(layer)
        self._vision, self._text = (
            _TrainableSuffix(backbone, tower, layers, each_side[tower]) for tower, layers in dora.items()
        )
        self.register_buffer("end_positions", end_positions, persistent=False)
        self.register_buffer("logit_scale", operations.exp(backbone.weights["logit_scale"]), persistent=False)

    def dora_layers(self) -> dict[str, DoRALinear]:
        """Return the DoRA layers by name: visual ones first, then text, ascending."""
        return {name: module for name, module in self.named_modules() if isinstance(module, DoRALinear)}

    def dora_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters under the guide's names."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def draw_masks_of(self, seed: int, epoch: int, step: int) -> None:
        """Say which step follows: portable dropout masks are a function of it."""
        if self._has_dropout:
            for number, layer in enumerate(self.dora_layers().values()):
                layer.draw = Draw(seed, number, epoch, step)

    def encode_images(self, image_features: torch.Tensor) -> torch.Tensor:
        """Map frozen image features `[batch, 2, tokens, width]` to unit vectors `[batch, embedding]`."""
        class_token = torch.zeros(len(image_features), dtype=torch.int64, device=image_features.device)
        return self._vision(image_features, class_token)

    def encode_prompts(self, prompt_features: torch.Tensor) -> torch.Tensor:
        """Map frozen prompt features `[66, 2, tokens, width]` to unit vectors `[66, embedding]`."""
        return self._text(prompt_features, self.end_positions)

    def forward(self, image_features: torch.Tensor, prompt_features: torch.Tensor) -> torch.Tensor:
        """Predict `[batch, 66]`: scaled cosines between each image and each dimension's prompt."""
        images = self.encode_images(image_features)  # first: native dropout masks are drawn in this order
        return self.similarities(images, self.encode_prompts(prompt_features))

    def similarities(self, images: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Predict `[batch, 66]` from what was encoded: `[batch, embedding]` and `[66, embedding]`."""
        return self.operations.linear(self.logit_scale * images, prompts, None)


def _register(root: nn.Module, name: str, module: nn.Module) -> None:
    """Hang a module under a dotted name, making the containers on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(last, module)
