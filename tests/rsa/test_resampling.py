"""Mantel's test and the bootstrap over images, against definitions, rsatoolbox and simulated truth."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from numpy.typing import NDArray

from clip_hba_behavior.data.things import read_annotations, read_human_rdm
from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation
from clip_hba_behavior.rsa.resampling import (
    MantelTest,
    bootstrap,
    draw_counts,
    mantel,
    permuted_products,
    random_orders,
    spread,
)

Array = NDArray[np.float64]


def two_rdms(rng: np.random.Generator, noise: float | None, size: int = 48) -> tuple[Array, Array]:
    """RDMs of embeddings with few large values, as those of THINGS; noise None: of unrelated ones."""
    scales = 0.6 ** np.arange(20)  # few dimensions make most of the distances, so an image's pairs are alike
    human = rng.gamma(0.4, size=(size, 20)) * scales
    model = rng.gamma(0.4, size=human.shape) * scales if noise is None else None
    if model is None:
        model = human + noise * rng.normal(size=human.shape) * scales
    return correlation_distances(model), correlation_distances(human)


def rounded_rdms(seed: int, size: int) -> tuple[Array, Array]:
    """RDMs with many equal dissimilarities."""
    model, human = two_rdms(np.random.default_rng(seed), 0.5, size)
    return model.round(1), human.round(1)


@pytest.fixture(scope="session")
def spose(things: Path) -> tuple[Array, Array]:
    """The RDM of the published embedding, and the human one."""
    targets = read_annotations(things / "spose_embedding66d_rescaled_48val_reordered.csv").targets
    return correlation_distances(targets), read_human_rdm(things / "RDM48_triplet.mat")


# --- Mantel's test ---


@pytest.mark.parametrize("size", [4, 9])
def test_each_permutation_gives_the_rank_correlation_of_the_permuted_rdm(size: int) -> None:
    model, human = rounded_rdms(1, size)
    orders = random_orders("test", 50, size)
    assert (np.sort(orders, axis=1) == np.arange(size)).all()
    observed, null, scale = permuted_products(model, human, orders)
    expected = [rank_correlation(model[np.ix_(order, order)], human)[0] for order in orders]
    np.testing.assert_allclose(null / scale, expected, atol=1e-14)
    assert observed / scale == pytest.approx(rank_correlation(model, human)[0], abs=1e-14)


def test_p_is_the_share_of_all_permutations_that_reach_rho_ties_counted() -> None:
    model, human = rounded_rdms(2, 5)
    rho = rank_correlation(model, human)[0]
    every = np.array(
        [rank_correlation(model[np.ix_(order, order)], human)[0] for order in itertools.permutations(range(5))]
    )
    found = mantel(model, human, 60_000)
    assert found.rho == rho
    # of 60,000 draws a share has a standard error of at most 0.002
    assert found.p_greater == pytest.approx((every > rho - 1e-12).mean(), abs=0.01)
    assert found.p_two_sided == pytest.approx((np.abs(every) > abs(rho) - 1e-12).mean(), abs=0.01)
    assert found.null_sd == pytest.approx(every.std(), abs=0.01)


def test_equal_and_opposite_rdms_have_the_smallest_p_on_their_side() -> None:
    _, human = two_rdms(np.random.default_rng(3), 0.0)
    assert mantel(human, human, 99)[:3] == (1.0, 0.01, 0.01)
    assert mantel(-human, human, 99)[:3] == (-1.0, 1.0, 0.01)


def test_the_same_seed_gives_the_same_test_on_every_machine_and_another_seed_another() -> None:
    model, human = (np.add.outer(np.arange(12), 3 * np.arange(12)) % each for each in (5, 7))
    first = mantel(model, human, 999)
    assert first == mantel(model, human, 999)
    assert first[1:3] == (0.08, 0.17)
    assert mantel(model, human, 999, seed=1)[1:3] != first[1:3]


def test_an_undefined_correlation_has_neither_p_nor_interval() -> None:
    model, human = two_rdms(np.random.default_rng(4), 0.1, 20)
    constant = np.ones_like(model)
    np.testing.assert_equal(tuple(mantel(constant, human, 9)), (np.nan, np.nan, np.nan, np.nan, 9))
    both = bootstrap([constant, model], human, 200)
    assert np.isnan(both[:, 0]).all()
    assert not np.isnan(both[:, 1]).any()
    assert np.isnan(bootstrap([constant], human, 10)).all()
    assert np.isnan(spread(both[:, 0])).all()


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda rdm: mantel(rdm, rdm, 0), "permutations: found 0, expected at least 1"),
        (lambda rdm: mantel(rdm, rdm[:3, :3], 9), r"RDMs of shapes \(4, 4\) and \(3, 3\)"),
        (lambda rdm: bootstrap([rdm], rdm, 1), "resamples: found 1, expected at least 2"),
        (lambda rdm: bootstrap([rdm[:3]], rdm, 9), r"RDMs of shapes \(3, 4\) and \(4, 4\)"),
    ],
)
def test_what_cannot_be_computed_is_refused(work: Callable[[Array], object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        work(two_rdms(np.random.default_rng(5), 0.1, 4)[0])


# --- the bootstrap over images ---


def resampled_rho(model: Array, human: Array, count: Array) -> float:
    """The definition, literally: draw the images, drop the pairs of one image with itself, correlate the rest."""
    drawn = np.repeat(np.arange(len(count)), count.astype(int))
    first, second = np.triu_indices(len(drawn), k=1)
    first, second = drawn[first], drawn[second]
    kept = first != second
    pairs = (each[first, second][kept] for each in (model, human))
    return float(scipy.stats.spearmanr(*pairs).statistic)


@pytest.mark.parametrize("rdms", [two_rdms(np.random.default_rng(6), 0.5), rounded_rdms(7, 20)])
def test_an_estimate_is_the_correlation_over_the_drawn_images_without_self_pairs(
    rdms: tuple[Array, Array],
) -> None:
    model, human = rdms
    counts = draw_counts(20, len(human), seed=3)
    assert (counts.sum(axis=1) == len(human)).all()
    expected = [resampled_rho(model, human, count) for count in counts]
    np.testing.assert_allclose(bootstrap([model], human, 20, seed=3)[:, 0], expected, atol=1e-13)


def test_models_of_the_same_images_see_the_same_draws_so_a_difference_has_an_interval_of_its_own() -> None:
    rng = np.random.default_rng(8)
    human = rng.gamma(0.4, size=(48, 20))
    noise = rng.normal(size=human.shape)
    near, far = (correlation_distances(human + each * noise) for each in (0.5, 0.55))
    human = correlation_distances(human)
    both = bootstrap([near, far, near], human, 2_000)
    assert (both[:, 0] == both[:, 2]).all()
    assert (both[:, 1] == bootstrap([far], human, 2_000)[:, 0]).all()
    sd_of_difference, low, high = spread(both[:, 0] - both[:, 1])
    sd_if_independent = np.hypot(*(spread(both[:, column])[0] for column in (0, 1)))
    assert sd_of_difference < 0.2 * sd_if_independent
    assert 0 < low < high
    assert (bootstrap([near], human, 50, seed=1) != both[:50, :1]).any()


def test_the_interval_leaves_the_same_share_out_on_either_side() -> None:
    assert spread(np.arange(1001.0), level=0.9)[1:] == pytest.approx((50, 950))


# --- rsatoolbox ---


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
def test_rsatoolbox_finds_the_same_on_the_same_draws() -> None:
    """Its subsample of patterns drops self-pairs too; its order of permuted patterns is ours."""
    rdm = pytest.importorskip("rsatoolbox.rdm")
    model, human = two_rdms(np.random.default_rng(9), 0.5)
    theirs = [rdm.RDMs(each[None]) for each in (model, human)]
    counts = draw_counts(10, 48, seed=0)
    expected = []
    for count in counts:
        drawn = np.repeat(np.arange(48), count.astype(int))
        expected.append(
            rdm.compare(*(each.subsample_pattern("index", drawn) for each in theirs), "spearman").item()
        )
    np.testing.assert_allclose(bootstrap([model], human, 10)[:, 0], expected, atol=1e-12)

    orders = random_orders("test", 10, 48)
    _, null, scale = permuted_products(model, human, orders)
    permuted = [
        rdm.compare(rdm.rdms.permute_rdms(theirs[0], order), theirs[1], "spearman").item() for order in orders
    ]
    np.testing.assert_allclose(null / scale, permuted, atol=1e-12)


# --- the real data ---


def test_the_figures_of_the_published_embedding(spose: tuple[Array, Array]) -> None:
    """What takes pairs for independent finds a third of the spread over images, and half of the null's."""
    model, human = spose
    test = mantel(model, human)
    assert test.rho == pytest.approx(0.8644, abs=1e-4)
    assert test.p_greater == test.p_two_sided == 1e-4
    assert test.null_sd == pytest.approx(0.0511, abs=0.001)
    assert 1 / np.sqrt(1128 - 1) == pytest.approx(0.0298, abs=1e-4)  # the formula's, for independent pairs
    sd, low, high = spread(bootstrap([model], human)[:, 0])
    assert sd == pytest.approx(0.0223, abs=0.0005)
    assert (low, high) == pytest.approx((0.811, 0.899), abs=0.002)
    pairs = np.triu_indices(48, k=1)
    rng = np.random.default_rng(0)
    over_pairs = []
    for _ in range(500):
        drawn = rng.integers(0, 1128, 1128)
        over_pairs.append(scipy.stats.spearmanr(model[pairs][drawn], human[pairs][drawn]).statistic)
    assert np.std(over_pairs) == pytest.approx(0.0079, abs=0.0006)


# --- simulated truth ---


def unrelated_cases(cases: int, permutations: int) -> tuple[list[MantelTest], list[float]]:
    """Mantel's tests, and the p that takes pairs for independent."""
    rng = np.random.default_rng(10)
    pairs = [two_rdms(rng, None) for _ in range(cases)]
    tests = [mantel(*each, permutations, seed=number) for number, each in enumerate(pairs)]
    return tests, [rank_correlation(*each)[1] for each in pairs]


def uniformity(p_values: list[float]) -> float:
    return float(scipy.stats.kstest(p_values, "uniform").pvalue)


def test_p_is_uniform_where_nothing_is_and_that_of_the_results_is_not() -> None:
    tests, naive = unrelated_cases(200, 199)
    assert uniformity([test.p_greater for test in tests]) > 0.01
    assert uniformity([test.p_two_sided for test in tests]) > 0.01
    assert uniformity(naive) < 0.001
    assert np.mean(np.array(naive) < 0.05) > 0.12


@pytest.mark.system
@pytest.mark.timeout(1800)
def test_p_is_uniform_over_2000_cases() -> None:
    tests, naive = unrelated_cases(2_000, 999)
    for name in ("p_greater", "p_two_sided"):
        found = np.array([getattr(test, name) for test in tests])
        print(name, uniformity(list(found)), {level: (found <= level).mean() for level in (0.01, 0.05, 0.1)})
        assert uniformity(list(found)) > 0.01
        for level in (0.01, 0.05, 0.1):  # within three standard errors
            assert abs((found <= level).mean() - level) < 3 * np.sqrt(level * (1 - level) / 2_000)
    print("naive", uniformity(naive), {level: np.mean(np.array(naive) <= level) for level in (0.01, 0.05, 0.1)})
    assert uniformity(naive) < 1e-30


def power(cases: int, permutations: int, noise: float) -> tuple[float, float]:
    """The share of true effects found at 5 %, one-sided: by Mantel's test, and by the null as simulated.

    The null is of the same models, each beside the human RDM of another case.
    """
    rng = np.random.default_rng(11)
    effects = [two_rdms(rng, noise) for _ in range(cases)]
    null = [rank_correlation(effects[number - 1][0], human)[0] for number, (_, human) in enumerate(effects)]
    tests = [mantel(*each, permutations, seed=number) for number, each in enumerate(effects)]
    known = np.mean([test.rho > np.quantile(null, 0.95) for test in tests])
    return float(np.mean([test.p_greater <= 0.05 for test in tests])), float(known)


def test_a_weak_effect_is_found_as_often_as_by_the_true_null() -> None:
    found, known = power(150, 199, noise=1.5)
    assert 0.15 < known < 0.85, "the effect is weak, and there"
    assert abs(found - known) < 0.15


@pytest.mark.system
@pytest.mark.timeout(1800)
def test_power_for_a_weak_effect_is_that_of_the_true_null() -> None:
    found, known = power(1_000, 999, noise=1.5)
    print(found, known)
    assert abs(found - known) < 0.1


def coverage(truth: float, sampled: Callable[[], tuple[Array, Array]], cases: int, resamples: int) -> list[float]:
    """The share of intervals that hold the truth; the estimates' standard deviation, and the bootstrap's."""
    is_within, estimates, spreads = [], [], []
    for number in range(cases):
        model, human = sampled()
        sd, low, high = spread(bootstrap([model], human, resamples, seed=number)[:, 0])
        is_within.append(low <= truth <= high)
        estimates.append(rank_correlation(model, human)[0])
        spreads.append(sd)
    return [float(np.mean(is_within)), float(np.std(estimates)), float(np.mean(spreads))]


def population(noise: float, size: int) -> tuple[float, Callable[[], tuple[Array, Array]]]:
    """Rho over many images, and a way to draw 48 of them."""
    rng = np.random.default_rng(12)
    model, human = two_rdms(rng, noise, size)

    def sampled() -> tuple[Array, Array]:
        some = rng.permutation(size)[:48]
        return model[np.ix_(some, some)], human[np.ix_(some, some)]

    return rank_correlation(model, human)[0], sampled


def test_intervals_hold_the_truth() -> None:
    truth, sampled = population(0.3, 1_000)
    found, _, _ = coverage(truth, sampled, cases=60, resamples=200)
    assert found >= 0.88  # 0.95 less two and a half standard errors
    beside, _, _ = coverage(truth - 0.3, sampled, cases=60, resamples=200)
    assert beside < 0.5, "what is not the truth is not held"


@pytest.mark.system
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0, 3.0])
def test_intervals_hold_the_truth_about_as_often_as_they_say_or_more(noise: float) -> None:
    truth, sampled = population(noise, 1_500)
    found, true_sd, bootstrap_sd = coverage(truth, sampled, cases=500, resamples=1_000)
    print(f"rho {truth:.3f}: coverage {found:.3f}, sd {true_sd:.4f}, bootstrap's {bootstrap_sd:.4f}")
    assert found >= 0.9
    assert bootstrap_sd > 0.9 * true_sd
