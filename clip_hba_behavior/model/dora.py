"""DoRA: a frozen linear layer's weight split into magnitude and direction, the direction adapted.

After Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", in the form that the recorded
CLIP-HBA runs used: the low-rank update is added to the unit directions, and both factors start
non-zero.
"""

import math

import torch
from torch import nn

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.exact import Draw
from clip_hba_behavior.model.block import Linear
from clip_hba_behavior.model.operations import NativeOperations, Operations

ALPHA = 16
EPSILON = 1e-8


class DoRALinear(nn.Module):
    """A linear layer whose weight is `(m * D' / (||D'|| + 1e-8)).T`, with `D' = D + (16/r) B @ A`.

    `D` `[in, out]` holds the frozen weight's rows scaled to unit length, one a column. Trainable are
    `m` `[out]`, which starts as those lengths, `delta_D_A` `[r, out]` and `delta_D_B` `[in, r]`. The
    norm of `D'` runs over the `in` axis and is differentiated. The bias stays frozen.
    """

    direction: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self, linear: Linear, rank: int, dropout: float = 0.0, operations: Operations | None = None
    ) -> None:
        """Take over a linear layer; the low-rank factors are zero until drawn or loaded.

        Args:
            linear: the frozen layer, `[out, in]` with a bias.
            rank: number of columns of `delta_D_B`.
            dropout: probability with which an entry of the low-rank update is dropped in training.
            operations: what computes; native ones by default.
        """
        super().__init__()
        self.operations = operations or NativeOperations()
        weight, bias = linear
        lengths = self.operations.norm(weight)
        self.register_buffer("direction", weight.T / lengths, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.m = nn.Parameter(lengths)
        self.delta_D_A = nn.Parameter(weight.new_zeros(rank, len(weight)))
        self.delta_D_B = nn.Parameter(weight.new_zeros(weight.shape[1], rank))
        self.scale = ALPHA / rank
        self.dropout = dropout
        self.draw = Draw(seed=0)  # of the dropout mask, where it is a function of the step

    @torch.no_grad()
    def draw_initial_factors(self, arithmetic: Arithmetic = "native") -> None:
        """Draw `delta_D_A`, then `delta_D_B`, from torch's global CPU generator, whatever the device.

        Both kinds of arithmetic take the same random words. Native is torch's `kaiming_uniform_`, between -bound
        and bound = 1 / sqrt(columns of the factor). Portable is `u * (2 * bound) - bound`, u from `torch.rand`, by
        single float64 operations, rounded to float32 at the end. The two differ by at most one unit in the last
        place of the bound; by one and a half where torch's kernel does not fuse its multiplication and addition.
        """
        for factor in (self.delta_D_A, self.delta_D_B):
            if arithmetic == "portable":
                bound = 1.0 / math.sqrt(factor.shape[1])
                drawn = torch.rand(factor.shape, dtype=factor.dtype).double() * (2.0 * bound) - bound
                factor.copy_(drawn.to(factor.dtype))
            else:
                drawn = torch.empty(factor.shape, dtype=factor.dtype)
                factor.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5)))

    def adapted_weight(self) -> torch.Tensor:
        """Return the effective weight `[out, in]`; in training with a dropout mask of its own."""
        update = self.scale * self.operations.matmul(self.delta_D_B, self.delta_D_A)
        if self.dropout and self.training:
            update = self.operations.dropout(update, self.dropout, self.draw)
        return self.operations.with_lengths(self.direction + update, self.m, EPSILON).T

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Map `[..., in]` to `[..., out]`."""
        return self.operations.linear(inputs, self.adapted_weight(), self.bias)
