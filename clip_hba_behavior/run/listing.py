"""The runs and sweeps below a directory: how far each is, how good, from where, how large."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from clip_hba_behavior.reproducibility.record.lease import holder_of
from clip_hba_behavior.reproducibility.record.ledger import LEDGER_NAME, read_ledger
from clip_hba_behavior.reproducibility.record.lines import read_lines
from clip_hba_behavior.reproducibility.record.record_file import has_pending
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text, quote
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import SWEEP_FILE, RunDirectory, is_tracked
from clip_hba_behavior.run.results import RESULTS, parse_row

_STOPPED = "Stopped early after epoch"  # what the log of such a run ends with


@dataclass(frozen=True)
class Listed:
    """One run, or one sweep.

    Attributes:
        path: its directory, below the one that was listed.
        kind: `run`, `sweep`, or `loop` for a run of `track`.
        state: `under way`, `finished`, `stopped early`, `interrupted`, `waiting` (at a mismatch), `never began`,
            or `damaged`.
        epoch: the newest; None where there is none.
        epochs: up to which the run trains; None where it is not recorded.
        best_test_loss: the lowest on record.
        rsa_rho: behavioral RSA in that epoch.
        arithmetic: `native`, or `portable` with the number of its definition; empty where it is not recorded.
        parent: of a fork the run that it began from, and the epoch.
        num_bytes: of all its files.
        age_seconds: since anything in it was written.
        detail: what is wrong, or which process works on it.
    """

    path: str
    kind: Literal["run", "sweep", "loop"]
    state: str
    epoch: int | None = None
    epochs: int | None = None
    best_test_loss: float | None = None
    rsa_rho: float | None = None
    arithmetic: str = ""
    parent: str | None = None
    num_bytes: int = 0
    age_seconds: float = 0.0
    detail: str = ""

    def progress(self) -> str:
        """Return the newest epoch, and how many there will be where that is recorded."""
        return f"{'-' if self.epoch is None else self.epoch}" + (f"/{self.epochs}" if self.epochs else "")


def list_runs(directory: Path) -> Iterator[Listed]:
    """Yield every run and sweep below a directory, in the order of their names; what is in a run is no other run.

    Raises:
        BadInputError: there is no such directory.
    """
    if not directory.is_dir():
        raise BadInputError(f"there is no directory {directory}")
    yield from _list(directory, directory)


def _list(directory: Path, root: Path) -> Iterator[Listed]:
    name = str(directory.relative_to(root))
    if is_tracked(directory):
        yield _loop(directory, name)
        return
    if (directory / "config.yaml").is_file() and (directory / "dora_params").is_dir():
        yield _run(directory, name)
        return
    if (directory / SWEEP_FILE).is_file():
        files = [each for each in directory.rglob("*") if each.is_file()]
        yield Listed(name, "sweep", _sweep_state(directory), **_sizes(files))
    for each in sorted(directory.iterdir()):
        if each.is_dir() and not each.is_symlink() and not each.name.startswith("."):
            yield from _list(each, root)


def list_one(directory: Path) -> Listed:
    """Return what is to be told of one run.

    Raises:
        BadInputError: there is none in this directory.
    """
    found = next(_list(directory, directory), None) if directory.is_dir() else None
    if found is None or found.path != "." or found.kind == "sweep":
        below = f"\n  list the runs below it: {command_line('runs', directory)}" if found is not None else ""
        raise BadInputError(f"there is no run in {directory}{below}")
    return found


def _sweep_state(directory: Path) -> str:
    return "under way" if holder_of(directory) else "finished" if (directory / "sweep.csv").is_file() else "begun"


def _run(directory: Path, name: str) -> Listed:
    run = RunDirectory(directory)
    about: dict[str, Any] = _sizes([each for each in directory.rglob("*") if each.is_file()])
    files = list_checkpoints(run.checkpoints)
    about["epoch"] = max(files, default=None)
    try:
        config = run.read_config()
        about |= {"epochs": config.epochs, "arithmetic": config.arithmetic}
        about["parent"] = _parent(run.read_environment())
        rows = [parse_row(line) for line in read_lines(run.results_file, RESULTS).found.values()]
    except (BadInputError, OSError) as error:
        return Listed(name, "run", "damaged", detail=" ".join(str(error).split()), **about)
    if rows:
        best = min(rows, key=lambda row: float(row["test_loss"]))
        about |= {"best_test_loss": float(best["test_loss"]), "rsa_rho": float(best["behavioral_rsa_rho"])}
    state, detail = _state_of_run(run, about["epoch"], about["epochs"])
    return Listed(name, "run", state, detail=detail, **about)


def _parent(record: Mapping[str, Any]) -> str | None:
    """Return which run and epoch a run says that it began from."""
    parent = record.get("parent")
    if parent is None:
        return None
    if not isinstance(parent, dict) or not {"run", "epoch"} <= parent.keys():
        raise BadInputError(f"its record of its parent is damaged: {quote(parent)}")
    return f"{parent['run']}, epoch {parent['epoch']}"


def _state_of_run(run: RunDirectory, epoch: int | None, epochs: int) -> tuple[str, str]:
    holder = holder_of(run.path)
    if holder is not None:
        return "under way", holder
    if epoch is None:
        return "never began", ""
    if epoch >= epochs:
        return "finished", ""
    if has_pending(run.ledger_file) or has_pending(run.results_file):
        return "waiting", "recorded lines are still to be repeated"
    log = run.log_file.read_text(encoding="utf-8", errors="replace") if run.log_file.is_file() else ""
    return ("stopped early" if _STOPPED in log.rpartition("Resuming from")[2] else "interrupted"), ""


def _loop(directory: Path, name: str) -> Listed:
    about: dict[str, Any] = _sizes([each for each in directory.rglob("*") if each.is_file()])
    epochs = [
        int(stem) for each in (directory / "checkpoints").glob("epoch*.pth")
        if (stem := each.stem.removeprefix("epoch")).isdecimal()
    ]  # fmt: skip
    about["epoch"] = max(epochs, default=None)
    try:
        about["parent"] = _parent(read_loop_record(directory))
        ends = [record["metrics"] for _, record in read_ledger(directory / LEDGER_NAME).ends()]
    except (BadInputError, OSError) as error:
        return Listed(name, "loop", "damaged", detail=str(error).partition("\n")[0], **about)
    # the loop names its metrics itself; by this name there often is one
    losses = [each["test_loss"] for each in ends if isinstance(each, dict) and "test_loss" in each]
    about["best_test_loss"] = min((each for each in losses if isinstance(each, float)), default=None)
    holder = holder_of(directory)
    state = "under way" if holder else "never began" if not epochs else "at rest"
    if not holder and has_pending(directory / LEDGER_NAME):
        state = "waiting"
    return Listed(name, "loop", state, detail=holder or "", **about)


def read_loop_record(directory: Path) -> dict[str, Any]:
    """Read `run.json` of a run of `track`, without torch.

    Raises:
        BadInputError: it cannot be read, or holds no record.
    """
    path = directory / "run.json"
    try:
        with open_text(path, 16 * MIB) as file:
            record = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise BadInputError(f"{path} is damaged: found {quote(record)}, expected the record of a run")
    return record


def _sizes(files: list[Path]) -> dict[str, Any]:
    found = [each.stat() for each in files]
    newest = max((each.st_mtime for each in found), default=time.time())
    return {"num_bytes": sum(each.st_size for each in found), "age_seconds": max(0.0, time.time() - newest)}


def as_json(listed: list[Listed]) -> str:
    """Return the list for a program."""
    return json.dumps([asdict(each) for each in listed], indent=1)


def as_table(listed: list[Listed]) -> str:
    """Return the list for a person: a line for each, columns as wide as they must be."""
    head = ("run", "state", "epochs", "test loss", "RSA rho", "arithmetic", "size", "age", "from")
    rows = [head]
    for each in listed:
        rows.append(
            (
                each.path if each.kind == "run" else f"{each.path} ({each.kind})",
                each.state,
                each.progress() if each.kind != "sweep" else "",
                "" if each.best_test_loss is None else f"{each.best_test_loss:.4f}",
                "" if each.rsa_rho is None else f"{each.rsa_rho:.4f}",
                each.arithmetic,
                in_bytes(each.num_bytes),
                in_time(each.age_seconds),
                each.parent or "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    lines += [f"{each.path}: {each.detail}" for each in listed if each.detail]
    return "\n".join(lines)


def in_bytes(num_bytes: int) -> str:
    """Return a number of bytes as a person tells it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes / 1e3:.0f} kB"


def in_time(seconds: float) -> str:
    """Return an age as a person tells it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
