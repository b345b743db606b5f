"""The words in which a verification ends, and how much the environment lets it claim."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from clip_hba_behavior.run.environment import drift_from

Level = Literal["L0", "L1", "L2"]
MEANING: dict[Level, str] = {
    "L0": "same machine and versions: every bit is claimed",
    "L1": "same processor model and versions on another host: every bit is claimed",
    "L2": "another processor or other versions: order and random states are claimed to the bit, "
    "losses and RSA within 1e-4",
}


class Word(StrEnum):
    """How a verification ends. The words are not mixed: only equal bits are `reproducible`."""

    REPRODUCIBLE = "reproducible"
    CONSISTENT = "consistent"
    UNTESTED = "could not be tested"
    DIFFERENT = "not reproducible"

    def exit_code(self) -> int:
        """Return the exit code of a command that ends in this word."""
        return {"reproducible": 0, "not reproducible": 1, "could not be tested": 2, "consistent": 3}[self.value]


def worst(words: Iterable[Word]) -> Word:
    """Return the word for the whole: one difference outweighs all; nothing tested is not tested."""
    found = set(words)
    for word in (Word.DIFFERENT, Word.UNTESTED, Word.CONSISTENT, Word.REPRODUCIBLE):
        if word in found:
            return word
    return Word.UNTESTED


@dataclass(frozen=True)
class Tolerance:
    """How far a replay may be from the record and still be called consistent.

    Attributes:
        loss: relative, of train and test loss.
        rsa: absolute, of the rank correlation.
    """

    loss: float
    rsa: float


# Another machine repeats one epoch from an equal state this closely; a state with parts missing, that closely.
ELSEWHERE = Tolerance(loss=1e-4, rsa=1e-4)
NOT_WHOLE = Tolerance(loss=0.05, rsa=0.05)


@dataclass(frozen=True)
class Claim:
    """What can be claimed at most, and why.

    Attributes:
        level: L0, L1 or L2; see `MEANING`.
        reasons: what keeps it from a better level, a sentence each.
    """

    level: Level
    reasons: tuple[str, ...] = ()

    def bitwise(self) -> bool:
        """Whether the bar is zero differing bits."""
        return self.level != "L2"


def claim(origin: Mapping[str, Any], environment: Mapping[str, Any]) -> Claim:
    """Compare where a checkpoint was made with where this runs.

    Args:
        origin: the checkpoint's provenance.
        environment: `describe_environment` now.
    """
    if "versions" not in origin:
        return Claim("L2", ("the checkpoint does not say where it was made",))
    reasons = tuple(drift_from(origin, environment))
    if reasons:
        return Claim("L2", reasons)
    host, now = origin.get("host"), environment["machine"]["host"]
    return Claim("L0") if host == now else Claim("L1", (f"host was {host or 'not recorded'}, is {now}",))


def lowest(claims: Iterable[Claim]) -> Claim | None:
    """Return the claim with the lowest level."""
    return max(claims, key=lambda each: each.level, default=None)
