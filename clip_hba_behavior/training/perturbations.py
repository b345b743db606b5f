"""Perturbations: for a window of epochs a batch gets other targets, other images, or the epoch another order.

Every draw is a pure function of (seed, kind, epoch, batch), made on the CPU with integers and IEEE operations
alone: the same bits on every machine and for every number of threads. Nothing is drawn from a global
generator, so the batch order, during the window and after it, is the one of a run without. The earlier
pipeline's draws, at the end of this file, are the exception: each says what its bits depend on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.config import Arithmetic, Config, PerturbDistribution, PerturbRule, PerturbType
from clip_hba_behavior.reproducibility.state.philox import stream_of, uniform

IMAGE_KINDS = ("image_noise", "uniform_images")
UNIFORM_PIXEL = 0.5  # after normalisation
_BLOCK = 2**16  # numbers at a time: their intermediate results stay in the processor's cache


@dataclass(frozen=True)
class Population:
    """The numbers that random targets imitate.

    Attributes:
        values: `[n] float32`.
        mean: of the values.
        std: their standard deviation, divided by n.
    """

    values: NDArray[np.float32]
    mean: float
    std: float


def exact_population(targets: torch.Tensor) -> Population:
    """Describe targets by mean and standard deviation without an error of summation.

    The same bits on every machine: `fsum` rounds the exact sum once, and the rest is single IEEE operations.
    """
    values = _flat(targets)
    numbers = values.tolist()
    mean = math.fsum(numbers) / len(numbers)
    variance = math.fsum((number - mean) * (number - mean) for number in numbers) / len(numbers)
    return Population(values, mean, math.sqrt(variance))


def earlier_population(targets: torch.Tensor) -> Population:
    """Describe targets as the earlier pipeline did: by NumPy's mean and standard deviation, in float32.

    Their last bits depend on the order of NumPy's sums, which follows the processor's vectors.
    """
    values = _flat(targets)
    return Population(values, float(np.mean(values)), float(np.std(values)))


@dataclass(frozen=True)
class Perturbation:
    """What a configuration's perturbation keys do to a batch.

    Attributes:
        kind: `none` for a run without one.
        first_epoch: of the window, counted from 1.
        length: epochs in the window.
        seed: of the draws.
        distribution: what random targets are drawn from.
        rule: whose draws to make.
        population: what random targets imitate; None where there are none.
        arithmetic: portable draws the earlier rule's shuffles from the CPU's generator, whatever the device.
    """

    kind: PerturbType = "none"
    first_epoch: int = 1
    length: int = 1
    seed: int = 0
    distribution: PerturbDistribution = "normal"
    rule: PerturbRule = "philox"
    population: Population | None = field(default=None, repr=False)
    arithmetic: Arithmetic = "native"

    def kind_in(self, epoch: int) -> PerturbType:
        """Return the perturbation of an epoch, counted from 1; `none` outside the window."""
        return self.kind if self.first_epoch <= epoch < self.first_epoch + self.length else "none"

    def changes_images_after(self, epoch: int) -> bool:
        """Whether any epoch behind this one gets other images."""
        return self.kind in IMAGE_KINDS and epoch < self.first_epoch + self.length - 1

    def order(self, epoch: int, order: torch.Tensor) -> torch.Tensor:
        """Return the order that an epoch trains in.

        Args:
            epoch: counted from 1.
            order: the epoch's own, `[num_train] int64`.
        """
        return order[reordering(self.seed, epoch, len(order))] if self.kind_in(epoch) == "reorder" else order

    def targets(self, epoch: int, batch: int, targets: torch.Tensor) -> torch.Tensor:
        """Return the targets that a batch trains with.

        Args:
            epoch: counted from 1.
            batch: within the epoch, counted from 0.
            targets: the batch's own, `[batch, 66] float32`; only `label_shuffle` looks at them.
        """
        kind = self.kind_in(epoch)
        if kind == "random_target" and self.population is not None:
            shape, device = tuple(targets.shape), targets.device
            if self.rule == "earlier":
                return earlier_random_targets(self.seed, epoch, batch, shape, self.population, device)
            return random_targets(self.seed, epoch, batch, shape, self.population, self.distribution).to(device)
        if kind == "label_shuffle":
            if self.rule == "earlier":
                # A device's generator draws other permutations than the CPU's, whose are integers alone.
                device = torch.device("cpu") if self.arithmetic == "portable" else targets.device
                order = earlier_shuffle(self.seed, self.first_epoch, batch, len(targets), device)
            else:
                order = shuffle(self.seed, epoch, batch, len(targets))
            return targets[order.to(targets.device)]
        return targets

    def pixels(self, epoch: int, batch: int, shape: Sequence[int]) -> torch.Tensor:
        """Return the normalised pixels that a batch trains with, on the CPU, in an epoch of `IMAGE_KINDS`.

        Args:
            epoch: counted from 1.
            batch: within the epoch, counted from 0.
            shape: `[batch, 3, image_size, image_size]`.
        """
        if self.kind_in(epoch) == "image_noise":
            return noise(self.seed, epoch, batch, shape)
        return torch.full(tuple(shape), UNIFORM_PIXEL)


def perturbation_of(config: Config, targets: torch.Tensor, train_rows: torch.Tensor) -> Perturbation:
    """Make the perturbation that a configuration names.

    Args:
        config: checked.
        targets: `[num_images, 66] float32`, of the whole annotation table.
        train_rows: rows of it that train. Random targets imitate these alone; those of the earlier rule
            imitate the whole table, as they did.
    """
    window = window_of(config)
    if window.kind != "random_target":
        return window
    targets = targets.cpu()
    earlier = window.rule == "earlier"
    return replace(
        window, population=earlier_population(targets) if earlier else exact_population(targets[train_rows])
    )


def window_of(config: Config) -> Perturbation:
    """Make the perturbation that a configuration names, without the targets that random ones imitate."""
    if config.perturb_type == "none":
        return Perturbation()
    return Perturbation(
        kind=config.perturb_type,
        first_epoch=int(config.perturb_epoch or 1),
        length=config.perturb_length,
        seed=config.perturb_seed,
        distribution=config.perturb_distribution,
        rule=config.perturb_rule,
        arithmetic=config.arithmetic_kind(),
    )


# --- draws from Philox ------------------------------------------------------------------------------


def stream(seed: int, kind: str, epoch: int, batch: int) -> np.random.Philox:
    """Return the generator of one batch of one epoch."""
    return stream_of(f"clip_hba_behavior perturbation: seed {seed}, kind {kind}, epoch {epoch}, batch {batch}")


def random_targets(
    seed: int,
    epoch: int,
    batch: int,
    shape: Sequence[int],
    population: Population,
    distribution: PerturbDistribution,
) -> torch.Tensor:
    """Draw targets, `shape` float32: normal with the population's mean and std, or values of it."""
    words = stream(seed, f"random_target/{distribution}", epoch, batch).random_raw(math.prod(shape))
    if distribution == "target":
        size = len(population.values)
        places = [word * size >> 64 for word in words.tolist()]  # of Python's integers, which are exact
        drawn = population.values[places]
    else:
        drawn = (population.mean + population.std * normals(words)).astype(np.float32)
    return torch.from_numpy(drawn).reshape(tuple(shape))


def shuffle(seed: int, epoch: int, batch: int, size: int) -> torch.Tensor:
    """Draw a permutation, `[size] int64`: the order that sorts as many words."""
    return _permutation(stream(seed, "label_shuffle", epoch, batch), size)


def reordering(seed: int, epoch: int, size: int) -> torch.Tensor:
    """Draw a permutation of an epoch's order, `[size] int64`; the draw is the whole epoch's, and has batch 0."""
    return _permutation(stream(seed, "reorder", epoch, 0), size)


def _permutation(generator: np.random.Philox, size: int) -> torch.Tensor:
    return torch.from_numpy(np.argsort(generator.random_raw(size), kind="stable").astype(np.int64))


def noise(seed: int, epoch: int, batch: int, shape: Sequence[int]) -> torch.Tensor:
    """Draw standard normal numbers, `shape` float32."""
    generator = stream(seed, "image_noise", epoch, batch)
    drawn = np.empty(math.prod(shape), dtype=np.float32)
    for block in np.split(drawn, range(_BLOCK, len(drawn), _BLOCK)):
        block[:] = normals(generator.random_raw(len(block)))
    return torch.from_numpy(drawn).reshape(tuple(shape))


# Wichura's algorithm AS 241 (PPND16), Applied Statistics 37 (1988): coefficients of x^7 down to x^0, of the
# numerator and the denominator.
# fmt: off
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)
_TAIL = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)
# fmt: on
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476
_ATANH = tuple(1 / (2 * power + 1) for power in range(11, -1, -1))  # atanh(s) = s * sum s^(2k) / (2k+1)


def normals(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn each 64-bit word into a standard normal number, by the inverse of the distribution function.

    NumPy's own distributions may change between its versions, and log, sin and cos (Box-Muller) differ in the
    last bit between C libraries. Here are only +, -, *, / and sqrt, which IEEE 754 defines to the last bit,
    one NumPy operation each, so that no compiler fuses two into one.

    Args:
        words: `[n]`.

    Returns:
        `[n]`, of -8.2 to 8.2, with a relative error of some 1e-15.
    """
    drawn = uniform(words)
    centred = drawn - 0.5
    result = centred * _ratio(_CENTRE, 0.180625 - centred * centred)
    outer = np.abs(centred) > 0.425
    low = np.minimum(drawn[outer], 1.0 - drawn[outer])
    root = np.sqrt(-_logarithm(low))
    tail = np.where(root <= 5.0, _ratio(_TAIL, root - 1.6), _ratio(_FAR_TAIL, root - 5.0))
    result[outer] = np.copysign(tail, centred[outer])
    return result


def _logarithm(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the natural logarithm: `values = fraction * 2^exponent`, `log(fraction) = 2 atanh(s)`."""
    fraction, exponent = np.frexp(values)
    small = fraction < _SQRT_HALF
    fraction = np.where(small, fraction * 2.0, fraction)
    exponent = np.where(small, exponent - 1, exponent).astype(np.float64)
    s = (fraction - 1.0) / (fraction + 1.0)
    return exponent * _LN2 + s * 2.0 * _polynomial(_ATANH, s * s)


def _ratio(
    coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    return _polynomial(coefficients[0], x) / _polynomial(coefficients[1], x)


def _polynomial(coefficients: Sequence[float], x: NDArray[np.float64]) -> NDArray[np.float64]:
    result = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result *= x
        result += coefficient
    return result


# --- the earlier pipeline's draws -------------------------------------------------------------------


def earlier_random_targets(
    seed: int, epoch: int, batch: int, shape: Sequence[int], population: Population, device: torch.device
) -> torch.Tensor:
    """Draw targets as the earlier pipeline's later version did; their bits depend on device and processor."""
    generator = torch.Generator(device).manual_seed(seed + epoch * 1000 + batch)
    drawn = torch.randn(tuple(shape), generator=generator, device=device)
    return drawn * population.std + population.mean


def earlier_shuffle(seed: int, first_epoch: int, batch: int, size: int, device: torch.device) -> torch.Tensor:
    """Draw a permutation, `[size] int64`, as the earlier pipeline did: the same in every epoch of the window.

    Its integers depend on the kind of device, whose generator draws them, and on nothing else of the machine.
    """
    generator = torch.Generator(device).manual_seed(seed + first_epoch * 1000 + batch)
    return torch.randperm(size, generator=generator, device=device)


def _flat(targets: torch.Tensor) -> NDArray[np.float32]:
    return targets.cpu().numpy().astype(np.float32, copy=False).ravel()
