"""What came of many kills."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Tally:
    """What came of it.

    Attributes:
        fell: kills by the way they were aimed and by the place where they fell.
        before_first_state: kills before the run's first checkpoint.
        lost: kills behind which unsynced bytes or names were lost too.
        repeated: epochs of sweeps that were trained twice, since a kill came before they were saved.
        completed: runs trained to their end and compared, by variant; or sweeps.
        problems: runs that did not end as the uninterrupted one.
    """

    fell: Counter[tuple[str, str]] = field(default_factory=Counter)
    before_first_state: int = 0
    lost: int = 0
    repeated: int = 0
    completed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def kills(self) -> int:
        return self.fell.total()

    def add(self, other: "Tally") -> None:
        self.fell += other.fell
        self.before_first_state += other.before_first_state
        self.lost += other.lost
        self.repeated += other.repeated
        self.completed += other.completed
        self.problems += other.problems

    def __str__(self) -> str:
        ways = sorted({way for way, _ in self.fell})
        places = sorted({place for _, place in self.fell}, key=lambda each: -self._at(each))
        width = max(9, *(len(way) + 2 for way in ways)) if ways else 9
        lines = [f"{self.kills()} kills", f"  {'':<26}{'all':>9}" + "".join(f"{way:>{width}}" for way in ways)]
        for place in places:
            counts = "".join(f"{self.fell[way, place]:>{width}}" for way in ways)
            lines.append(f"  {place:<26}{self._at(place):>9}{counts}")
        if self.repeated:
            lines.append(f"  epochs trained twice {self.repeated}")
        lines += [
            f"  of these before the first state {self.before_first_state}",
            f"  of these with unsynced bytes or names lost {self.lost}",
            f"{self.completed.total()} runs completed: "
            + ", ".join(f"{name} {number}" for name, number in self.completed.items()),
            f"{len(self.problems)} mismatches",
        ]
        return "\n".join([*lines, *self.problems])

    def _at(self, place: str) -> int:
        return sum(number for (_, each), number in self.fell.items() if each == place)


def conclude(tally: Tally, noun: str, seconds: float, work: Path, numbers: Path | None) -> int:
    """Print what a tool has found, and write its numbers; keep its files where something is wrong.

    Args:
        tally: of all kills.
        noun: what was killed, in the plural.
        seconds: that it took.
        work: the tool's directory.
        numbers: where to write the numbers as JSON; None to write none.

    Returns:
        The exit code: 1 if something is wrong.
    """
    print(tally)
    print(f"{seconds:.0f} s, {seconds / max(1, tally.kills()):.2f} s a kill")
    if numbers is not None:
        found = {"kills": tally.kills(), noun: tally.completed.total(), "mismatches": len(tally.problems)}
        numbers.write_text(json.dumps(found))
    if tally.problems:
        print(f"what is left of those {noun} is in {work}")
    else:
        shutil.rmtree(work)
    return 1 if tally.problems else 0
