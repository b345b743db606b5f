"""`clip-hba publish`: what runs have recorded, written for a tracker. Nothing of it needs torch."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.report.sources import Source
from clip_hba_behavior.report.sweeps.plans import plans_of
from clip_hba_behavior.reproducibility.record.lease import holder_of
from clip_hba_behavior.reproducibility.record.ledger import LEDGER_NAME, read_ledger
from clip_hba_behavior.reproducibility.record.lines import Position, read_lines
from clip_hba_behavior.reproducibility.record.record_file import has_pending
from clip_hba_behavior.reproducibility.record.session import Report, Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import published_directory
from clip_hba_behavior.reproducibility.state.process import join_command
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import SWEEP_FILE, RunDirectory, is_tracked
from clip_hba_behavior.run.event_file import FOLDER, refuse_foreign, refuse_no_tensorboard, write_events
from clip_hba_behavior.run.listing import read_loop_record
from clip_hba_behavior.run.log import session
from clip_hba_behavior.run.results import RESULTS
from clip_hba_behavior.run.scalars import Scalars, longest_epoch, scalars_of
from clip_hba_behavior.use.request import refuse_taken


@dataclass(frozen=True)
class _Recorded:
    """What is to be published of a run.

    Attributes:
        settings: what it was made with.
        ledger: lines by position.
        rows: of results; None for a loop of the user's own.
        left_out: what of its files is not in these.
    """

    settings: Mapping[str, Any]
    ledger: Mapping[Position, str]
    rows: Mapping[Position, str] | None
    left_out: list[str]


def publish(asked: Path, to: str, out: Path | None) -> int:
    """Write the points of a run, or of each run of a sweep, for a tracker.

    Args:
        asked: a run's directory, or a sweep's file or directory.
        to: the tracker's name.
        out: a new directory, of a sweep with one for each run; by default each run's own, where older points make
            way.

    Returns:
        The exit code: 1 if something could not be read, or is not there yet, and was left out.

    Raises:
        BadInputError: something given cannot be used; nothing was written.
    """
    if to != "tensorboard":
        raise BadInputError(
            f"--to {to}: expected tensorboard\n  for other trackers see the page TRACKING of the documentation"
        )
    runs, left_out = _runs_of(asked)
    if out is not None:
        refuse_taken(out)
    else:
        for path in runs.values():
            refuse_foreign(path / FOLDER)
            _refuse_tracked_now(path)
    refuse_no_tensorboard(f"--to {to}")
    with session() as here:
        recorded = {name: _read(path) for name, path in runs.items()}
        empty = [name for name, each in recorded.items() if not each.ledger and not each.rows]
        if len(empty) == len(runs):
            raise BadInputError(f"{asked} has recorded nothing yet, so there is nothing to publish")
        for name in empty:
            left_out.append(f"{runs.pop(name)}: it has recorded nothing yet")
        if out is None:
            for name, path in runs.items():
                left_out += _write(path, recorded[name], path / FOLDER, here)
        else:
            with published_directory(out) as directory:
                for name, path in runs.items():
                    left_out += _write(path, recorded[name], directory / name, here)
        where = out or (asked if _is_above(asked, runs.values()) else Path(os.path.commonpath([*runs.values()])))
        here.logger.info("Look at them: %s", join_command(["tensorboard", "--logdir", str(where)]))
    for each in left_out:
        print(f"left out: {each}", file=sys.stderr)
    return 1 if left_out else 0


def _runs_of(asked: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the runs that are meant, by their name below --out, and what there is not yet of them."""
    if asked.is_file() or (asked / SWEEP_FILE).is_file():
        plans = [plan for _, _, plan in plans_of([Source("sweep", asked)])]
        paths = {run.name: plan.path(run.name) for plan in plans for run in plan.runs()}
        begun = {name: path for name, path in paths.items() if RunDirectory(path).results_file.is_file()}
        if not begun:
            raise BadInputError(
                f"no run of the sweep in {plans[0].directory} has begun\n  look: clip-hba sweep status"
            )
        return begun, [f"{paths[name]}: it has not begun" for name in paths if name not in begun]
    if is_tracked(asked):
        return {"": asked}, []
    run = RunDirectory.at(asked)
    run.refuse_if_no_run()
    return {"": run.path}, []


def _is_above(asked: Path, runs: Iterable[Path]) -> bool:
    """Whether what was asked is itself the directory in which each run's folder is found."""
    return all(each.absolute().is_relative_to(asked.absolute()) for each in runs)


def _refuse_tracked_now(path: Path) -> None:
    """Return if no process adds points to a run's own folder just now."""
    holder = None if is_tracked(path) else holder_of(path)
    if holder is not None and RunDirectory(path).read_config().tracking is not None:
        raise BadInputError(
            f"{path / FOLDER} is being written by the run itself, which has tracking: tensorboard\n"
            f"  by: {holder}\n  look at it: tensorboard --logdir {path}; or give --out"
        )


def _read(path: Path) -> _Recorded:
    if is_tracked(path):
        lines = read_ledger(path / LEDGER_NAME).lines
        return _Recorded(read_loop_record(path).get("settings") or {}, lines.found, None, lines.left_out())
    run = RunDirectory(path)
    rows, lines = read_lines(run.results_file, RESULTS), read_ledger(run.ledger_file).lines
    return _Recorded(run.read_config().trajectory(), lines.found, rows.found, rows.left_out() + lines.left_out())


def _write(path: Path, recorded: _Recorded, directory: Path, here: Session) -> list[str]:
    """Write the points of a run; return what was left out."""
    left_out = [f"{path}: {note}" for note in recorded.left_out]
    if has_pending(path / LEDGER_NAME):
        again = "start your script again" if is_tracked(path) else command_line("resume", path)
        left_out.append(f"{path}: lines that it has still to repeat; go on with it: {again}")
    num_steps = longest_epoch(recorded.ledger)
    points = list(scalars_of(recorded.ledger, recorded.rows, num_steps))
    write_events(directory, recorded.settings, _told_of(points, here.interruptible().report))
    here.logger.info("Published %s, %d points", path, sum(len(each.values) for each in points))
    return left_out


def _told_of(points: Sequence[Scalars], report: Report) -> Iterator[Scalars]:
    for done, point in enumerate(points, start=1):
        yield point
        report("writing points", done, len(points))
