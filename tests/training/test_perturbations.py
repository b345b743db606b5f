import dataclasses
import hashlib
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from clip_hba_behavior.config import make_config
from clip_hba_behavior.reproducibility.state.digest import digest, leaf_digest
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.training.perturbations import (
    _CENTRE,
    _FAR_TAIL,
    _TAIL,
    Perturbation,
    earlier_population,
    exact_population,
    noise,
    normals,
    perturbation_of,
    random_targets,
    reordering,
    shuffle,
    stream,
)

TABLE = torch.arange(40 * 66, dtype=torch.float32).reshape(40, 66) / 7  # stands for the annotation table
POPULATION = exact_population(TABLE)

DRAWS: dict[str, tuple[Callable[..., torch.Tensor], str]] = {
    # name: (the draw of (seed, epoch, batch), its digest for (5, 7, 3))
    "normal targets": (
        lambda *key: random_targets(*key, (16, 66), POPULATION, "normal"),
        "bb771b75516d620c2bd889af77758f4a",
    ),
    "targets of the table": (
        lambda *key: random_targets(*key, (16, 66), POPULATION, "target"),
        "282da62ad2eebd99e98a0deb450af7fd",
    ),
    "shuffle": (lambda *key: shuffle(*key, 64), "950b291eab24a6489793cb7bbd204dbd"),
    "noise": (lambda *key: noise(*key, (2, 3, 224, 224)), "5ba23d4c27030f29441ef9983185b88d"),
}
ORDER = "88ed5c25f9b91c797f391f99ab7cf5a6"  # the digest of the order of 64 for seed 5 and epoch 7
KINDS: dict[str, dict[str, Any]] = {
    "normal targets": {"perturb_type": "random_target"},
    "targets of the table": {"perturb_type": "random_target", "perturb_distribution": "target"},
    "earlier targets": {"perturb_type": "random_target", "perturb_rule": "earlier"},
    "shuffle": {"perturb_type": "label_shuffle"},
    "earlier shuffle": {"perturb_type": "label_shuffle", "perturb_rule": "earlier"},
    "noise": {"perturb_type": "image_noise"},
    "uniform": {"perturb_type": "uniform_images"},
    "order": {"perturb_type": "reorder"},
    "none": {},
}


def perturbation(name: str, table: torch.Tensor = TABLE, **keys: Any) -> Perturbation:
    """The perturbation of epochs 3 and 4 that a configuration gives."""
    window = {"perturb_epoch": 3, "perturb_length": 2} if name != "none" else {}
    return perturbation_of(make_config(KINDS[name] | window | keys), table, torch.arange(0, 30))


# --- the draws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("name", DRAWS)
def test_a_draw_has_the_recorded_bits_on_any_number_of_threads(name: str, num_threads: int) -> None:
    draw, expected = DRAWS[name]
    torch.set_num_threads(num_threads)
    assert leaf_digest(draw(5, 7, 3))[:32] == expected


def test_every_branch_of_the_normal_numbers_has_the_recorded_bits() -> None:
    assert hashlib.sha256(normals(edge_words()).tobytes()).hexdigest()[:32] == "820b970c19f2b4640e2ae02f5f6f4c25"


def edge_words() -> np.ndarray:
    """The least and greatest words, and for every power of two one close to either end."""
    low = [2**power + 12345 for power in range(12, 64)]
    return np.array([0, 2**64 - 1, 2**63, 2**63 - 1, *low, *(2**64 - each for each in low)], dtype=np.uint64)


def scalar_normal(word: int) -> float:
    """Algorithm AS 241 once more, in Python's floats, one IEEE operation after the other."""

    def polynomial(coefficients: tuple[float, ...], x: float) -> float:
        result = coefficients[0]
        for each in coefficients[1:]:
            result = result * x
            result = result + each
        return result

    def logarithm(value: float) -> float:
        fraction, exponent = math.frexp(value)
        if fraction < math.sqrt(0.5):
            fraction, exponent = fraction * 2, exponent - 1
        s = (fraction - 1) / (fraction + 1)
        series = polynomial(tuple(1 / each for each in range(23, 0, -2)), s * s)
        return exponent * 0.6931471805599453 + s * 2 * series

    uniform = ((word >> 12) + 0.5) / 2**52
    q = uniform - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * (polynomial(_CENTRE[0], r) / polynomial(_CENTRE[1], r))
    r = math.sqrt(-logarithm(min(uniform, 1 - uniform)))
    table, r = (_TAIL, r - 1.6) if r <= 5 else (_FAR_TAIL, r - 5)
    return math.copysign(polynomial(table[0], r) / polynomial(table[1], r), q)


def test_normal_numbers_are_those_of_a_scalar_transcription_to_the_bit() -> None:
    words = np.concatenate([edge_words(), stream(0, "test", 1, 0).random_raw(3000)])
    assert normals(words).tolist() == [scalar_normal(word) for word in words.tolist()]


def test_normal_numbers_invert_the_distribution_function() -> None:
    words = np.concatenate([edge_words(), stream(0, "test", 1, 0).random_raw(3000)])
    known = statistics.NormalDist()
    expected = [known.inv_cdf(((word >> 12) + 0.5) / 2**52) for word in words.tolist()]
    np.testing.assert_allclose(normals(words), expected, rtol=1e-14)


def test_noise_and_random_targets_have_the_moments_that_they_should() -> None:
    drawn = noise(1, 1, 0, (8, 3, 64, 64)).double()
    assert abs(drawn.mean()) < 0.015
    assert abs(drawn.std() - 1) < 0.01
    assert abs(drawn.pow(4).mean() - 3) < 0.1
    targets = random_targets(1, 1, 0, (2000, 66), POPULATION, "normal").double()
    assert abs(targets.mean() / POPULATION.mean - 1) < 0.01
    assert abs(targets.std() / POPULATION.std - 1) < 0.01


def test_targets_of_the_table_are_its_values_each_as_often() -> None:
    few = exact_population(torch.arange(11, dtype=torch.float32))
    drawn = random_targets(1, 1, 0, (500, 66), few, "target")
    values, counts = drawn.unique(return_counts=True)
    assert values.tolist() == list(range(11))
    assert all(abs(count / 3000 - 1) < 0.1 for count in counts.tolist())


def test_a_shuffle_is_a_permutation_and_every_one_comes_up() -> None:
    found = {tuple(shuffle(0, 1, batch, 4).tolist()) for batch in range(300)}
    assert found == set(itertools.permutations(range(4)))
    assert shuffle(0, 1, 0, 1).tolist() == [0]


@pytest.mark.parametrize("name", DRAWS)
def test_no_two_seeds_epochs_or_batches_share_a_draw(name: str) -> None:
    draw = DRAWS[name][0]
    # among them those that the sum seed + 1000 * epoch + batch takes for one
    keys = [*itertools.product((0, 1, 2), (1, 2), (0, 1, 2)), (1000, 1, 0), (0, 2, 1000)]
    assert len({leaf_digest(draw(*key)) for key in keys}) == len(keys)


def test_kinds_do_not_share_their_words() -> None:
    kinds = ("random_target/normal", "random_target/target", "label_shuffle", "image_noise")
    assert len({int(stream(0, kind, 1, 0).random_raw()) for kind in (*kinds, "reorder")}) == len(kinds) + 1


def test_a_new_order_has_the_recorded_bits_and_no_two_seeds_or_epochs_share_it() -> None:
    assert leaf_digest(reordering(5, 7, 64))[:32] == ORDER
    keys = [*itertools.product((0, 1, 2), (1, 2, 3)), (1000, 1), (0, 1001)]
    assert len({leaf_digest(reordering(*key, 64)) for key in keys}) == len(keys)
    found = {tuple(reordering(seed, 1, 4).tolist()) for seed in range(300)}
    assert found == set(itertools.permutations(range(4)))
    assert reordering(0, 1, 1).tolist() == [0]


@pytest.mark.parametrize("name", KINDS)
def test_nothing_global_is_drawn_from(name: str) -> None:
    before = digest(capture_rng_state())
    found = perturbation(name)
    found.targets(3, 0, TABLE[:16])
    found.order(3, torch.arange(40))
    if name in ("noise", "uniform"):
        found.pixels(3, 0, (16, 3, 32, 32))
    assert digest(capture_rng_state()) == before


def test_noise_does_not_depend_on_how_much_is_drawn_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = noise(1, 2, 3, (4, 3, 32, 32))
    monkeypatch.setattr("clip_hba_behavior.training.perturbations._BLOCK", 1000)
    assert leaf_digest(noise(1, 2, 3, (4, 3, 32, 32))) == leaf_digest(whole)


# --- what becomes of a batch ------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_only_the_window_is_perturbed(name: str) -> None:
    found = perturbation(name)
    kind = KINDS[name].get("perturb_type", "none")
    assert [found.kind_in(epoch) for epoch in range(1, 7)] == ["none", "none", kind, kind, "none", "none"]
    changed = [
        leaf_digest(found.targets(epoch, 0, TABLE[:16])) != leaf_digest(TABLE[:16]) for epoch in (2, 3, 4, 5)
    ]
    assert changed == [False, *[kind in ("random_target", "label_shuffle")] * 2, False]
    own = torch.arange(40).flip(0)
    orders = [found.order(epoch, own) for epoch in (2, 3, 4, 5)]
    assert [not torch.equal(order, own) for order in orders] == [False, *[kind == "reorder"] * 2, False]
    assert all(sorted(order.tolist()) == list(range(40)) for order in orders)
    images = kind in ("image_noise", "uniform_images")
    assert [found.changes_images_after(epoch) for epoch in range(6)] == [images] * 4 + [False] * 2


@pytest.mark.parametrize("name", ["normal targets", "targets of the table", "earlier targets"])
def test_random_targets_do_not_depend_on_what_is_in_the_batch(name: str) -> None:
    found = perturbation(name)
    assert leaf_digest(found.targets(3, 1, TABLE[:16])) == leaf_digest(found.targets(3, 1, TABLE[20:36] * 3))
    if name != "earlier targets":  # of a shorter batch they are the first ones
        assert leaf_digest(found.targets(3, 1, TABLE[:5])) == leaf_digest(found.targets(3, 1, TABLE[:16])[:5])


@pytest.mark.parametrize("name", ["shuffle", "earlier shuffle"])
def test_a_shuffle_swaps_whole_rows_by_the_size_of_the_batch_alone(name: str) -> None:
    found = perturbation(name)
    order = found.targets(3, 1, torch.arange(16.0)[:, None].expand(16, 66))[:, 0].long()
    assert sorted(order.tolist()) == list(range(16))
    assert leaf_digest(found.targets(3, 1, TABLE[20:36])) == leaf_digest(TABLE[20:36][order])


def test_uniform_images_are_one_half_everywhere_after_normalisation() -> None:
    pixels = perturbation("uniform").pixels(3, 0, (2, 3, 8, 8))
    assert pixels.dtype == torch.float32
    assert pixels.unique().tolist() == [0.5]


def test_random_targets_imitate_the_rows_that_train() -> None:
    other = TABLE.clone()
    other[30:] = 1e6  # rows that test
    for name in ("normal targets", "targets of the table"):
        assert leaf_digest(perturbation(name, other).targets(3, 0, TABLE[:16])) == leaf_digest(
            perturbation(name).targets(3, 0, TABLE[:16])
        )
    found = perturbation("normal targets").population
    assert found is not None
    assert found.mean == pytest.approx(float(TABLE[:30].double().mean()), rel=1e-12)
    assert found.std == pytest.approx(float(TABLE[:30].double().std(correction=0)), rel=1e-12)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["normal targets", "targets of the table", "shuffle"])
def test_a_gpu_gets_the_same_targets(name: str) -> None:
    found = perturbation_of(make_config(KINDS[name] | {"perturb_epoch": 3}), TABLE.to("cuda"), torch.arange(0, 30))
    drawn = found.targets(3, 1, TABLE[:16].to("cuda"))
    assert drawn.is_cuda
    assert leaf_digest(drawn) == leaf_digest(perturbation(name).targets(3, 1, TABLE[:16]))


# --- the earlier rule, written down once more -------------------------------------------------------


def test_earlier_random_targets_are_a_torch_generators() -> None:
    numbers = TABLE.numpy().astype(np.float32)
    mean, std = np.mean(numbers), np.std(numbers)  # over all values of the table, as scalars
    for epoch, batch, size in ((3, 0, 16), (4, 2, 16), (4, 3, 5)):
        generator = torch.Generator(device="cpu")
        generator.manual_seed(42 + epoch * 1000 + batch)
        expected = torch.randn((size, 66), generator=generator) * float(std) + float(mean)
        drawn = perturbation("earlier targets", perturb_seed=42).targets(epoch, batch, TABLE[:size])
        assert leaf_digest(drawn) == leaf_digest(expected)


def test_an_earlier_shuffle_is_a_torch_generators_and_counts_from_the_first_perturbed_epoch() -> None:
    for epoch, batch, size in ((3, 0, 16), (4, 0, 16), (4, 3, 5)):
        generator = torch.Generator(device="cpu")
        generator.manual_seed(42 + 3 * 1000 + batch)
        expected = TABLE[:size][torch.randperm(size, generator=generator)]
        drawn = perturbation("earlier shuffle", perturb_seed=42).targets(epoch, batch, TABLE[:size])
        assert leaf_digest(drawn) == leaf_digest(expected)


def test_a_portable_earlier_shuffle_is_the_cpus_on_every_device() -> None:
    other = TABLE[:16].to("meta")  # a device without a generator stands for CUDA, whose generator draws others
    earlier = perturbation("earlier shuffle", perturb_seed=42)
    with pytest.raises(RuntimeError):
        earlier.targets(4, 3, other)
    portable = dataclasses.replace(earlier, arithmetic="portable")
    assert portable.targets(4, 3, other).shape == (16, 66)
    drawn = portable.targets(4, 3, TABLE[:16])
    assert leaf_digest(drawn) == leaf_digest(earlier.targets(4, 3, TABLE[:16]))
    assert (drawn[:, 0] * 7 / 66).round().int().tolist() == [5, 12, 4, 0, 3, 7, 10, 8, 6, 11, 13, 14, 15, 1, 9, 2]


def test_the_earlier_population_is_numpys() -> None:
    found = earlier_population(TABLE)
    assert found.mean == float(np.float32(TABLE.numpy().mean()))
    assert found.std == float(np.float32(TABLE.numpy().std()))
    used = perturbation("earlier targets").population
    assert used is not None
    assert (used.mean, used.std) == (found.mean, found.std)
