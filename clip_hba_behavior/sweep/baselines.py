"""Which baselines the rows of sweeps are of: what counts as one, and where their runs end."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.sweep import nulls


@dataclass(frozen=True)
class Baselines:
    """The baselines of some rows.

    Attributes:
        first_of: of each run directory the first one with which it has a state in common: copies of a run, and a
            run and its extension, are one baseline.
        last_epochs: of each run directory the last epochs of the runs that started from it, ascending.
    """

    first_of: dict[str, str]
    last_epochs: dict[str, tuple[int, ...]]

    def number(self) -> int:
        """Return how many baselines there are."""
        return len(set(self.first_of.values()))

    def has_one_end(self) -> bool:
        """Return whether the longest runs of all baselines end after the same epoch."""
        return len({ends[-1] for ends in self.last_epochs.values()}) < 2

    def notes(self) -> Iterator[str]:
        """Yield what belongs beside numbers that are over baselines, or at the last epoch."""
        copies: dict[str, list[str]] = defaultdict(list)
        for directory, first in self.first_of.items():
            copies[first].append(directory)
        for directories in copies.values():
            if len(directories) > 1:
                yield (
                    f"{', '.join(directories)} are one baseline, and count once: they have training states in "
                    "common, to the last bit"
                )
        for directory, ends in self.last_epochs.items():
            if len(ends) > 1:
                yield (
                    f"runs from {directory} end after different epochs, {ends[0]} to {ends[-1]}: at the end each "
                    "is compared at its own last epoch"
                )
        if self.number() > 1 and not self.has_one_end():
            longest = max(ends[-1] for ends in self.last_epochs.values())
            found = ", ".join(
                f"{directory} after epoch {ends[-1]}" for directory, ends in self.last_epochs.items()
            )
            resume = command_line("resume", "BASELINE", "--set", f"epochs={longest}")
            yield (
                f"nothing is averaged over baselines at the end, for the sweeps end after different epochs: "
                f"{found}; have all end after epoch {longest} ({resume}), and run their sweeps again"
            )
        if 1 < self.number() < nulls.LEAST_BASELINES:
            yield (
                f"over {self.number()} baselines there is a t interval, which takes their effects for normal, and "
                f"no signed-rank test, which cannot be below 0.05 with fewer than {nulls.LEAST_BASELINES}"
            )


def baselines_of(rows: Sequence[Mapping[str, Any]]) -> Baselines:
    """Find the baselines of the rows of one sweep's table or of several."""
    states: dict[str, set[tuple[int, str]]] = defaultdict(set)  # of each directory epochs and digests
    ends: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        states[row["parent"]].add((row["epoch"], row["baseline_state_digest"]))
        ends[row["parent"]][row["run"]] = max(row["epoch"], ends[row["parent"]].get(row["run"], 0))
    first_of: dict[str, str] = {}
    for directory, its in states.items():
        sharing = list(dict.fromkeys(first for each, first in first_of.items() if states[each] & its))
        first = sharing[0] if sharing else directory
        first_of = {each: first if before in sharing else before for each, before in first_of.items()}
        first_of[directory] = first
    return Baselines(first_of, {directory: tuple(sorted(set(of.values()))) for directory, of in ends.items()})
