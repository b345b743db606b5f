"""What must hold of a sweep that was killed: nothing lost, nothing done twice, nothing left behind."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.lease import LOCK_NAME

Marks = dict[str, tuple[int, int, int, str]]  # of each file its inode, time, size and digest

_EPOCH = re.compile(r"Epoch (\d+)/\d+: ")
_BEGINNING = re.compile(r"Starting with epoch|Resuming from the state")


def everything(directory: Path) -> dict[str, bytes]:
    """Read a sweep's or a baseline's directory: all names, and of each file what must repeat."""
    return {
        str(path.relative_to(directory)): _what_repeats(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def _what_repeats(path: Path) -> bytes:
    content = path.read_bytes()
    if path.name == "training_log.txt":  # its times
        return b""
    if path.name == "forks.txt":  # forks begin in any order
        return b"\n".join(sorted(content.split(b"\n")))
    if path.parent.name == "finished":
        note = json.loads(content.partition(b"\n")[2])
        return json.dumps({key: value for key, value in note.items() if key != "marks"}).encode()
    return content


def marks_of_finished(runs: Path) -> dict[str, Marks]:
    """Return the marks of all files of the runs that have come to their end."""
    found = {}
    for run in sorted(runs.iterdir()) if runs.is_dir() else []:
        log, lock = run / "training_log.txt", run / LOCK_NAME
        if log.is_file() and "Finished at epoch" in log.read_text() and not lock.read_bytes():
            # a longer window notes in the shorter one that it begins there
            files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "forks.txt"]
            found[run.name] = {str(path.relative_to(run)): _mark(path) for path in files}
    return found


def _mark(path: Path) -> tuple[int, int, int, str]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size, hashlib.sha256(path.read_bytes()).hexdigest()


def done_again(before: dict[str, Marks], now: dict[str, Marks]) -> Iterator[str]:
    """Name the files of finished runs that are no longer those that they were."""
    for run, marks in before.items():
        for name in sorted(marks.keys() | now.get(run, {}).keys()):
            if marks.get(name) != now.get(run, {}).get(name):
                yield f"of finished run {run} changed: {name}: {marks.get(name)} -> {now.get(run, {}).get(name)}"


def repeated_epochs(run: Path) -> tuple[int, list[str]]:
    """Count the epochs that a run trained twice, by its log; and name what none may repeat.

    An epoch is logged before its checkpoint is saved, so a kill in between, and it alone, repeats this epoch.
    """
    repeated, problems, last, has_just_begun = 0, [], None, False
    for line in (run / "training_log.txt").read_text().splitlines():
        if _BEGINNING.search(line):
            has_just_begun = True
        elif match := _EPOCH.search(line):
            epoch = int(match[1])
            if epoch == last and has_just_begun:
                repeated += 1
            elif last is not None and epoch != last + 1:
                problems.append(f"{run.name} trained epoch {epoch} after epoch {last}")
            last, has_just_begun = epoch, False
    return repeated, problems


def recorded_twice(run: Path) -> list[str]:
    """Name the lines of a run's ledger that stand in it twice."""
    lines: list[dict[str, Any]] = [json.loads(each) for each in (run / "steps.jsonl").read_text().splitlines()]
    places = [json.dumps({key: each.get(key) for key in ("epoch", "step")}) for each in lines]
    return [f"twice in the ledger of {run.name}: {each}" for each in set(places) if places.count(each) > 1]
