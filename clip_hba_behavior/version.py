"""The program's versions, where the package's face and the records of a run both find them."""

__version__ = "0.2.0"

# One more whenever the same state, data and configuration lead to other bits: a run is not continued across it.
TRAJECTORY_VERSION = 1
