"""The ways in which this package says no."""


class ClipHbaError(Exception):
    """What every error of this package is; the kinds below have an exit code each."""


class BadInputError(ClipHbaError, ValueError):
    """What the user gave cannot be used; nothing was done (exit code 2)."""


class AnotherFormatError(BadInputError):
    """A file of a later version of this package: it is complete, only not for this program to read."""


class UnreadableError(BadInputError):
    """A file cannot be read just now, by the fault of memory or disk, which says nothing of its content."""


class InterruptedRunError(ClipHbaError):
    """A signal asked the run to leave; what there was to save is saved (exit code 75).

    Attributes:
        next_step: what goes on with it, such as a command to copy; None where the same call does.
    """

    def __init__(self, reason: str, next_step: str | None = None) -> None:
        """Say why, and what to do next if that is known yet."""
        super().__init__(reason)
        self.next_step = next_step

    def __str__(self) -> str:
        """Return the reason, with the next step in a line of its own."""
        return super().__str__() + (f"\n  {self.next_step}" if self.next_step is not None else "")


class NotReproducibleError(ClipHbaError, RuntimeError):
    """A repetition did not give the recorded bits (exit code 1)."""


class StoppedError(ClipHbaError, RuntimeError):
    """The work cannot go on, such as after a loss that is no number; what was complete stays (exit code 1)."""
