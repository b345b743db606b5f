"""What a command hands down to whatever works for it: where to log, whom to tell of progress, when to stop."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from clip_hba_behavior.reproducibility.record.signals import StopRequest

Report = Callable[[str, int, int], None]  # told what is done, how much of it, and how much in all


@dataclass(frozen=True)
class Session:
    """Logger, progress and stop request of one command.

    Attributes:
        logger: told what goes on, line by line.
        report: told of the progress.
        stop: asked whether a signal has come.
    """

    logger: logging.Logger
    report: Report = lambda what, done, total: None
    stop: StopRequest = field(default_factory=StopRequest)

    def interruptible(self) -> "Session":
        """Return a session whose progress report leaves on a signal: for where there is no state to save."""

        def report(what: str, done: int, total: int) -> None:
            self.stop.check()
            self.report(what, done, total)

        return replace(self, report=report)
