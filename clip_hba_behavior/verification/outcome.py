"""What a verification found: of one epoch, and of all."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from clip_hba_behavior.reproducibility.record.judge import (
    Claim,
    Verdict,
    lowest,
    relative_difference,
    worst,
)

COMPLETE = "the complete training state"


def percent(share: float) -> str:
    """Return a share in per cent: two decimals, and more where these would hide that it is not 0."""
    decimals = 2
    if math.isfinite(share) and share != 0:
        decimals = max(2, -math.floor(math.log10(100 * abs(share))))
    return f"{100 * share:.{decimals}f}%"


@dataclass(frozen=True)
class Metric:
    """One of an epoch's results, as recorded and as replayed.

    Attributes:
        name: a column of the results CSV.
        source: where the recorded value was found.
        recorded: the value that was found there.
        replayed: the value that the replay gave.
    """

    name: str
    source: str
    recorded: float
    replayed: float

    def same(self) -> bool:
        """Whether both are the same float64; a NaN is the same as a NaN."""
        return repr(self.recorded) == repr(self.replayed)

    def relative_difference(self) -> float:
        """Return the difference relative to the recorded value."""
        return relative_difference(self.recorded, self.replayed)

    def line(self) -> str:
        """Return both values."""
        share = "" if self.name.endswith("p_value") else f" ({percent(self.relative_difference())})"
        return f"{self.name}: {self.recorded!r} in {self.source}, {self.replayed!r} replayed{share}"


@dataclass(frozen=True)
class EpochOutcome:
    """What the replay of one epoch showed.

    Attributes:
        epoch: counted from 1.
        word: the verdict.
        claim: what the environment lets claim; None where nothing was replayed.
        holds: what the recorded files hold: "the complete training state", or what they lack.
        order: what can be said of the batch order.
        order_digest: digest of the epoch's annotation rows in the order in which they were replayed.
        num_steps: steps replayed.
        start_digest: state digest of the recorded state that the replay began with.
        recorded_digest: state digest in the recorded file.
        replayed_digest: state digest that the replay reached.
        num_differing_tensors: of the state; None where states could not be compared.
        max_parameter_difference: largest absolute difference of a parameter.
        metrics: the epoch's results.
        differences: what is not the same, a sentence each.
        cause: the likely cause.
        notes: warnings that belong to it.
    """

    epoch: int
    word: Verdict
    claim: Claim | None = None
    holds: str = COMPLETE
    order: str = ""
    order_digest: str | None = None
    num_steps: int = 0
    start_digest: str | None = None
    recorded_digest: str | None = None
    replayed_digest: str | None = None
    num_differing_tensors: int | None = None
    max_parameter_difference: float | None = None
    metrics: tuple[Metric, ...] = ()
    differences: tuple[str, ...] = ()
    cause: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verification:
    """What was verified, and how it ended.

    Attributes:
        what: the command, and what it was given.
        epochs: in their order.
        problems: of the whole run: records that disagree, data that changed.
        notes: what a reader should know.
        drift: what changed on the run's way and was allowed.
        config: the keys that shape the trajectory.
        recorded: the environment that the checkpoints record.
        environment: the environment that replayed.
        num_steps: where only the first steps of each epoch were replayed, how many.
        seconds: how long the replays took, start-up apart.
    """

    what: dict[str, Any]
    epochs: tuple[EpochOutcome, ...]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    drift: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    num_steps: int | None = None
    seconds: float = 0.0

    def word(self) -> Verdict:
        """Return the verdict on all epochs together; records that disagree are no reproducible run."""
        words = [each.word for each in self.epochs]
        if self.problems and worst(words) is not Verdict.UNTESTED:
            words.append(Verdict.DIFFERENT)
        return worst(words)

    def is_complete(self) -> bool:
        """Whether the files of all epochs hold the complete training state."""
        return all(each.holds == COMPLETE for each in self.epochs)

    def claim(self) -> Claim | None:
        """Return the lowest claim of any epoch; a run that drifted has no one environment that repeats it all."""
        claim = lowest(each.claim for each in self.epochs if each.claim is not None)
        if claim is not None and self.drift:
            reasons = (*claim.reasons, *(f"the run drifted: {each}" for each in self.drift))
            return replace(claim, level="L2", reasons=reasons)
        return claim

    def largest_difference(self) -> str | None:
        """Name the result that is furthest from its record, relative to it."""
        found = [
            (each.relative_difference(), outcome.epoch, each)
            for outcome in self.epochs
            for each in outcome.metrics
        ]
        found = [each for each in found if not each[2].name.endswith("p_value")]
        if not found:
            return None
        share, epoch, metric = max(found, key=lambda each: each[0])
        return f"largest difference {share:.2g} of {metric.name} in epoch {epoch}"
