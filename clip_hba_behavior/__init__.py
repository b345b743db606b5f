"""Fine-tune CLIP on human behaviour with DoRA, and continue every run bit for bit.

This is the whole public surface. The names are imported when they are first used, so that
`clip-hba --help` does not wait for torch.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from clip_hba_behavior.version import __version__

if TYPE_CHECKING:
    from clip_hba_behavior.config import Config, make_config
    from clip_hba_behavior.reproducibility.state.compare import compare
    from clip_hba_behavior.reproducibility.state.errors import (
        BadInputError,
        ClipHbaError,
        InterruptedRunError,
        NotReproducibleError,
        StoppedError,
    )
    from clip_hba_behavior.reproducibility.state.rng import load_and_restore_rng_state
    from clip_hba_behavior.run.checkpoint import read_checkpoint, save_dora_parameters
    from clip_hba_behavior.run.life import resume, run_behavioral_training, start, train_model
    from clip_hba_behavior.training.state import TrainingState
    from clip_hba_behavior.use.load import load_model

# Torch reads it at its first allocation: large tensors in huge pages, of which the kernel has far fewer to
# clear. It changes no bit; a training step on the CPU takes a tenth less time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# cuBLAS reads it when CUDA starts: without a fixed workspace its sums may differ from call to call.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_HOMES = {
    "Config": "config",
    "make_config": "config",
    "read_checkpoint": "run.checkpoint",
    "save_dora_parameters": "run.checkpoint",
    "compare": "reproducibility.state.compare",
    "BadInputError": "reproducibility.state.errors",
    "ClipHbaError": "reproducibility.state.errors",
    "InterruptedRunError": "reproducibility.state.errors",
    "NotReproducibleError": "reproducibility.state.errors",
    "StoppedError": "reproducibility.state.errors",
    "load_and_restore_rng_state": "reproducibility.state.rng",
    "TrainingState": "training.state",
    "load_model": "use.load",
    "resume": "run.life",
    "run_behavioral_training": "run.life",
    "start": "run.life",
    "train_model": "run.life",
}

__all__ = [
    "BadInputError",
    "ClipHbaError",
    "Config",
    "InterruptedRunError",
    "NotReproducibleError",
    "StoppedError",
    "TrainingState",
    "__version__",
    "compare",
    "load_and_restore_rng_state",
    "load_model",
    "make_config",
    "read_checkpoint",
    "resume",
    "run_behavioral_training",
    "save_dora_parameters",
    "start",
    "train_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
