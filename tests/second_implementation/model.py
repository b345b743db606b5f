"""CLIP with DoRA layers, forward and backward, as docs/PORTABLE.md has it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from second_implementation.numerics import (
    F32,
    Array,
    Pullback,
    attention,
    branches_gradient,
    dropout,
    exp,
    gelu,
    layer_norm,
    linear,
    matmul,
    norm,
    normalize,
    quick_gelu,
    softmax,
)

Config = dict[str, Any]
ROOTS = {"vision": "clip_model.visual.transformer", "text": "clip_model.transformer"}


class Mask(NamedTuple):
    """What dropout masks are functions of."""

    seed: int
    epoch: int
    step: int


class Tower:
    """One tower: everything frozen, and the names of its DoRA layers, the first of which has a number."""

    def __init__(self, weights: dict[str, Array], config: Config, tower: str, run: Config, first: int) -> None:
        self.weights, self.tower, self.name = weights, config[f"{tower}_config"], f"{tower}_model"
        self.causal = tower == "text"
        self.heads, blocks = self.tower["num_attention_heads"], self.tower["num_hidden_layers"]
        self.gelu = quick_gelu if self.tower["hidden_act"] == "quick_gelu" else gelu
        trained = run["transformer_layers" if self.causal else "vision_layers"]
        self.frozen, self.trained = range(blocks - trained), range(blocks - trained, blocks)
        self.projection = weights[f"{'text' if self.causal else 'visual'}_projection.weight"]
        self.final_norm = "final_layer_norm" if self.causal else "post_layernorm"
        self.dora = [f"{ROOTS[tower]}.resblocks.{index}.attn.out_proj" for index in self.trained]
        self.first, self.rank, self.probability = first, run["rank"], run["dora_dropout"]

    def get(self, name: str) -> Array:
        return self.weights[f"{self.name}.{name}"]

    def linear_of(self, name: str) -> tuple[Array, Array]:
        return self.get(f"{name}.weight"), self.get(f"{name}.bias")

    def block(self, index: int, name: str) -> tuple[Array, Array]:
        return self.linear_of(f"encoder.layers.{index}.{name}")

    def split(self, x: Array) -> Array:
        return np.swapaxes(x.reshape(*x.shape[:2], self.heads, -1), 1, 2)

    def join(self, x: Array) -> Array:
        return np.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)

    def embed(self, inputs: Array) -> Array:
        positions = self.get("embeddings.position_embedding.weight")
        if self.causal:
            return self.get("embeddings.token_embedding.weight")[inputs] + positions[: inputs.shape[1]]
        kernel = self.get("embeddings.patch_embedding.weight")
        batch, p = len(inputs), kernel.shape[-1]
        grid = inputs.reshape(batch, 3, inputs.shape[2] // p, p, inputs.shape[3] // p, p)
        patches = grid.transpose(0, 2, 4, 1, 3, 5).reshape(batch, -1, 3 * p * p)
        mapped, _ = linear(patches, kernel.reshape(len(kernel), -1))
        token = np.broadcast_to(self.get("embeddings.class_embedding"), (batch, 1, len(kernel)))
        return layer_norm(np.concatenate([token, mapped], 1) + positions, *self.linear_of("pre_layrnorm"))[0]

    def context(self, index: int, x: Array, _position: Array | None = None) -> tuple[Array, Pullback]:
        parts = [self.block(index, f"self_attn.{name}_proj") for name in "qkv"]
        n, back_norm = layer_norm(x, *self.block(index, "layer_norm1"))
        weight, bias = (np.concatenate(each) for each in zip(*parts, strict=True))
        qkv, back_linear = linear(n, weight, bias)
        attended, back_attention = attention(*map(self.split, np.split(qkv, 3, -1)), self.causal)

        def back(g: Array) -> Array:
            together = np.concatenate([self.join(each) for each in back_attention(self.split(g))], -1)
            return back_norm(back_linear(together))

        return self.join(attended), back

    def context_at(self, index: int, x: Array, position: Array) -> tuple[Array, Pullback]:
        """The attention context of one token, `[batch, width]`."""
        batch, tokens, width = x.shape
        rows, channels = np.arange(batch), width // self.heads
        n, back_norm = layer_norm(x, *self.block(index, "layer_norm1"))
        scale = F32(1.0 / np.sqrt(channels))
        q, back_q = linear(n[rows, position], *self.block(index, "self_attn.q_proj"))
        q = np.swapaxes((q * scale).reshape(batch, self.heads, channels), 0, 1)
        key, value = (self.block(index, f"self_attn.{name}_proj") for name in "kv")
        k, back_k = matmul(q, key[0].reshape(self.heads, channels, width))
        scores, back_scores = matmul(np.swapaxes(k, 0, 1), np.swapaxes(n, 1, 2))
        if self.causal:
            behind = np.arange(tokens) > position[:, None]
            scores = np.where(behind[:, None], F32(-np.inf), scores)
        p, back_p = softmax(scores)
        mixed, back_mixed = matmul(p, n)
        by_head = np.swapaxes(value[0].reshape(self.heads, channels, width), 1, 2)
        out, back_out = matmul(np.swapaxes(mixed, 0, 1), by_head)

        def back(g: Array) -> Array:
            by_head = np.swapaxes(g.reshape(batch, self.heads, channels), 0, 1)
            to_p, to_values = back_mixed(np.swapaxes(back_out(by_head)[0], 0, 1))
            to_k, to_keys = back_scores(back_p(to_p))
            to_q = np.swapaxes(back_k(np.swapaxes(to_k, 0, 1))[0], 0, 1).reshape(batch, width) * scale
            to_query = np.zeros_like(n)
            to_query[rows, position] = back_q(to_q)
            return back_norm(branches_gradient(to_query, np.swapaxes(to_keys, 1, 2), to_values))

        return np.swapaxes(out, 0, 1).reshape(batch, width) + value[1], back

    def mlp(self, index: int, x: Array) -> tuple[Array, Pullback]:
        n, back_norm = layer_norm(x, *self.block(index, "layer_norm2"))
        inner, back_fc1 = linear(n, *self.block(index, "mlp.fc1"))
        active, back_gelu = self.gelu(inner)
        added, back_fc2 = linear(active, *self.block(index, "mlp.fc2"))
        return added, lambda g: back_norm(back_fc1(back_gelu(back_fc2(g))))

    def features(self, inputs: Array) -> tuple[Array, Array]:
        """The residual stream and the attention context at the first block with a DoRA layer."""
        x = self.embed(inputs)
        for index in self.frozen:
            x = x + linear(self.context(index, x)[0], *self.block(index, "self_attn.out_proj"))[0]
            x = x + self.mlp(index, x)[0]
        return x, self.context(self.trained[0], x)[0]

    def initial(self, draw: Callable[..., Array]) -> dict[str, Array]:
        """The DoRA layers' parameters."""
        parameters = {}
        for name, index in zip(self.dora, self.trained, strict=True):
            weight, _ = self.block(index, "self_attn.out_proj")
            out, width = weight.shape
            factors = {"m": norm(weight), "delta_D_A": draw(self.rank, out), "delta_D_B": draw(width, self.rank)}
            parameters |= {f"{name}.{key}": value for key, value in factors.items()}
        return parameters

    def adapted(self, layer: int, parameters: dict[str, Array], mask: Mask | None) -> tuple[Array, Pullback]:
        """A DoRA layer's weight `[out, in]`; its pullback gives the gradients to the parameters by name."""
        name, scale = self.dora[layer], F32(16 / self.rank)
        m, a, b = (parameters[f"{name}.{key}"] for key in ("m", "delta_D_A", "delta_D_B"))
        weight, _ = self.block(self.trained[layer], "self_attn.out_proj")
        update, back_update = matmul(b, a)
        update = scale * update
        back_dropout: Pullback = lambda g: g  # noqa: E731
        if mask and self.probability:
            number = self.first + layer
            update, back_dropout = dropout(update, self.probability, mask.seed, number, mask.epoch, mask.step)
        direction = weight.T / norm(weight)
        scaled, back_scaled = normalize(direction + update, 0, m, 1e-8)

        def back(g: Array) -> dict[str, Array]:
            to_columns, to_m = back_scaled(g.T)
            to_b, to_a = back_update(back_dropout(to_columns) * scale)
            return {f"{name}.m": to_m, f"{name}.delta_D_A": to_a, f"{name}.delta_D_B": to_b}

        return scaled.T, back

    def trained_block(
        self,
        layer: int,
        x: Array,
        context: Array,
        position: Array,
        parameters: dict[str, Array],
        mask: Mask | None,
    ) -> tuple[Array, Pullback]:
        """A block with a DoRA layer; the pullback gives the gradients to the parameters by name, and the one to x.

        The first layer takes the context that it is given; the last block reads the token at the position alone.
        """
        index, is_last, rows = self.trained[layer], layer == len(self.trained) - 1, np.arange(len(x))
        if layer:
            make = self.context_at if is_last else self.context
            context, back_context = make(index, x, position)
        elif is_last:
            context = context[rows, position]
        weight, back_weight = self.adapted(layer, parameters, mask)
        added, back_out = linear(context, weight, self.block(index, "self_attn.out_proj")[1])
        hidden = (x[rows, position] if is_last else x) + added
        added, back_mlp = self.mlp(index, hidden)

        def back(g: Array) -> tuple[dict[str, Array], Array]:
            g = g + back_mlp(g)
            gradients = back_weight(back_out(g, to_weight=True))
            if not layer:
                return gradients, g  # nothing is trained below
            to_x = np.zeros_like(x) if is_last else g
            if is_last:
                to_x[rows, position] = g
            return gradients, to_x + back_context(back_out(g))

        return hidden + added, back

    def encode(
        self, features: tuple[Array, Array], position: Array, parameters: dict[str, Array], mask: Mask | None
    ) -> tuple[Array, Pullback]:
        """Unit vectors `[batch, embedding]`; the pullback gives the gradients to the parameters by name."""
        (x, context), backs = features, []
        for layer in range(len(self.trained)):
            x, back_block = self.trained_block(layer, x, context, position, parameters, mask)
            backs.append(back_block)
        n, back_norm = layer_norm(x, *self.linear_of(self.final_norm))
        projected, back_projection = linear(n, self.projection)
        unit, back_unit = normalize(projected, -1)

        def back(g: Array) -> dict[str, Array]:
            gradients: dict[str, Array] = {}
            g = back_norm(back_projection(back_unit(g)[0]))
            for back_block in reversed(backs):
                of_layer, g = back_block(g)
                gradients |= of_layer
            return gradients

        return unit, back


class Model:
    """Both towers, and the predictions that they make."""

    def __init__(self, weights: dict[str, Array], config: Config, run: Config) -> None:
        self.images = Tower(weights, config, "vision", run, 0)
        self.prompts = Tower(weights, config, "text", run, run["vision_layers"])
        self.scale = exp(weights["logit_scale"])

    def predict(
        self, images: Any, prompts: Any, ends: Array, parameters: dict[str, Array], mask: Mask | None = None
    ) -> tuple[Array, Pullback]:
        """Predictions `[batch, 66]`; the pullback gives the gradients to the parameters by name."""
        tokens = np.zeros(len(images[0]), int)
        left, back_left = self.images.encode(images, tokens, parameters, mask)
        right, back_right = self.prompts.encode(prompts, ends, parameters, mask)
        result, back = linear(self.scale * left, right)
        return result, lambda g: back_left(back(g) * self.scale) | back_right(back(g, to_weight=True))
