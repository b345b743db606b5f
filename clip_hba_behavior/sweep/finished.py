"""What a finished run recorded, kept in one small file with the marks of the files that it was read from.

A sweep has thousands of runs. Each is read and checked once, when it ends; afterwards the sizes and times of its
files tell that they are still those that were checked.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.kept import mark_of
from clip_hba_behavior.sweep.plan import Plan, Run

Results = dict[int, tuple[dict[str, float], str]]  # of each epoch its metrics and its state digest


@dataclass(frozen=True)
class Finished:
    """A run that is done.

    Attributes:
        epoch: its last one.
        detail: that it stopped early, if so.
        results: of the epochs that it trained itself.
    """

    epoch: int
    detail: str
    results: Results


def recall(plan: Plan, run: Run) -> Finished | None:
    """Return what was kept of a run; None where nothing was, or where plan or files are no longer the same."""
    try:
        digest, _, text = _file(plan, run).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    if _digest(text) != digest:
        return None
    content = json.loads(text)
    if content["asked"] != _asked(plan, run) or content["marks"] != _marks(plan, run, content["epoch"]):
        return None
    results = {int(epoch): (metrics, state) for epoch, (metrics, state) in content["results"].items()}
    return Finished(content["epoch"], content["detail"], results)


def keep(plan: Plan, run: Run, epoch: int, detail: str, read: Callable[[], Results]) -> None:
    """Write down what a run that is done recorded; see `Finished`.

    Raises:
        BadInputError: what `read` raises; nothing is written then.
        OSError: it cannot be written.
    """
    content = {
        "asked": _asked(plan, run),
        "marks": _marks(plan, run, epoch),  # before the files are read: what changes meanwhile has another mark
        "epoch": epoch,
        "detail": detail,
        "results": read(),
    }
    text = json.dumps(content)
    path = _file(plan, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, f"{_digest(text)}\n{text}".encode(), is_lasting=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file(plan: Plan, run: Run) -> Path:
    return plan.directory / "finished" / f"{run.name}.json"


def _asked(plan: Plan, run: Run) -> dict[str, Any]:
    """Return what the plan asks of a run, as JSON gives it back."""
    asked = [plan.own_keys(run), str(plan.source(run)), plan.first_own_epoch(run), plan.last_epoch]
    return {"keys": json.loads(json.dumps(asked)), "path": str(plan.path(run.name))}


def _marks(plan: Plan, run: Run, epoch: int) -> dict[str, list[int] | None]:
    """Return the marks of what tells that a run is done: its records, its last state and its first."""
    own = RunDirectory(plan.path(run.name))
    first = checkpoint_path(RunDirectory(plan.source(run)).checkpoints, plan.first_own_epoch(run) - 1)
    files = (own.config_file, own.environment_file, own.ledger_file, own.results_file)
    return {
        str(path): mark if (mark := mark_of(path)) is None else list(mark)
        for path in (*files, checkpoint_path(own.checkpoints, epoch), first)
    }
