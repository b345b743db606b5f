"""What a process did to the disk, as `faults` noted it, and what the disk would have lost of it."""

import random
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trace:
    """What a process did to the disk.

    Attributes:
        calls: (call, place) of each.
        last_place: where the process was at its end.
        synced: how many bytes of a file were certainly on the disk, by path.
        unsynced_links: files whose names were not certainly on the disk yet.
    """

    calls: list[tuple[str, str]]
    last_place: str
    synced: dict[Path, int]
    unsynced_links: list[Path]


def read_trace(path: Path) -> Trace:
    calls, synced, links, inside, phase = [], {}, [], None, "starting"
    for line in path.read_text().splitlines() if path.exists() else []:
        kind, *words = line.split("\t")
        if kind == "call":
            calls.append((words[0], words[1]))
            inside = words[1]
        elif kind == "done":
            inside = None
        elif kind == "phase":
            phase = words[0]
        elif kind == "synced":
            synced[Path(words[1])] = int(words[0])
        elif kind == "linked":
            links.append(Path(words[0]))
        elif kind == "directory synced":
            links = [each for each in links if each.parent != Path(words[0])]
    return Trace(calls, inside or phase, synced, links)


def lose_unsynced(trace: Trace, random_numbers: random.Random) -> bool:
    """Lose a part of what a killed process had written and not synced, as when the power fails.

    Returns:
        Whether there was anything to lose.
    """
    lost = False
    for path, synced in trace.synced.items():
        if path.exists() and path.suffix in (".jsonl", ".csv") and path.stat().st_size > synced:
            content = path.read_bytes()
            kept = random_numbers.randint(synced, len(content) - 1)
            zeros = bytes(len(content) - kept) if random_numbers.random() < 0.5 else b""
            path.write_bytes(content[:kept] + zeros)  # a page that was never written reads as zeros
            lost = True
    for path in trace.unsynced_links:
        if path.exists() and random_numbers.random() < 0.5:
            path.unlink()
            lost = True
    return lost
