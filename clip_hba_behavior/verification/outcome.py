"""What a verification found: of one epoch, and of all."""

import math
from dataclasses import dataclass, field
from typing import Any

from clip_hba_behavior.verification.verdict import Claim, Tolerance, Word, lowest, worst

WHOLE = "the whole training state"


@dataclass(frozen=True)
class Metric:
    """One of an epoch's results, as recorded and as replayed.

    Attributes:
        name: a column of the results CSV.
        source: where the recorded value stands.
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
        difference = abs(self.replayed - self.recorded)
        return difference / abs(self.recorded) if self.recorded else (0.0 if difference == 0 else math.inf)

    def within(self, tolerance: Tolerance) -> bool:
        """Whether the replayed value is near enough. A p-value has no tolerance of its own: its rho decides."""
        if self.name.endswith("loss"):
            return self.relative_difference() <= tolerance.loss
        return self.name.endswith("p_value") or abs(self.replayed - self.recorded) <= tolerance.rsa


@dataclass(frozen=True)
class EpochOutcome:
    """What the replay of one epoch showed.

    Attributes:
        epoch: counted from 1.
        word: how it ended.
        claim: what the environment lets claim; None where nothing was replayed.
        holds: what the recorded files hold: "the whole training state", or what they lack.
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
    word: Word
    claim: Claim | None = None
    holds: str = WHOLE
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
        digests: of weights and data, as they are now.
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
    digests: dict[str, str] = field(default_factory=dict)
    num_steps: int | None = None
    seconds: float = 0.0

    def word(self) -> Word:
        """Return the word for all epochs together; records that disagree are no reproducible run."""
        words = [each.word for each in self.epochs]
        if self.problems and worst(words) is not Word.UNTESTED:
            words.append(Word.DIFFERENT)
        return worst(words)

    def whole(self) -> bool:
        """Whether the files of all epochs hold the whole training state."""
        return all(each.holds == WHOLE for each in self.epochs)

    def claim(self) -> Claim | None:
        """Return the lowest claim of any epoch; a run that drifted has no one environment that repeats it all."""
        claim = lowest(each.claim for each in self.epochs if each.claim is not None)
        if claim is not None and self.drift:
            return Claim("L2", (*claim.reasons, *(f"the run drifted: {each}" for each in self.drift)))
        return claim
