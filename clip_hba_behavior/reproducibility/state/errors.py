"""The ways in which this package says no."""


class BadInputError(ValueError):
    """What the user gave cannot be used; nothing was done (exit code 2)."""


class AnotherFormatError(BadInputError):
    """A file of a later version of this package: it is complete, only not for this program to read."""


class InterruptedRunError(Exception):
    """A signal asked the run to leave; its state is saved (exit code 75)."""


class NotReproducibleError(RuntimeError):
    """A repetition did not give the recorded bits (exit code 1)."""


class StoppedError(RuntimeError):
    """The work cannot go on, such as after a loss that is no number; what was complete stays (exit code 1)."""
