"""CLIP-HBA in two parts: the frozen prefix of CLIP, and the suffix that holds the DoRA layers.

Below the attention output of the first DoRA layer nothing changes in training. The prefix computes,
once an image and once a prompt, the two tensors that meet there: the residual stream and the
attention context. The suffix goes on from them and computes only what reaches the output: in the last
block of a tower just the token that is read (the image's class token, the prompt's end token).
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import sdpa_kernel
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from clip_hba_behavior.model.dora import DoRALinear
from clip_hba_behavior.reproducibility.state.numerics import SDPA_BACKENDS

DORA_PARAMETERS = ("m", "delta_D_A", "delta_D_B")


def attention_context(
    block: CLIPEncoderLayer, hidden: torch.Tensor, causal: bool, sdpa_backend: str
) -> torch.Tensor:
    """Return a block's attention output just before its `out_proj`, `[batch, tokens, width]`."""
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    shape = (*normed.shape[:-1], attention.num_heads, attention.head_dim)
    query, key, value = (
        project(normed).view(shape).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    with sdpa_kernel(SDPA_BACKENDS[sdpa_backend]):
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return context.transpose(1, 2).flatten(2)


def attention_context_at(
    block: CLIPEncoderLayer, hidden: torch.Tensor, position: torch.Tensor, causal: bool
) -> torch.Tensor:
    """Return the attention context of one token a sample, `[batch, width]`.

    One query does not need the keys and values of all tokens: `q . (K x_t) = (K' q) . x_t`, and
    `sum_t a_t V x_t = V sum_t a_t x_t`, so both projections act on one vector a head instead of
    on every token. The key bias adds the same to every score of a head and drops out of the softmax.

    Args:
        block: the frozen transformer block.
        hidden: `[batch, tokens, width]`.
        position: `[batch]`, which token of each sample is read.
        causal: tokens behind `position` are not seen.
    """
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    batch, num_tokens, width = normed.shape
    heads, head_dim = attention.num_heads, attention.head_dim
    rows = torch.arange(batch, device=hidden.device)

    query = attention.q_proj(normed[rows, position]).view(batch, heads, head_dim) * attention.scale
    key_weight = attention.k_proj.weight.view(heads, head_dim, width)
    scores = torch.einsum("bhd,hdw->bhw", query, key_weight) @ normed.transpose(1, 2)
    if causal:
        behind = torch.arange(num_tokens, device=hidden.device) > position[:, None]
        scores = scores.masked_fill(behind[:, None], -torch.inf)
    mixed = scores.softmax(dim=-1) @ normed
    value_weight = attention.v_proj.weight.view(heads, head_dim, width)
    context = torch.einsum("bhw,hdw->bhd", mixed, value_weight).flatten(1)
    return torch.add(context, attention.v_proj.bias)


class FrozenPrefix:
    """The part of one tower below its first DoRA layer.

    Called, it maps a tower's embedded input to `[batch, 2, tokens, width]`: the residual stream at
    the first DoRA block's input, and that block's attention context. Where that block is the tower's
    last, only the token that is read is kept (`tokens` is 1).
    """

    def __init__(self, backbone: CLIPModel, tower: str, num_dora_layers: int, sdpa_backend: str) -> None:
        self.is_text = tower == "text"
        self.model = backbone.text_model if self.is_text else backbone.vision_model
        self.num_dora_layers = num_dora_layers
        self.sdpa_backend = sdpa_backend

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Compute the features of one chunk.

        Args:
            inputs: pixels `[batch, 3, size, size] float32`, or token ids `[batch, tokens] int64`.
            position: `[batch] int64`, the token that the tower's output is read from.
        """
        hidden = self.model.embeddings(inputs)
        if not self.is_text:
            hidden = self.model.pre_layrnorm(hidden)
        blocks = self.model.encoder.layers
        first_dora = len(blocks) - self.num_dora_layers
        for block in blocks[:first_dora]:
            context = attention_context(block, hidden, self.is_text, self.sdpa_backend)
            hidden = hidden + block.self_attn.out_proj(context)
            hidden = hidden + block.mlp(block.layer_norm2(hidden))
        context = attention_context(blocks[first_dora], hidden, self.is_text, self.sdpa_backend)
        features = torch.stack([hidden, context], dim=1)
        if self.num_dora_layers == 1:
            rows = torch.arange(len(features), device=features.device)
            features = features[rows, :, position].unsqueeze(2)
        return features


class _QuickGELU(torch.autograd.Function):
    """`x * sigmoid(1.702 x)`, CLIP's activation, in fewer passes over the suffix's widest tensor.

    The forward bits are those of transformers' own spelling: near ties in the ranks behind a recorded RSA
    hang on them. Backward it is one fused kernel, since `x * sigmoid(1.702 x) = silu(1.702 x) / 1.702`.
    """

    @staticmethod
    def forward(context: Any, inputs: torch.Tensor) -> torch.Tensor:
        scaled = 1.702 * inputs
        context.save_for_backward(scaled)
        return torch.sigmoid(scaled).mul_(inputs)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        (scaled,) = context.saved_tensors
        return cast(torch.Tensor, torch.ops.aten.silu_backward(gradient, scaled))


def _mlp(block: CLIPEncoderLayer, hidden: torch.Tensor) -> torch.Tensor:
    """Apply a block's norm and MLP, `[..., width]` to `[..., width]`."""
    mlp = block.mlp
    inner = mlp.fc1(block.layer_norm2(hidden))
    is_quick = mlp.config.hidden_act == "quick_gelu"
    activated = _QuickGELU.apply(inner) if is_quick else mlp.activation_fn(inner)  # type: ignore[no-untyped-call]
    return cast(torch.Tensor, mlp.fc2(activated))


class _TrainableSuffix(nn.Module):
    """The part of one tower from its first DoRA layer up, to the normalised embedding."""

    def __init__(self, backbone: CLIPModel, tower: str, dora: Iterable[DoRALinear], sdpa_backend: str) -> None:
        super().__init__()
        self.is_text = tower == "text"
        model = backbone.text_model if self.is_text else backbone.vision_model
        self.dora = list(dora)  # a plain list: the parameters are registered under the guide's names
        self.blocks = nn.ModuleList(model.encoder.layers[-len(self.dora) :])
        self.final_norm = model.final_layer_norm if self.is_text else model.post_layernorm
        self.projection = backbone.text_projection if self.is_text else backbone.visual_projection
        self.sdpa_backend = sdpa_backend

    def forward(self, features: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Map `[batch, 2, tokens, width]` to unit vectors `[batch, embedding]`."""
        hidden, context = features.unbind(1)
        rows = torch.arange(len(hidden), device=hidden.device)
        if len(self.blocks) == 1:
            hidden, context = hidden[:, 0], context[:, 0]
        block: CLIPEncoderLayer
        for index, (block, dora) in enumerate(zip(self.blocks, self.dora, strict=True)):
            is_last = index == len(self.blocks) - 1
            if index > 0 and is_last:
                context = attention_context_at(block, hidden, position, self.is_text)
                hidden = hidden[rows, position]
            elif index > 0:
                context = attention_context(block, hidden, self.is_text, self.sdpa_backend)
            hidden = hidden + dora(context)
            hidden = hidden + _mlp(block, hidden)
        return functional.normalize(self.projection(self.final_norm(hidden)), dim=-1)


class CLIPHBA(nn.Module):
    """CLIP with DoRA on the last attention outputs of both towers, from frozen features to 66 dimensions.

    The trainable parameters stand in `state_dict` under the guide's names,
    `clip_model.visual.transformer.resblocks.<i>.attn.out_proj.{m,delta_D_A,delta_D_B}` and
    `clip_model.transformer.resblocks.<j>....`; the frozen ones under `suffix.`.
    """

    end_positions: torch.Tensor
    logit_scale: torch.Tensor

    def __init__(
        self,
        backbone: CLIPModel,
        vision_layers: int,
        transformer_layers: int,
        rank: int,
        dora_dropout: float,
        end_positions: torch.Tensor,
        sdpa_backend: str = "math",
    ) -> None:
        """Build the suffix on a frozen backbone, whose modules are shared, not copied.

        Args:
            backbone: float32, already on its device.
            vision_layers: how many of the last visual blocks get a DoRA layer, at least 1.
            transformer_layers: the same for the text blocks.
            rank: rank of the DoRA factors.
            dora_dropout: see `DoRALinear`.
            end_positions: `[66] int64`, each prompt's end-of-text token.
            sdpa_backend: `math`, `flash` or `efficient`.
        """
        super().__init__()
        backbone.requires_grad_(False)
        dora: dict[str, list[DoRALinear]] = {}
        for tower, root, num_layers, model in (
            ("vision", "clip_model.visual.transformer", vision_layers, backbone.vision_model),
            ("text", "clip_model.transformer", transformer_layers, backbone.text_model),
        ):
            blocks = model.encoder.layers
            dora[tower] = []
            for index in range(len(blocks) - num_layers, len(blocks)):
                layer = DoRALinear(blocks[index].self_attn.out_proj, rank, dora_dropout)
                _register(self, f"{root}.resblocks.{index}.attn.out_proj", layer)
                dora[tower].append(layer)
        self.suffix = nn.ModuleDict(
            {tower: _TrainableSuffix(backbone, tower, layers, sdpa_backend) for tower, layers in dora.items()}
        )
        self.register_buffer("end_positions", end_positions, persistent=False)
        self.register_buffer("logit_scale", backbone.logit_scale.detach().exp(), persistent=False)

    def dora_layers(self) -> dict[str, DoRALinear]:
        """Return the DoRA layers by name: visual ones first, then text, ascending."""
        return {name: module for name, module in self.named_modules() if isinstance(module, DoRALinear)}

    def dora_parameters(self) -> dict[str, nn.Parameter]:
        """Return the trainable parameters under the guide's names."""
        return {name: value for name, value in self.named_parameters() if value.requires_grad}

    def encode_images(self, image_features: torch.Tensor) -> torch.Tensor:
        """Map frozen image features `[batch, 2, tokens, width]` to unit vectors `[batch, embedding]`."""
        class_token = torch.zeros(len(image_features), dtype=torch.int64, device=image_features.device)
        return cast(torch.Tensor, self.suffix["vision"](image_features, class_token))

    def encode_prompts(self, prompt_features: torch.Tensor) -> torch.Tensor:
        """Map frozen prompt features `[66, 2, tokens, width]` to unit vectors `[66, embedding]`."""
        return cast(torch.Tensor, self.suffix["text"](prompt_features, self.end_positions))

    def forward(self, image_features: torch.Tensor, prompt_features: torch.Tensor) -> torch.Tensor:
        """Predict `[batch, 66]`: scaled cosines between each image and each dimension's prompt."""
        images = self.encode_images(image_features)
        return self.logit_scale * images @ self.encode_prompts(prompt_features).T


def _register(root: nn.Module, name: str, module: nn.Module) -> None:
    """Hang a module under a dotted name, making the containers on the way."""
    *parents, last = name.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(last, module)
