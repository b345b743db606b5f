"""What the model's layers are computed by: torch's own kernels, or `exact`, whose bits are the same everywhere."""

from typing import Protocol, cast

import torch
from torch.nn import functional
from torch.nn.attention import sdpa_kernel
from torch.utils.weak import WeakTensorKeyDictionary

from clip_hba_behavior import exact
from clip_hba_behavior.exact.totals import ONE_PROCESS
from clip_hba_behavior.reproducibility.state.numerics import SDPA_BACKENDS

Layer = tuple[torch.Tensor, torch.Tensor | None]


class Operations(Protocol):
    """The operations of a CLIP with DoRA; all tensors float32.

    Additions, and products of single numbers, need none: they have the same bits on every machine.
    """

    name: str

    def linear(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Map `[..., in]` to `[..., out]` by a weight `[out, in]` that has a gradient, or changes."""

    def frozen(self, inputs: torch.Tensor, *layers: Layer) -> tuple[torch.Tensor, ...]:
        """Map one input by one or more frozen layers, each a weight and a bias."""

    def patches(self, pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        """Map patches of `[batch, 3, size, size]` by a kernel `[width, 3, p, p]` to `[batch, patches, width]`."""

    def layer_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Normalise `[..., width]`."""

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
        """Attend over all tokens: three `[batch, heads, tokens, channels]` to one."""

    def matmul(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Multiply `[..., m, k]` by `[..., k, n]`."""

    def map_heads(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Map `[batch, heads, in]` to `[batch, heads, out]` by a weight `[heads, in, out]`."""

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the softmax over the last axis."""

    def gelu(self, inputs: torch.Tensor, is_quick: bool) -> torch.Tensor:
        """Return the exact GELU, or `x * sigmoid(1.702 x)`."""

    def branches(self, inputs: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
        """Return a tensor once for each of more than two uses, whose gradients are added."""

    def dropout(self, inputs: torch.Tensor, probability: float, draw: exact.Draw) -> torch.Tensor:
        """Drop entries of an update, and scale the others up."""

    def norm(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the lengths of a frozen weight's rows, `[out, in]` to `[out]`."""

    def with_lengths(self, columns: torch.Tensor, lengths: torch.Tensor, epsilon: float) -> torch.Tensor:
        """Scale each column of `[in, out]` to a length of `[out]`; epsilon is added to the columns' norms."""

    def unit_rows(self, inputs: torch.Tensor) -> torch.Tensor:
        """Scale each row of `[n, k]` to length one."""

    def exp(self, value: torch.Tensor) -> torch.Tensor:
        """Return e to a frozen value."""

    def mse_loss(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean squared difference of the batch, a scalar."""

    def share(self, reduce: exact.Reduce) -> None:
        """From now on each process has a part of each batch, and `reduce` puts the parts together."""


class NativeOperations:
    """Torch's own kernels: their bits depend on processor, threads, shapes and versions.

    Args:
        sdpa_backend: `math`, `flash` or `efficient`: which attention kernel.
    """

    name = "native"

    def __init__(self, sdpa_backend: str = "math") -> None:
        self._sdpa_backend = SDPA_BACKENDS[sdpa_backend]

    def linear(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return functional.linear(inputs, weight, bias)

    def frozen(self, inputs: torch.Tensor, *layers: Layer) -> tuple[torch.Tensor, ...]:
        return tuple(functional.linear(inputs, weight, bias) for weight, bias in layers)

    def patches(self, pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(pixels, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)

    def layer_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        return functional.layer_norm(inputs, weight.shape, weight, bias, epsilon)

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
        with sdpa_kernel(self._sdpa_backend):
            return functional.scaled_dot_product_attention(query, key, value, is_causal=causal)

    def matmul(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left @ right

    def map_heads(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bhi,hio->bho", inputs, weight)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        return scores.softmax(dim=-1)

    def gelu(self, inputs: torch.Tensor, is_quick: bool) -> torch.Tensor:
        if not is_quick:
            return functional.gelu(inputs)
        return cast(torch.Tensor, _QuickGELU.apply(inputs))  # type: ignore[no-untyped-call]

    def branches(self, inputs: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
        return (inputs,) * number

    def dropout(self, inputs: torch.Tensor, probability: float, draw: exact.Draw) -> torch.Tensor:
        return functional.dropout(inputs, probability)  # from torch's global generator

    def norm(self, weight: torch.Tensor) -> torch.Tensor:
        lengths: torch.Tensor = weight.norm(dim=1)  # this spelling gives the recorded bits
        return lengths

    def with_lengths(self, columns: torch.Tensor, lengths: torch.Tensor, epsilon: float) -> torch.Tensor:
        scaled: torch.Tensor = lengths * columns / (columns.norm(dim=0) + epsilon)
        return scaled

    def unit_rows(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.normalize(inputs, dim=-1)

    def exp(self, value: torch.Tensor) -> torch.Tensor:
        return value.exp()

    def mse_loss(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(predictions, targets)

    def share(self, reduce: exact.Reduce) -> None:
        raise RuntimeError("native sums depend on how a batch is split; such a run is refused before it begins")


class Bfloat16Operations(NativeOperations):
    """Torch's own kernels, the products by frozen weights in bfloat16.

    Input, weight and bias are rounded to it, and so is the result; backward, the gradients of result and input.
    All else is in float32, above all what the weights that learn are made of and used in.
    """

    def __init__(self, sdpa_backend: str = "math") -> None:
        super().__init__(sdpa_backend)
        self._rounded = WeakTensorKeyDictionary()

    def frozen(self, inputs: torch.Tensor, *layers: Layer) -> tuple[torch.Tensor, ...]:
        rounded = inputs.bfloat16()
        return tuple(
            functional.linear(rounded, self._round(weight), None if bias is None else self._round(bias)).float()
            for weight, bias in layers
        )

    def _round(self, weight: torch.Tensor) -> torch.Tensor:
        """Return a weight or bias in bfloat16, rounded once."""
        if weight not in self._rounded:
            self._rounded[weight] = weight.bfloat16()
        return cast(torch.Tensor, self._rounded[weight])


class PortableOperations:
    """The functions of `exact`: the same bits on every machine, for every split of a batch.

    Args:
        keeps_weights: keep each frozen weight rounded to its grids, for one that is used in every step.
    """

    name = f"portable {exact.DEFINITION}"

    def __init__(self, keeps_weights: bool = False) -> None:
        self._reduce = ONE_PROCESS
        self._kept: WeakTensorKeyDictionary | None = WeakTensorKeyDictionary() if keeps_weights else None

    def linear(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return exact.linear(inputs, weight, bias, self._reduce)

    def frozen(self, inputs: torch.Tensor, *layers: Layer) -> tuple[torch.Tensor, ...]:
        # As one layer: a column of the result does not depend on the others, and the gradient is one product.
        weights = [weight for weight, _ in layers]
        biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in layers]
        results = exact.linear(inputs, self._together(weights), torch.cat(biases))
        return tuple(results.split([len(weight) for weight in weights], dim=-1))

    def patches(self, pixels: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
        patches = functional.unfold(pixels, kernel.shape[-1], stride=kernel.shape[-1]).transpose(1, 2)
        return exact.linear(patches, kernel.flatten(1))

    def layer_norm(
        self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        return exact.layer_norm(inputs, weight, bias, epsilon)

    def attention(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, causal: bool) -> torch.Tensor:
        return exact.attention(query, key, value, causal)

    def matmul(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return exact.matmul(left, right)

    def map_heads(self, inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return exact.matmul(inputs.transpose(0, 1), weight).transpose(0, 1)

    def softmax(self, scores: torch.Tensor) -> torch.Tensor:
        return exact.softmax(scores)

    def gelu(self, inputs: torch.Tensor, is_quick: bool) -> torch.Tensor:
        return exact.quick_gelu(inputs) if is_quick else exact.gelu(inputs)

    def branches(self, inputs: torch.Tensor, number: int) -> tuple[torch.Tensor, ...]:
        return exact.branches(inputs, number)

    def dropout(self, inputs: torch.Tensor, probability: float, draw: exact.Draw) -> torch.Tensor:
        return exact.dropout(inputs, probability, draw)

    def norm(self, weight: torch.Tensor) -> torch.Tensor:
        return exact.norm(weight, dim=1)

    def with_lengths(self, columns: torch.Tensor, lengths: torch.Tensor, epsilon: float) -> torch.Tensor:
        return exact.normalize(columns, 0, lengths, epsilon)

    def unit_rows(self, inputs: torch.Tensor) -> torch.Tensor:
        return exact.normalize(inputs)

    def exp(self, value: torch.Tensor) -> torch.Tensor:
        return exact.exp(value)

    def mse_loss(self, predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return exact.mse_loss(predictions, targets, self._reduce)

    def share(self, reduce: exact.Reduce) -> None:
        self._reduce = reduce

    def _together(self, weights: list[torch.Tensor]) -> torch.Tensor | exact.FrozenWeight:
        """Return frozen weights below each other."""
        if self._kept is None:
            return torch.cat(weights)
        first = weights[0]  # stands for the layers that it is always used with
        if first not in self._kept:
            self._kept[first] = exact.FrozenWeight(torch.cat(weights))
        return cast(exact.FrozenWeight, self._kept[first])


class _QuickGELU(torch.autograd.Function):
    """`x * sigmoid(1.702 x)`, in fewer passes over a block's widest tensor than autograd would take.

    The forward bits are those of this spelling: near ties in the ranks behind a recorded RSA hang on them.
    Backward it is one fused kernel, since `x * sigmoid(1.702 x) = silu(1.702 x) / 1.702`.
    """

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, inputs: torch.Tensor) -> torch.Tensor:
        scaled = 1.702 * inputs
        context.save_for_backward(scaled)
        return torch.sigmoid(scaled).mul_(inputs)

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        (scaled,) = context.saved_tensors  # type: ignore[attr-defined]
        return cast(torch.Tensor, torch.ops.aten.silu_backward(gradient, scaled))
