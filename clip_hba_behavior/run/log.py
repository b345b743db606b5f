"""What a run says while it works: log lines always, progress bars where there is a terminal."""

import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.log_file import LogFile
from clip_hba_behavior.reproducibility.record.session import Report, Session
from clip_hba_behavior.reproducibility.record.signals import stopping_on_signals
from clip_hba_behavior.run.output import lasting_output

LOGGER_NAME = "clip_hba_behavior"
SECONDS_BETWEEN_LINES = 10.0
EPOCHS = "epochs"  # what the progress of the whole run is reported as
_EPOCH_LINE = re.compile(r"Epoch (\d+)/\d+: .* ([0-9.]+) s$")
_FILE_ONLY = "file_only"  # marks what is printed elsewhere


def silent() -> None:
    """Let the runs of this process log to their files alone."""
    _ToStandardOutput.muted = True


class _ToStandardOutput(logging.Handler):
    """Prints to what standard output is now: a progress bar puts itself in its place while it shows."""

    muted = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self.muted and not hasattr(record, _FILE_ONLY):
            print(self.format(record), flush=True)


@contextmanager
def session(log_file: Path | None = None) -> Iterator[Session]:
    """Open what a command hands down: the log, on standard output and in a file; progress; the stop request."""
    with lasting_output(), stopping_on_signals() as stop, logging_to(log_file) as logger:
        try:
            with reporting(logger) as report:
                yield Session(logger, report, stop)
        except Exception as error:  # whoever asked prints it; the log must tell too why the run ended
            logger.error("%s", error, extra={_FILE_ONLY: True})
            raise


@contextmanager
def logging_to(path: Path | None) -> Iterator[logging.Logger]:
    """Log to standard output and, with times, to a file; release both in the end."""
    logger = logging.getLogger(LOGGER_NAME)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handlers: list[logging.Handler] = []
    if not any(isinstance(each, _ToStandardOutput) for each in logger.handlers):  # a run within a command
        handlers.append(_ToStandardOutput())
    if path is not None:
        handlers.append(LogFile(path))
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield logger
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            if isinstance(handler, logging.FileHandler):
                handler.close()


@contextmanager
def reporting(logger: logging.Logger) -> Iterator[Report]:
    """Give a function that is told `(what, done, total)` and shows it.

    On a terminal it draws a bar with the time left for each `what`, the run's epochs above the steps of the one
    under way; elsewhere it logs a line at most every ten seconds, so that a job's log shows that it is alive.
    """
    is_plain = os.environ.get("TERM") in ("dumb", "unknown") or _ToStandardOutput.muted
    # a process may have no standard output at all
    can_draw = sys.stdout is not None and sys.stdout.isatty() and not is_plain
    with _drawing() if can_draw else _logging(logger) as report:
        yield report


@contextmanager
def _drawing() -> Iterator[Report]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.table import Column

    width = shutil.get_terminal_size().columns
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=20 if width >= 80 else 6),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def draw(what: str, done: int, total: int) -> None:
            name = _name_of(what)
            if name not in tasks:
                tasks[name] = progress.add_task(what, total=total, completed=done)
            progress.update(tasks[name], description=what, completed=done, total=total)
            if done >= total:
                progress.remove_task(tasks.pop(name))

        yield draw


@contextmanager
def _logging(logger: logging.Logger) -> Iterator[Report]:
    started: dict[str, tuple[float, int]] = {}
    last: dict[str, float] = {}

    def log(what: str, done: int, total: int) -> None:
        if what == EPOCHS:  # each has a line of its own
            return
        name, now = _name_of(what), time.monotonic()
        began, before = started.setdefault(name, (now, done))
        if now - last.setdefault(name, now) >= SECONDS_BETWEEN_LINES and done > before:
            last[name] = now
            left = (now - began) / (done - before) * (total - done)
            logger.info("%s: %d of %d (%.0f %%), %s left", what, done, total, 100 * done / total, duration(left))
        if done >= total:
            started.pop(name, None)
            last.pop(name, None)

    yield log


def _name_of(what: str) -> str:
    """Return what stays the same of it: in brackets stands what changes on the way."""
    return what.partition(" (")[0]


def duration(seconds: float) -> str:
    """Return a time as a person tells it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def epoch_line(metrics: Mapping[str, Any], last_epoch: int, seconds: float) -> str:
    """Return the log's line of an epoch; `epoch_seconds` reads it."""
    kind = metrics.get("perturb_type", "none")
    return (
        f"Epoch {metrics['epoch']}/{last_epoch}: train loss {metrics['train_loss']:.4f}, "
        f"test loss {metrics['test_loss']:.4f}, behavioral RSA rho {metrics['behavioral_rsa_rho']:.4f} "
        f"(p {metrics['behavioral_rsa_p_value']:.3g})"
        f"{f', perturbed by {kind}' if kind != 'none' else ''}, {seconds:.1f} s"
    )


def epoch_seconds(log_file: Path) -> list[tuple[int, float]]:
    """Return each epoch that a log tells of, and its seconds, in its order; none where there is no log."""
    if not log_file.is_file():
        return []
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(int(match[1]), float(match[2])) for line in lines if (match := _EPOCH_LINE.search(line))]


def warn_of_changes(changes: Iterable[str], logger: logging.Logger) -> None:
    """Name what is not as it was when the run, or its parent, was made; a sentence each."""
    for each in changes:
        logger.warning("Not the same environment, so bits may differ: %s", each)


def warn_of_package(changes: Iterable[str], logger: logging.Logger) -> None:
    """Name what of this package is not as it was; a sentence each. `trajectory_version` is of the environment."""
    for each in changes:
        logger.warning("Not the same package, whose bits are the same while trajectory_version is: %s", each)
