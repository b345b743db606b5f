"""Perfect resume for any PyTorch loop: the public surface of the core.

The names are imported when they are first used: whoever needs an error class alone does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip_hba_behavior.reproducibility.record.fork_run import fork
    from clip_hba_behavior.reproducibility.record.recording import Interrupted, track
    from clip_hba_behavior.reproducibility.record.single import load, save
    from clip_hba_behavior.reproducibility.record.track import Run
    from clip_hba_behavior.reproducibility.record.verify_run import diff, verify
    from clip_hba_behavior.reproducibility.state.data_digest import data_digest as digest
    from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError, StoppedError

_HOMES = {
    "track": ("record.recording", "track"),
    "digest": ("state.data_digest", "data_digest"),
    "save": ("record.single", "save"),
    "load": ("record.single", "load"),
    "fork": ("record.fork_run", "fork"),
    "verify": ("record.verify_run", "verify"),
    "diff": ("record.verify_run", "diff"),
    "Run": ("record.track", "Run"),
    "Interrupted": ("record.recording", "Interrupted"),
    "BadInputError": ("state.errors", "BadInputError"),
    "NotReproducibleError": ("state.errors", "NotReproducibleError"),
    "StoppedError": ("state.errors", "StoppedError"),
}

__all__ = [
    "BadInputError",
    "Interrupted",
    "NotReproducibleError",
    "Run",
    "StoppedError",
    "diff",
    "digest",
    "fork",
    "load",
    "save",
    "track",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(f"{__name__}.{module}"), attribute)
