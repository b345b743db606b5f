"""One transformer block of CLIP, as functions of plain weight tensors: prefix and suffix share it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch.nn import functional
from torch.nn.attention import sdpa_kernel

from clip_hba_behavior.model.architecture import TowerConfig
from clip_hba_behavior.reproducibility.state.numerics import SDPA_BACKENDS


class Linear(NamedTuple):
    """A map `[..., in]` to `[..., out]`: weight `[out, in]`, bias `[out]` or none."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in]` to `[..., out]`."""
        return functional.linear(inputs, self.weight, self.bias)


class LayerNorm(NamedTuple):
    """A normalisation over the last axis: weight and bias `[width]`."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Normalise `[..., width]`."""
        return functional.layer_norm(inputs, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True)
class Block:
    """The weights of one pre-norm block: attention, then MLP, each added to the residual stream.

    Attributes:
        norm1: before the attention.
        query: `[width, width]`; so are key, value and out.
        norm2: before the MLP.
        fc1: `[inner, width]`.
        fc2: `[width, inner]`.
        num_heads: of the attention; they divide the width.
        is_quick_gelu: whether the activation is `x * sigmoid(1.702 x)`, as in OpenAI's models, or the exact GELU,
            as in LAION's.
    """

    norm1: LayerNorm
    query: Linear
    key: Linear
    value: Linear
    out: Linear
    norm2: LayerNorm
    fc1: Linear
    fc2: Linear
    num_heads: int
    is_quick_gelu: bool


def make_norm(weights: Mapping[str, torch.Tensor], name: str, config: TowerConfig) -> LayerNorm:
    """Collect a normalisation's weights, which stand under `<name>.`."""
    return LayerNorm(weights[f"{name}.weight"], weights[f"{name}.bias"], config.layer_norm_eps)


def make_block(weights: Mapping[str, torch.Tensor], name: str, config: TowerConfig) -> Block:
    """Collect a block's weights, which stand under `<name>.` by their names in the Hugging Face format."""

    def linear(part: str) -> Linear:
        return Linear(weights[f"{name}.{part}.weight"], weights[f"{name}.{part}.bias"])

    def norm(part: str) -> LayerNorm:
        return make_norm(weights, f"{name}.{part}", config)

    return Block(
        norm1=norm("layer_norm1"),
        query=linear("self_attn.q_proj"),
        key=linear("self_attn.k_proj"),
        value=linear("self_attn.v_proj"),
        out=linear("self_attn.out_proj"),
        norm2=norm("layer_norm2"),
        fc1=linear("mlp.fc1"),
        fc2=linear("mlp.fc2"),
        num_heads=config.num_attention_heads,
        is_quick_gelu=config.hidden_act == "quick_gelu",
    )


def attention_context(block: Block, hidden: torch.Tensor, causal: bool, sdpa_backend: str) -> torch.Tensor:
    """Return a block's attention output just before its `out`, `[batch, tokens, width]`."""
    normed = block.norm1(hidden)
    shape = (*normed.shape[:-1], block.num_heads, normed.shape[-1] // block.num_heads)
    query, key, value = (
        project(normed).view(shape).transpose(1, 2) for project in (block.query, block.key, block.value)
    )
    with sdpa_kernel(SDPA_BACKENDS[sdpa_backend]):
        context = functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
    return context.transpose(1, 2).flatten(2)


def attention_context_at(block: Block, hidden: torch.Tensor, position: torch.Tensor, causal: bool) -> torch.Tensor:
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
    normed = block.norm1(hidden)
    batch, num_tokens, width = normed.shape
    heads, head_dim = block.num_heads, width // block.num_heads
    rows = torch.arange(batch, device=hidden.device)

    query = block.query(normed[rows, position]).view(batch, heads, head_dim) * head_dim**-0.5
    key_weight = block.key.weight.view(heads, head_dim, width)
    scores = torch.einsum("bhd,hdw->bhw", query, key_weight) @ normed.transpose(1, 2)
    if causal:
        behind = torch.arange(num_tokens, device=hidden.device) > position[:, None]
        scores = scores.masked_fill(behind[:, None], -torch.inf)
    mixed = scores.softmax(dim=-1) @ normed
    value_weight = block.value.weight.view(heads, head_dim, width)
    context = torch.einsum("bhw,hdw->bhd", mixed, value_weight).flatten(1)
    return torch.add(context, cast(torch.Tensor, block.value.bias))


def mlp(block: Block, hidden: torch.Tensor) -> torch.Tensor:
    """Return what a block's norm and MLP add to the residual stream, `[..., width]` to `[..., width]`."""
    inner = block.fc1(block.norm2(hidden))
    activated = _QuickGELU.apply(inner) if block.is_quick_gelu else functional.gelu(inner)  # type: ignore[no-untyped-call]
    return block.fc2(activated)


class _QuickGELU(torch.autograd.Function):
    """`x * sigmoid(1.702 x)`, in fewer passes over a block's widest tensor than autograd would take.

    The forward bits are those of this spelling: near ties in the ranks behind a recorded RSA hang on them.
    Backward it is one fused kernel, since `x * sigmoid(1.702 x) = silu(1.702 x) / 1.702`.
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
