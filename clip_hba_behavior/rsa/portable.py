"""RDMs and their rank correlation, with the same bits on every machine.

Each result is defined as a real number that is rounded once, to the nearest float64; so the textbook's formulas
are the whole definition. They are computed with Python's integers, whose quotient is correctly rounded, and with
`decimal`. The results differ from those of `rank_correlation.py` in the last digits; arguments, undefined cases
and errors are the same.
"""

import math
from decimal import (
    MAX_EMAX,
    MIN_EMIN,
    ROUND_HALF_EVEN,
    Context,
    Decimal,
    DivisionByZero,
    InvalidOperation,
    localcontext,
)
from operator import mul

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.rsa.rank_correlation import NAN, pairs_of, ranks_of, rows_of

_GUARD_BITS = 128  # between an irrational result's computed and true value, so that both round to the same float64
_GUARD_DIGITS = 60
_HALVINGS = 8


def correlation_distances(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return 1 - Pearson's correlation between every two rows.

    Definition: with x and y two rows of d numbers, X = d x - sum(x) and Y = d y - sum(y), an entry is the float64
    nearest to the real number `1 - sum(X Y) / sqrt(sum(X X) sum(Y Y))`; nothing before it is rounded. So the
    matrix is exactly symmetric, its diagonal is 0, and multiples of a row are exactly 0 or 2 away from it.

    Args:
        embeddings: `[n, d]`, one row an image; taken as float64, which holds every float32.

    Returns:
        `[n, n] float64`. All distances of a row that is constant or not finite are nan, that to itself too.

    Raises:
        ValueError: `embeddings` has not two axes, or less than one column.
    """
    rows = rows_of(embeddings)
    distances = np.full((len(rows), len(rows)), NAN)
    deviations = {place: _deviations(row) for place, row in enumerate(rows) if np.isfinite(row).all()}
    squares = {place: _product(row, row) for place, row in deviations.items()}
    defined = [place for place, square in squares.items() if square]
    for first in defined:
        distances[first, first] = 0.0
        for second in defined:
            if second <= first:
                continue
            product = _product(deviations[first], deviations[second])
            dividend, divisor = _correlation(product, squares[first] * squares[second])
            distances[first, second] = distances[second, first] = (divisor - dividend) / divisor
    return distances


def rank_correlation(model_rdm: NDArray[np.floating], human_rdm: NDArray[np.floating]) -> tuple[float, float]:
    """Return Spearman's correlation of two RDMs over their upper triangles, and its two-sided p.

    Definition: with r and s the ranks of the n pairs, equal values sharing the mean of theirs, R = n r - sum(r)
    and S = n s - sum(s), rho is the float64 nearest to the real number `sum(R S) / sqrt(sum(R R) sum(S S))`. p is
    the float64 nearest to the probability that Student's t with n - 2 degrees of freedom is at least
    `|rho| sqrt((n - 2) / (1 - rho^2))` in size, where rho is the real number before its rounding; 0 where rho is
    exactly 1 or -1. The order of the arguments does not matter.

    p is computed by the finite series of Abramowitz and Stegun, 26.7.3 (odd degrees of freedom) and 26.7.4 (even).

    Args:
        model_rdm: `[n, n]`; the diagonal and what is below it are not read.
        human_rdm: `[n, n]`.

    Returns:
        rho and p; both nan where the correlation is undefined: an entry is nan, one side is constant,
        or there are fewer than three pairs.

    Raises:
        ValueError: The two are not square matrices of one size.
    """
    pairs = pairs_of(model_rdm, human_rdm)
    if pairs is None:
        return NAN, NAN
    model, human = (_deviations(ranks_of(values)) for values in pairs)
    product, squares = _product(model, human), _product(model, model) * _product(human, human)
    dividend, divisor = _correlation(product, squares)
    return dividend / divisor, _two_sided_p(product, squares, len(model) - 2)


def _deviations(row: NDArray[np.float64]) -> list[int]:
    """Return finite numbers' deviations from their mean, exact but for one common factor."""
    ratios = [value.as_integer_ratio() for value in row.tolist()]
    common = max(denominator for _, denominator in ratios)  # powers of two all
    numbers = [numerator * (common // denominator) for numerator, denominator in ratios]
    total = sum(numbers)
    return [len(numbers) * number - total for number in numbers]


def _product(first: list[int], second: list[int]) -> int:
    return sum(map(mul, first, second))


def _correlation(product: int, squares: int) -> tuple[int, int]:
    """Return a dividend and a divisor whose quotient is `product / sqrt(squares)`.

    The divisor is cut to an integer. Guard bits, and as many again as 1 - quotient can cancel, make the error
    smaller than what could turn a rounding; the root of a square is exact.
    """
    shift = _GUARD_BITS + squares.bit_length()
    return product << shift, math.isqrt(squares << 2 * shift)


def _two_sided_p(product: int, squares: int, degrees: int) -> float:
    """Return p of a correlation `product / sqrt(squares)`, which is the sine of the series' angle.

    Args:
        product: at most the root of `squares` in size.
        squares: positive.
        degrees: of freedom, at least 1.
    """
    sine_squared, cosine_squared = product * product, squares - product * product
    digits = Context(
        prec=_GUARD_DIGITS,
        rounding=ROUND_HALF_EVEN,
        Emin=MIN_EMIN,
        Emax=MAX_EMAX,
        clamp=0,
        traps=[InvalidOperation, DivisionByZero],
    )
    with localcontext(digits) as context:
        # p is at most the cosine's power, and not much less: what 1 - p of the series needs to have digits left.
        magnitude = (
            ((Decimal(cosine_squared) / squares) ** degrees).adjusted() // 2 if cosine_squared else MIN_EMIN
        )
        if magnitude < -330:  # below half the smallest float64
            return 0.0
        context.prec -= magnitude
        x = Decimal(cosine_squared) / squares
        sine, cosine = (Decimal(sine_squared) / squares).sqrt(), x.sqrt()
        odd = degrees % 2
        term, total = cosine if odd else Decimal(1), Decimal(0)
        for k in range(1, degrees // 2 + 1):
            total += term
            term = term * x * (2 * k - 1 + odd) / (2 * k + odd)
        inside = sine * total
        if odd:
            inside = (_angle(sine, cosine) + inside) / _angle(Decimal(1), Decimal(0))
        return float(1 - inside)


def _angle(sine: Decimal, cosine: Decimal) -> Decimal:
    """Return the angle from 0 to pi/2 that has this sine and cosine, by arctan's series at a fraction of it."""
    tangent = sine / (1 + cosine)  # of half the angle
    for _ in range(_HALVINGS):
        tangent = tangent / (1 + (1 + tangent * tangent).sqrt())
    power, angle, before, k = tangent, Decimal(0), Decimal(-1), 1
    while angle != before:
        before = angle
        angle += power / k
        power *= -tangent * tangent
        k += 2
    return angle * (2 << _HALVINGS)
