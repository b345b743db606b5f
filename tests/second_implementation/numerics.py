"""The functions of `exact`, from their docstrings. Those with a gradient return their value and its pullback."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Pullback = Callable[[Array], Any]

F32, F64 = np.float32, np.float64
LOG2_E = 1.4426950408889634
CHUNK = 1024
EXP2 = (
    "0x1.63b2d7971923fp-20 0x1.00c0e4e15189cp-16 0x1.4308c7183d6a2p-13 0x1.5d877598350dep-10 "
    "0x1.3b2ab70ad2565p-7 0x1.c6b08da70cce3p-5 0x1.ebfbdff82a734p-3 0x1.62e42fef9cc69p-1"
)
ERFC = (
    "0x1.192b820d269e2p-21 0x1.3341e3f88ebf8p-19 -0x1.abaf53de8d848p-20 -0x1.3fce2463c0ecap-16 "
    "0x1.93085373ff690p-18 0x1.055f299d1b41dp-13 -0x1.bbb5d441992bcp-14 -0x1.98cd43d8a1cc2p-11 "
    "0x1.ef298ca9a2b13p-10 0x1.4b8805caca180p-9 -0x1.8574ea7c73a75p-6 0x1.17ca2853f435ep-4 "
    "-0x1.e88b7f6580e3ep-4 0x1.098366a913495p-3 -0x1.85a15c66c7541p-5 -0x1.15c084bbb43c2p-3 0x1.40c522d7e5370p+0"
)


def to_grid(values: Array, exponent: Any) -> Array:
    """Round to multiples of `2**exponent`, ties to even, without a negative zero."""
    return np.ldexp(np.rint(np.ldexp(values, -exponent)) + 0.0, exponent)


def tree_sum(values: Array, axis: int = -1) -> Array:
    """Sum float64 values along an axis, which is kept."""
    x = np.moveaxis(values, axis, 0).astype(F64)
    n = len(x)
    while n > 1:
        h = n // 2
        x[:h] += x[h : 2 * h]
        if n % 2:
            x[0] += x[n - 1]
        n = h
    return np.moveaxis(x[:1], 0, axis)


def root(values: Any) -> Array:
    """Square roots of positive float64 numbers, and of 0."""
    x = np.asarray(values, F64)
    y = ((x.view(np.int64) >> 1) + (1023 << 51)).view(F64)
    for _ in range(4):
        y = (y + x / y) * 0.5
    return np.where(x == 0, x, y)


def horner(x: Array, coefficients: Sequence[float]) -> Array:
    result = np.full_like(x, coefficients[0])
    for each in coefficients[1:]:
        result = result * x + each
    return result


def power_of_two(exponents: Array) -> Array:
    t = np.clip(exponents, -1000.0, 1000.0)
    k = np.rint(t)
    k = np.where(abs(t - k) == 0.5, np.floor(t / 2.0) * 2.0 + 1.0, k)  # of two as near the odd one
    r = t - k
    series = [*map(float.fromhex, EXP2.split()), 1.0]
    return horner(r, series) * np.ldexp(1.0, k.astype(int))


def erfc(values: Array) -> Array:
    x = np.minimum(values, 26.0)
    u = (x - 3.0) / (x + 3.0)
    power = power_of_two((x * x) * -LOG2_E)
    return power * horner(u, [*map(float.fromhex, ERFC.split())]) / (x * 2.0 + 1.0)


def erf(values: Array) -> Array:
    two_over_root_pi = 1.1283791670955126
    series = [two_over_root_pi * (-1.0) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(9, -1, -1)]
    x = values.astype(F64)
    below = horner(np.minimum(x * x, 0.25), series) * x
    above = np.copysign(1.0 - erfc(abs(x)), x)
    return np.where(abs(x) < 0.5, below, above).astype(values.dtype)


def exp(value: Array) -> Array:
    return power_of_two(value.astype(F64) * LOG2_E).astype(value.dtype)


def floor_log2(values: Array) -> Array:
    """The exponent of positive float64 numbers, -1023 of 0."""
    return np.where(values == 0, -1023, np.frexp(values)[1] - 1)


def row_grids(rows: Array) -> Array:
    """Exponents of the grids of rows `[..., n, k]`, by their norms."""
    k = rows.shape[-1]
    budget = float(94906265 - (math.isqrt(k) // 2 + 1))
    bound = tree_sum(rows * rows) * ((1.0 + 2.0**-40) / (budget * budget))
    return floor_log2(bound) // 2 + 1


def product(left: Array, right: Array) -> Array:
    """`left @ right.T` of `[..., m, k]` and `[..., n, k]`, not rounded: float64, a zero positive."""
    total: Any = None
    for first in range(0, left.shape[-1], CHUNK):
        a, b = (each[..., first : first + CHUNK].astype(F64) for each in (left, right))
        a, b = to_grid(a, row_grids(a)), to_grid(b, row_grids(b))
        part = np.matmul(a, np.swapaxes(b, -1, -2))  # exact, in whatever order
        total = part if total is None else total + part
    return total + 0.0


def ceil_log2(number: int) -> int:
    return (number - 1).bit_length()


def column_exponents(rows: Array) -> Array:
    """e of each column: `2**e` is the least power of two above its largest magnitude, e at least -400."""
    largest = abs(rows).max(0)
    return np.maximum(np.where(largest == 0, -400, np.frexp(largest)[1]), -400)


def cross(x: Array, y: Array) -> Array:
    """Sum over rows `[n, p]` and `[n, q]`, `[p, q]` float64."""
    x, y = x.astype(F64), y.astype(F64)
    bits = 53 - ceil_log2(len(x))
    b = (bits - 1) // 3
    e = column_exponents(x)
    x1 = to_grid(x, e - b)
    x2 = to_grid(x - x1, e - 2 * b - 1)
    y1 = to_grid(y, column_exponents(y) - (bits - b))
    return (x1.T @ y1 + 0.0) + x2.T @ y1


def column_totals(rows: Array) -> Array:
    rows = rows.astype(F64)
    return to_grid(rows, column_exponents(rows) - (51 - ceil_log2(len(rows)))).sum(0)


def swap(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)


def matmul(a: Array, b: Array) -> tuple[Array, Pullback]:
    def back(g: Array) -> tuple[Array, Array]:
        return product(g, b).astype(F32), product(swap(a), swap(g)).astype(F32)

    return product(a, swap(b)).astype(F32), back


def linear(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Pullback]:
    """Its pullback gives the gradients to x and to the weight."""
    rows = x.reshape(-1, x.shape[-1])
    result = product(rows, weight)
    if bias is not None:
        result = result + bias.astype(F64)

    def back(g: Array, to_weight: bool = False) -> Any:
        grad = g.reshape(-1, g.shape[-1])
        if to_weight:
            return cross(grad, rows).astype(F32)
        return product(grad, weight.T).astype(F32).reshape(x.shape)

    return result.astype(F32).reshape(*x.shape[:-1], len(weight)), back


def softmax_rows(t: Array) -> Array:
    """Rows of powers `2**t` over their sums; float64."""
    p = power_of_two(t - t.max(-1, keepdims=True))
    total = to_grid(p, ceil_log2(max(4, p.shape[-1])) - 53).sum(-1, keepdims=True)
    return p * (1.0 / total)


def softmax_gradient(g: Array, p: Array) -> Array:
    p = p.astype(F64)
    return (g - tree_sum(g * p)) * p


def softmax(x: Array) -> tuple[Array, Pullback]:
    p = softmax_rows(x.astype(F64) * LOG2_E).astype(F32)
    return p, lambda g: softmax_gradient(g.astype(F64), p).astype(F32)


def attention(query: Array, key: Array, value: Array, causal: bool) -> tuple[Array, Pullback]:
    scale = 1.0 / math.sqrt(query.shape[-1])
    t = product(query.astype(F64) * (scale * LOG2_E), key)
    if causal:
        t = np.where(np.tri(*t.shape[-2:], dtype=bool), t, -np.inf)
    p = softmax_rows(t).astype(F32)

    def back(g: Array) -> tuple[Array, Array, Array]:
        to_scores = softmax_gradient(product(g, value), p) * scale
        to_query, to_key = product(to_scores, swap(key)), product(swap(to_scores), swap(query))
        return to_query.astype(F32), to_key.astype(F32), product(swap(p), swap(g)).astype(F32)

    return product(p, swap(value)).astype(F32), back


def layer_norm(x: Array, gain: Array, shift: Array, eps: float = 1e-5) -> tuple[Array, Pullback]:
    reciprocal = 1.0 / x.shape[-1]
    centred = x.astype(F64) - tree_sum(x) * reciprocal
    inverse = 1.0 / root(tree_sum(centred * centred) * reciprocal + eps)
    unit = centred * inverse

    def back(g: Array) -> Array:
        slope = g.astype(F64) * gain
        mean, along = tree_sum(slope) * reciprocal, tree_sum(slope * unit) * reciprocal
        return (((slope - mean) - unit * along) * inverse).astype(F32)

    return (unit * gain + shift).astype(F32), back


def norm(x: Array) -> Array:
    """Lengths of rows."""
    x = x.astype(F64)
    return root(tree_sum(x * x)[..., 0]).astype(F32)


def normalize(x: Array, axis: int, length: Array | None = None, eps: float = 1e-12) -> tuple[Array, Pullback]:
    """Its pullback gives the gradients to x and to the length."""
    wide = x.astype(F64)
    size = root(tree_sum(wide * wide, axis))
    wanted = np.ones_like(size) if length is None else length.astype(F64).reshape(size.shape)
    factor = wanted / (size + eps)

    def back(g: Array) -> tuple[Array, Array]:
        g = g.astype(F64)
        t = tree_sum(g * wide, axis)
        along = t * factor / ((size + eps) * size)
        return (g * factor - wide * along).astype(F32), (t / (size + eps)).ravel().astype(F32)

    return (wide * factor).astype(F32), back


def quick_gelu(x: Array) -> tuple[Array, Pullback]:
    wide = x.astype(F64)
    s = 1.0 / (power_of_two(wide * (-1.702 * LOG2_E)) + 1.0)
    value = wide * s
    slope = ((1.0 - s) * 1.702 * value + s).astype(F32)
    return value.astype(F32), lambda g: g * slope


def gelu(x: Array) -> tuple[Array, Pullback]:
    wide = x.astype(F64)
    tail = erfc(abs(wide) * 0.7071067811865476) * 0.5
    phi = np.where(wide < 0, tail, 1.0 - tail)
    density = power_of_two((wide * wide) * (-0.5 * LOG2_E)) * 0.3989422804014327
    slope = (density * wide + phi).astype(F32)
    return (wide * phi).astype(F32), lambda g: g * slope


def branches_gradient(*gradients: Array) -> Array:
    total = gradients[0].astype(F64)
    for each in gradients[1:]:
        total = total + each
    return total.astype(F32)


def philox(counter: Sequence[Any], key: tuple[int, int]) -> list[Array]:
    """Four 32-bit words of Philox-4x32-10, as Salmon et al. 2011 have it."""
    c = [np.asarray(each, np.uint64) for each in np.broadcast_arrays(*counter)]
    k0, k1 = key
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0, p1 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p1 >> np.uint64(32)) ^ c[1] ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


def dropout(x: Array, probability: float, seed: int, layer: int, epoch: int, step: int) -> tuple[Array, Pullback]:
    i = np.arange(-(-x.size // 4))
    words = philox((i, layer, epoch, step), (seed % 2**32, seed >> 32))
    kept = np.stack(words, axis=1).ravel()[: x.size].reshape(x.shape) >= math.floor(probability * 2**32)

    def apply(values: Array) -> Array:
        return np.where(kept, values.astype(F64) * (1.0 / (1.0 - probability)), 0.0).astype(F32)

    return apply(x), apply


def mse_loss(predictions: Array, targets: Array) -> tuple[Any, Array]:
    """The loss, in the predictions' precision, and its gradient."""
    difference = predictions.astype(F64) - targets.astype(F64)
    reciprocal = 1.0 / difference.size
    column = difference.reshape(-1, 1)
    loss = (column_totals(column * column)[0] * reciprocal).astype(predictions.dtype)
    return loss, (difference * (2.0 * reciprocal)).astype(predictions.dtype)


def adamw_step(state: dict[str, Any], p: Array, g: Array, lr: float, weight_decay: float) -> Array:
    """Return the next parameters; the state's moments and powers of the betas change."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    state["beta1_power"] *= beta1
    state["beta2_power"] *= beta2
    m, v, wide = (each.astype(F64) for each in (state["exp_avg"], state["exp_avg_sq"], g))
    m = (m + (wide - m) * (1.0 - beta1)).astype(F32)
    v = (v * beta2 + wide * wide * (1.0 - beta2)).astype(F32)
    state["exp_avg"], state["exp_avg_sq"] = m, v
    divisor = root(v) * (1.0 / math.sqrt(1.0 - state["beta2_power"])) + eps
    step = m.astype(F64) / divisor * (lr / (1.0 - state["beta1_power"]))
    return (p.astype(F64) * (1.0 - lr * weight_decay) - step).astype(F32)
