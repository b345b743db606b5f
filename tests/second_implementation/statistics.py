"""RDMs, their rank correlation and the schedule's cosine: real numbers, rounded once."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np

from second_implementation.numerics import Array

DIGITS = 100
PI = Decimal("3.14159265358979323846264338327950288419716939937510582097494459230781640628620899")


def deviations(values: list[Fraction]) -> list[int]:
    """What is left of the mean, times a common factor, which no correlation depends on."""
    common = math.lcm(*(each.denominator for each in values))
    numbers = [int(each * common) for each in values]
    total = sum(numbers)
    return [len(numbers) * each - total for each in numbers]


def correlation(x: list[int], y: list[int]) -> Decimal:
    """Pearson's, of deviations, to as many digits as the context has."""
    return Decimal(dot(x, y)) / (Decimal(dot(x, x)) * dot(y, y)).sqrt()


def dot(x: list[int], y: list[int]) -> int:
    return sum(a * b for a, b in zip(x, y, strict=True))


def correlation_distances(embeddings: Array) -> Array:
    rows = [deviations([Fraction(each) for each in row]) for row in embeddings.tolist()]
    distances = np.zeros((len(rows), len(rows)))
    with localcontext(prec=DIGITS):
        for i, j in zip(*np.triu_indices(len(rows), 1), strict=True):
            distances[i, j] = distances[j, i] = float(1 - correlation(rows[i], rows[j]))
    return distances


def ranks(values: list[float]) -> list[Fraction]:
    places: dict[float, list[int]] = {}
    for place, value in enumerate(sorted(values), start=1):
        places.setdefault(value, []).append(place)
    return [Fraction(sum(places[value]), len(places[value])) for value in values]


def rank_correlation(model_rdm: Array, human_rdm: Array) -> tuple[float, float]:
    upper = np.triu_indices(len(model_rdm), 1)
    with localcontext(prec=DIGITS):
        rho = correlation(*(deviations(ranks(rdm[upper].tolist())) for rdm in (model_rdm, human_rdm)))
        return float(rho), float(two_sided_p(rho, len(upper[0]) - 2))


def two_sided_p(rho: Decimal, degrees: int) -> Decimal:
    """The regularised incomplete beta function `I_x(degrees / 2, 1/2)`, x = 1 - rho**2, for even degrees, by a
    series.

    `I_x(a, 1/2) = x**a sqrt(1 - x) / (a B(a, 1/2)) * sum_n x**n (a + 1/2)_n / (a + 1)_n`, 8.17.8 of the DLMF.
    """
    a, x = degrees // 2, 1 - rho * rho
    beta = Fraction(2)  # B(1, 1/2)
    for k in range(1, a):
        beta *= Fraction(2 * k, 2 * k + 1)
    term, total, n = Decimal(1), Decimal(0), 0
    while total + term != total:
        total += term
        term *= x * (2 * a + 1 + 2 * n) / (2 * a + 2 + 2 * n)
        n += 1
    return x**a * (rho * rho).sqrt() / (a * beta.numerator) * beta.denominator * total


def cosine(numerator: int, denominator: int) -> float:
    """cos(pi * numerator / denominator)."""
    with localcontext(prec=80):
        angle = PI * numerator / denominator
        term, total, k = Decimal(1), Decimal(0), 0
        while abs(term) > Decimal(10) ** -70:
            total += term
            term *= -angle * angle / ((k + 1) * (k + 2))
            k += 2
        return float(total.quantize(Decimal(10) ** -60))


def learning_rate(epoch: int, config: dict[str, Any]) -> float:
    """Of `warmup_cosine`."""
    peak, minimum = config["lr"], config["lr_min"]
    warmup, last = config["lr_warmup_epochs"], config["lr_schedule_epochs"]
    if epoch < warmup:
        return peak * epoch / warmup
    descent = max(1, last + 1 - warmup)
    return minimum + (peak - minimum) * 0.5 * (1.0 + cosine(min(epoch - warmup, descent), descent))


def mean_of_steps(losses: list[float], lengths: list[int]) -> float:
    total = 0.0
    for loss, length in zip(losses, lengths, strict=True):
        total += loss * length
    return total / math.fsum(lengths)
