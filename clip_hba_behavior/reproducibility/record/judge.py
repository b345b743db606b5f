"""The one judgement: from differences and from what may be claimed at most to a verdict."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from clip_hba_behavior.reproducibility.record.epoch import Difference, Source

Level = Literal["L3", "L0", "L1", "L2"]
# From the strongest claim to the weakest.
MEANING: dict[Level, str] = {
    "L3": "portable arithmetic: every bit is claimed, on any machine",
    "L0": "same machine and versions: every bit is claimed",
    "L1": "same processor model and versions on another host: every bit is claimed",
    "L2": "another processor or other versions: order and random states are claimed to the bit, "
    "losses and RSA within 1e-4",
}


class Verdict(StrEnum):
    """How a verification ends. The words are not mixed: only equal bits are `reproducible`."""

    REPRODUCIBLE = "reproducible"
    CONSISTENT = "consistent"
    UNTESTED = "could not be tested"
    DIFFERENT = "not reproducible"

    def exit_code(self) -> int:
        """Return the exit code of a command that ends in this verdict."""
        return {"reproducible": 0, "not reproducible": 1, "could not be tested": 2, "consistent": 3}[self.value]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the verdict on the whole: one difference outweighs all; nothing tested is not tested."""
    found = set(verdicts)
    for verdict in (Verdict.DIFFERENT, Verdict.UNTESTED, Verdict.CONSISTENT, Verdict.REPRODUCIBLE):
        if verdict in found:
            return verdict
    return Verdict.UNTESTED


@dataclass(frozen=True)
class Tolerance:
    """How far a repetition may be from the record and still be called consistent.

    Attributes:
        relative: by name of a result.
        absolute: by name of a result.
        exact: beginnings of names that must be equal to the bit all the same.
        sources: what it applies to; all else must be equal to the bit.
    """

    relative: Mapping[str, float] = field(default_factory=dict)
    absolute: Mapping[str, float] = field(default_factory=dict)
    exact: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ("ledger", "state", "results")

    def permits(self, difference: Difference) -> bool:
        """Whether a difference is within tolerance; a parameter's is, since its effect shows in the results."""
        if difference.source not in self.sources or difference.name.startswith(self.exact):
            return False
        name = difference.name.rpartition("/")[2]
        if name not in self.relative and name not in self.absolute:
            return difference.part() not in ("metrics", "loss")
        if not all(isinstance(each, float) for each in (difference.first, difference.second)):
            return False
        if name in self.relative:
            return relative_difference(difference.first, difference.second) <= self.relative[name]
        return bool(abs(difference.second - difference.first) <= self.absolute[name])


def relative_difference(recorded: float, found: float) -> float:
    """Return a difference relative to the recorded value; 0 for the same float, NaN included."""
    if repr(recorded) == repr(found):
        return 0.0
    difference = abs(found - recorded)
    return difference / abs(recorded) if recorded else math.inf


@dataclass(frozen=True)
class Claim:
    """What can be claimed at most, and why.

    Attributes:
        level: one of `MEANING`.
        reasons: what keeps it from a better level, a sentence each.
        tolerance: where equal bits are not claimed, how near is near enough; None where they are.
        is_complete: whether the record holds all that equal bits take; else the best verdict is `consistent`.
    """

    level: Level
    reasons: tuple[str, ...] = ()
    tolerance: Tolerance | None = None
    is_complete: bool = True


def judge(differences: Sequence[Difference], claim: Claim) -> Verdict:
    """Return the verdict on one epoch."""
    if not differences:
        return Verdict.REPRODUCIBLE if claim.is_complete else Verdict.CONSISTENT
    if claim.tolerance is None or not all(claim.tolerance.permits(each) for each in differences):
        return Verdict.DIFFERENT
    return Verdict.CONSISTENT


def lowest(claims: Iterable[Claim]) -> Claim | None:
    """Return the weakest claim."""
    levels = list(MEANING)
    return max(claims, key=lambda each: levels.index(each.level), default=None)
