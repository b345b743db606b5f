"""The references are the definitions in mpmath, with so many digits that the last rounding alone decides."""

import time
from decimal import Decimal, localcontext
from pathlib import Path

import mpmath
import numpy as np
import pytest
import scipy.io
import scipy.stats

from clip_hba_behavior.rsa import portable
from clip_hba_behavior.rsa import rank_correlation as native

DIGITS = 80


def random_rows(rows: int, columns: int = 66, seed: int = 7) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).normal(size=(rows, columns))


def remainders(*shape: int, factor: int = 7919) -> np.ndarray:
    """Numbers made of integers alone, for digits that are written down here."""
    places = np.arange(1, np.prod(shape) + 1)
    return (places * places * factor % 10007 / 64.0 - 50.0).reshape(shape)


def rdm_of(pairs: np.ndarray) -> np.ndarray:
    """An RDM that begins with these pairs; undefined below the diagonal, which is not read."""
    num_images = int((1 + np.sqrt(1 + 8 * len(pairs))) / 2)
    assert num_images * (num_images - 1) // 2 == len(pairs)
    rdm = np.full((num_images, num_images), np.nan)
    rdm[np.triu_indices(num_images, k=1)] = pairs
    return rdm


def correlation(first: np.ndarray, second: np.ndarray) -> mpmath.mpf:
    x, y = ([mpmath.mpf(value) for value in side.tolist()] for side in (first, second))
    x, y = ([value - mpmath.fsum(side) / len(side) for value in side] for side in (x, y))
    squares = mpmath.fsum(value**2 for value in x) * mpmath.fsum(value**2 for value in y)
    return mpmath.fsum(a * b for a, b in zip(x, y, strict=True)) / mpmath.sqrt(squares)


def spearman(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    rho = correlation(scipy.stats.rankdata(first), scipy.stats.rankdata(second))
    outside = 1 - rho**2
    if abs(outside) < mpmath.mpf(10) ** (50 - DIGITS):
        return float(rho), 0.0
    p = mpmath.betainc(mpmath.mpf(len(first) - 2) / 2, mpmath.mpf(1) / 2, 0, outside, regularized=True)
    return float(rho), float(p)


def samples(generator: np.random.Generator, n: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    first, noise = generator.normal(size=n), generator.normal(size=n)
    match kind:
        case "independent":
            return first, noise
        case "nearly the same":
            return first, first**3 + 10.0 ** generator.integers(-4, 1) * noise
        case "nearly reversed":
            return first, -first + 0.1 * noise
        case "many ties":
            return np.round(2 * first), np.round(2 * noise)
        case _:
            return first, first if generator.random() < 0.5 else -first


@pytest.mark.parametrize("kind", ["independent", "nearly the same", "nearly reversed", "many ties", "perfect"])
def test_rho_and_p_are_the_definitions_rounded_once(kind: str) -> None:
    generator = np.random.Generator(np.random.Philox(11))
    degrees = set()
    with mpmath.workdps(DIGITS):
        for n in (3, 6, 10, 15, 21, 28, 36, 45, 55, 66, 105, 231):
            for _ in range(3):
                model, human = samples(generator, n, kind)
                if (model == model[0]).all() or (human == human[0]).all():
                    continue
                degrees.add(n % 2)
                assert portable.rank_correlation(rdm_of(model), rdm_of(human)) == spearman(model, human), n
    assert degrees == {0, 1}


@pytest.mark.parametrize("noise", [0.3, 3.0, 1000.0])
@pytest.mark.parametrize("n", [1081, 1128])
def test_a_benchmarks_pairs_too(noise: float, n: int) -> None:
    model = random_rows(1, n)[0]
    human = model + noise * random_rows(1, n, seed=8)[0]
    with mpmath.workdps(DIGITS):
        expected = spearman(model, human)
    rho, p = portable.rank_correlation(rdm_of(model), rdm_of(human))
    assert (rho, p) == expected
    assert portable.rank_correlation(rdm_of(human), rdm_of(model)) == (rho, p)
    found = scipy.stats.spearmanr(model, human)
    assert rho == pytest.approx(found.statistic, rel=1e-13, abs=1e-15)
    assert p == pytest.approx(found.pvalue, rel=1e-10, abs=1e-300)  # its t amplifies the rounding of its rho


def test_no_correlation_has_p_1_and_a_perfect_one_p_0() -> None:
    for n in (3, 6, 1128):
        pairs = np.arange(n, dtype=np.float64)
        assert portable.rank_correlation(rdm_of(pairs), rdm_of(3 * pairs)) == (1.0, 0.0)
        assert portable.rank_correlation(rdm_of(pairs), rdm_of(-pairs)) == (-1.0, 0.0)
        assert portable.rank_correlation(rdm_of(pairs), rdm_of((2 * pairs - n + 1) ** 2)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("num_reversed", "p"), [(469, 0.0), (470, 5e-324), (474, 3.91915e-318), (489, 3.35924059518125e-297)]
)
def test_p_may_be_subnormal_or_underflow(num_reversed: int, p: float) -> None:
    model = np.arange(1128, dtype=np.float64)
    human = model.copy()
    human[:num_reversed] = human[:num_reversed][::-1]
    with mpmath.workdps(DIGITS):
        expected = spearman(model, human)
    assert portable.rank_correlation(rdm_of(model), rdm_of(human)) == expected
    assert expected[1] == p


def test_distances_are_the_definition_rounded_once() -> None:
    rows = np.concatenate((random_rows(4), random_rows(1) * 1e-5, random_rows(1) + 1e-9)).astype(np.float32)
    distances = portable.correlation_distances(rows)
    with mpmath.workdps(DIGITS):
        expected = [[float(1 - correlation(a, b)) for b in rows] for a in rows]
    np.testing.assert_array_equal(distances - np.diag(np.diag(distances)), expected - np.diag(np.diag(expected)))
    assert (np.diag(distances) == 0.0).all()
    np.testing.assert_array_equal(distances, distances.T)
    np.testing.assert_allclose(distances, native.correlation_distances(rows), rtol=0, atol=1e-15)
    assert portable.correlation_distances(rows.astype(np.float64)).tobytes() == distances.tobytes()


def test_multiples_of_a_row_are_at_0_and_2() -> None:
    row = random_rows(1)[0]
    assert portable.correlation_distances(np.stack((row, 4 * row, -0.5 * row))).tolist() == [
        [0.0, 0.0, 2.0],
        [0.0, 0.0, 2.0],
        [2.0, 2.0, 0.0],
    ]


@pytest.mark.parametrize("scale", [5e-324, 1e-200, 1e308 / 5])
def test_numbers_of_any_size_have_distances(scale: float) -> None:
    rows = np.round(random_rows(3) * 1000) / 1000
    found = portable.correlation_distances(np.round(rows * 4) * scale if scale < 1e-300 else rows * scale)
    np.testing.assert_allclose(found, native.correlation_distances(rows), atol=0.1 if scale < 1e-300 else 1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, -3e30, np.nan, np.inf, "one nan", "one infinity"])
def test_undefined_rows_are_those_of_the_native_distances(value: float | str) -> None:
    rows = random_rows(4)
    whole = portable.correlation_distances(rows)
    if isinstance(value, str):
        rows[2, 5] = np.nan if value == "one nan" else np.inf
    else:
        rows[2] = value
    found = portable.correlation_distances(rows)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(native.correlation_distances(rows)))
    others = np.ix_([0, 1, 3], [0, 1, 3])
    assert found[others].tobytes() == whole[others].tobytes()


def test_no_rows_one_row_and_one_column_give_matrices_too() -> None:
    assert portable.correlation_distances(np.empty((0, 66))).shape == (0, 0)
    assert portable.correlation_distances(random_rows(1)).tolist() == [[0.0]]
    assert np.isnan(portable.correlation_distances(random_rows(3, 1))).all()


def test_undefined_correlations_and_wrong_shapes_are_those_of_the_native_ones() -> None:
    model = portable.correlation_distances(random_rows(4))
    broken = model.copy()
    broken[0, 1] = np.nan
    two = portable.correlation_distances(random_rows(2))
    for pair in ((broken, model), (model, broken), (model, np.ones((4, 4))), (np.ones((4, 4)), model), (two, two)):
        assert np.isnan(portable.rank_correlation(*pair)).all()
    with pytest.raises(ValueError, match=r"\(4, 4\) and \(5, 5\); expected two \[n, n\]"):
        portable.rank_correlation(np.ones((4, 4)), np.ones((5, 5)))
    with pytest.raises(ValueError, match=r"shape \(66,\); expected \[images, dimensions\]"):
        portable.correlation_distances(np.ones(66))


def test_infinite_and_equal_distances_have_ranks() -> None:
    model = np.array([np.inf, -np.inf, 0.0, -0.0, 5e-324, 2.0])
    human = np.array([1.0, -1.0, 0.0, 0.0, 0.25, 0.5])
    assert portable.rank_correlation(rdm_of(model), rdm_of(human)) == (1.0, 0.0)


def test_the_bits_are_these_forever() -> None:
    distances = portable.correlation_distances(remainders(48, 66).astype(np.float32))
    human = remainders(48, 48, factor=7907)
    assert [distances[place].hex() for place in ((0, 1), (3, 40), (46, 47))] == [
        "0x1.c532d9742113cp-1",
        "0x1.f517be4fd2a99p-1",
        "0x1.04e2b96e0f55ep+0",
    ]
    found = [
        portable.rank_correlation(distances, human),
        portable.rank_correlation(distances, distances + human / 200),
        portable.rank_correlation(distances[:7, :7], human[:7, :7]),  # an odd number of pairs
    ]
    assert [(rho.hex(), p.hex()) for rho, p in found] == [
        ("0x1.e37c7842c75d2p-6", "0x1.49cbe11db885cp-2"),
        ("0x1.c1237bb65558ep-2", "0x1.2efc8b172c828p-178"),
        ("-0x1.65bc2d37308a5p-2", "0x1.edf6577accd38p-4"),
    ]


def test_another_decimal_context_changes_nothing() -> None:
    model, human = rdm_of(random_rows(1, 21)[0]), rdm_of(random_rows(1, 21, seed=8)[0])
    usual = portable.rank_correlation(model, human)
    with localcontext() as context:
        context.prec, context.Emax, context.rounding = 3, 5, "ROUND_UP"
        assert portable.rank_correlation(model, human) == usual
        assert context.prec == 3
    assert Decimal(1) / 3 == Decimal("0.3333333333333333333333333333")


def test_the_recorded_predictions_agree_with_the_native_results_to_the_last_digits(reference: Path) -> None:
    predictions = np.load(reference / "run" / "pred48_epoch6.npy")
    human = scipy.io.loadmat(str(reference / "dataset" / "RDM48_triplet.mat"))["RDM48_triplet"]
    distances = portable.correlation_distances(predictions)
    np.testing.assert_allclose(distances, native.correlation_distances(predictions), rtol=0, atol=1e-15)
    rho, p = portable.rank_correlation(distances, human)
    native_rho, native_p = native.rank_correlation(distances, human)
    assert rho == pytest.approx(native_rho, rel=1e-13)
    assert p == pytest.approx(native_p, rel=1e-11)
    assert [rho.hex(), p.hex()] == ["0x1.a7b76e7bea39dp-2", "0x1.42f18f286fc98p-157"]


def test_a_benchmark_takes_milliseconds() -> None:
    rows, human = random_rows(48).astype(np.float32), rdm_of(random_rows(1, 1128)[0])
    started = time.process_time()
    distances = portable.correlation_distances(rows)
    after = time.process_time()
    portable.rank_correlation(distances, human)
    assert after - started < 0.12  # 0.015 on an idle machine
    assert time.process_time() - after < 0.1  # 0.005
