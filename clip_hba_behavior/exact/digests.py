"""Digests of what the functions return for inputs made of integers: equal wherever the package works."""

import hashlib
from collections.abc import Iterator

import torch

from clip_hba_behavior.exact import pointwise
from clip_hba_behavior.exact.adamw import AdamW
from clip_hba_behavior.exact.attention import attention
from clip_hba_behavior.exact.autograd import branches
from clip_hba_behavior.exact.cross import cross
from clip_hba_behavior.exact.dropout import Draw, dropout
from clip_hba_behavior.exact.grid import F32, F64, I64
from clip_hba_behavior.exact.normalization import layer_norm, normalize, softmax
from clip_hba_behavior.exact.product import linear, matmul
from clip_hba_behavior.exact.sums import norm, sum
from clip_hba_behavior.exact.totals import column_totals, mse_loss, total


def numbers(*shape: int, seed: int, dtype: torch.dtype = F32) -> torch.Tensor:
    """Return numbers between -8 and 8, multiples of 2**-20, made by integer operations alone."""
    words = torch.arange(torch.Size(shape).numel(), dtype=I64) * 6364136223846793005
    words += (seed * 1442695040888963407 + 2**63) % 2**64 - 2**63
    words = (words ^ (words >> 29)) * 2862933555777941757
    words = words ^ (words >> 32)
    return (((words & 0xFFFFFF) - 8388608).to(F64) * 2.0**-20).to(dtype).view(shape)


def digest(*tensors: torch.Tensor) -> str:
    """Return the first 16 hexadecimal digits of SHA-256 over the tensors' bytes."""
    hasher = hashlib.sha256()
    for tensor in tensors:
        hasher.update(bytes(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).tolist()))
    return hasher.hexdigest()[:16]


def digests(device: str = "cpu") -> dict[str, str]:
    """Return a digest for each function of the package, values and gradients, by its name."""
    return {name: digest(*tensors) for name, tensors in _results(device)}


def _results(device: str) -> Iterator[tuple[str, list[torch.Tensor]]]:
    def inputs(*shape: int, seed: int) -> torch.Tensor:
        return numbers(*shape, seed=seed).to(device).requires_grad_()

    def with_gradients(result: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
        upstream = numbers(*result.shape, seed=99).to(device)
        return [result, *torch.autograd.grad(result, tensors, upstream)]

    for name in ("exp2", "exp", "erf", "gelu", "quick_gelu"):
        x = inputs(20000, seed=1)
        yield name, with_gradients(getattr(pointwise, name)(x), x)
    x = inputs(20000, seed=1)
    yield "sqrt", with_gradients(pointwise.sqrt(x.abs()), x)
    wide = numbers(20000, seed=1, dtype=F64).to(device)
    yield "float64 exp2 erf sqrt", [pointwise.exp2(wide * 8), pointwise.erf(wide), pointwise.sqrt(wide.abs())]

    rows, columns = inputs(60, 300, seed=2), inputs(300, 70, seed=3)
    yield "matmul", with_gradients(matmul(rows, columns), rows, columns)
    long, long_weight, bias = inputs(50, 2500, seed=4), inputs(30, 2500, seed=5), inputs(30, seed=6)
    yield "linear", with_gradients(linear(long, long_weight, bias), long, long_weight, bias)
    tall, tall_weight = inputs(1500, 20, seed=7), inputs(10, 20, seed=8)
    yield "linear of many rows", with_gradients(linear(tall, tall_weight), tall, tall_weight)
    outliers = inputs(24, 512, seed=9).detach()
    outliers[:, 7] *= 1024
    outliers[:, 300] *= -64
    yield "matmul with outliers", [matmul(outliers, outliers.T.contiguous())]
    # of so many bits that they are rounded to their grids, and the results are not
    fine = (numbers(1500, 24, seed=17, dtype=F64) * numbers(1500, 24, seed=18, dtype=F64)).to(device)
    yield "float64 cross", [cross(fine[:, :20], fine[:, 4:]), cross(fine[:7], fine[:7] * -3.0)]
    yield "float64 matmul", [matmul(fine[:40], fine.T[:, :30])]
    yield "float64 softmax", [softmax(fine * 0.125)]
    yield "float64 layer_norm", [layer_norm(fine)]
    yield "float64 total", [column_totals(fine), total(fine)]

    yield "sum", with_gradients(sum(rows), rows)
    yield "norm", with_gradients(norm(rows, dim=0), rows)
    lengths = inputs(300, seed=16)
    yield "normalize", with_gradients(normalize(rows, 0, lengths, eps=1e-8), rows, lengths)
    first, second, third = branches(rows, 3)
    yield "branches", with_gradients(first * second * third, rows)
    yield "total", with_gradients(total(rows), rows)
    yield "mse_loss", [*torch.autograd.grad(mse_loss(rows, rows.detach().flip(0)), rows)]
    yield "softmax", with_gradients(softmax(rows), rows)
    gain, shift = inputs(300, seed=10), inputs(300, seed=11)
    yield "layer_norm", with_gradients(layer_norm(rows, gain, shift), rows, gain, shift)
    query, key, value = (inputs(3, 2, 11, 16, seed=seed) for seed in (12, 13, 14))
    for causal in (False, True):
        context = attention(query, key, value, causal=causal)
        yield "attention, causal" if causal else "attention", with_gradients(context, query, key, value)
    draw = Draw(seed=2**40 + 3, layer=1, epoch=2, step=3)
    yield "dropout", with_gradients(dropout(rows, 0.1, draw, first=5), rows)
    yield "AdamW", _trained(inputs(1000, seed=15))


def _trained(parameter: torch.Tensor) -> list[torch.Tensor]:
    optimizer = AdamW([parameter], lr=3e-4)
    for step in range(5):
        parameter.grad = numbers(*parameter.shape, seed=20 + step).to(parameter.device)
        optimizer.step()
    state = optimizer.state[parameter]
    return [parameter, state["exp_avg"], state["exp_avg_sq"]]
