"""One transformer block of CLIP, as functions of plain weight tensors: prefix and suffix share it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch

from clip_hba_behavior.model.architecture import TowerConfig
from clip_hba_behavior.model.operations import Operations


class Linear(NamedTuple):
    """A map `[..., in]` to `[..., out]`: weight `[out, in]`, bias `[out]` or none."""

    weight: torch.Tensor
    bias: torch.Tensor | None


class LayerNorm(NamedTuple):
    """A normalisation over the last axis: weight and bias `[width]`."""

    weight: torch.Tensor
    bias: torch.Tensor
    epsilon: float


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


def attention_context(block: Block, hidden: torch.Tensor, causal: bool, operations: Operations) -> torch.Tensor:
    """Return a block's attention output just before its `out`, `[batch, tokens, width]`."""
    normed = operations.layer_norm(hidden, *block.norm1)
    shape = (*normed.shape[:-1], block.num_heads, normed.shape[-1] // block.num_heads)
    projected = operations.frozen(normed, block.query, block.key, block.value)
    query, key, value = (each.view(shape).transpose(1, 2) for each in projected)
    return operations.attention(query, key, value, causal).transpose(1, 2).flatten(2)


def attention_context_at(
    block: Block, hidden: torch.Tensor, position: torch.Tensor, causal: bool, operations: Operations
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
        operations: what computes.
    """
    normed = operations.layer_norm(hidden, *block.norm1)
    batch, num_tokens, width = normed.shape
    heads, head_dim = block.num_heads, width // block.num_heads
    rows = torch.arange(batch, device=hidden.device)
    asking, seen, mixed_in = operations.branches(normed, 3)

    (query,) = operations.frozen(asking[rows, position], block.query)
    query = query.view(batch, heads, head_dim) * (1.0 / math.sqrt(head_dim))
    wanted = operations.map_heads(query, block.key.weight.view(heads, head_dim, width))
    scores = operations.matmul(wanted, seen.transpose(1, 2))
    if causal:
        behind = torch.arange(num_tokens, device=hidden.device) > position[:, None]
        scores = scores.masked_fill(behind[:, None], -torch.inf)
    mixed = operations.matmul(operations.softmax(scores), mixed_in)
    context = operations.map_heads(mixed, block.value.weight.view(heads, head_dim, width).mT).flatten(1)
    return torch.add(context, cast(torch.Tensor, block.value.bias))


def mlp(block: Block, hidden: torch.Tensor, operations: Operations) -> torch.Tensor:
    """Return what a block's norm and MLP add to the residual stream, `[..., width]` to `[..., width]`."""
    (inner,) = operations.frozen(operations.layer_norm(hidden, *block.norm2), block.fc1)
    (added,) = operations.frozen(operations.gelu(inner, block.is_quick_gelu), block.fc2)
    return added
