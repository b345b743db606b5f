"""A configuration made complete: what the machine or other keys decide."""

import os
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import DATA_KEYS, Config, make_config
from clip_hba_behavior.reproducibility.state.process import usable_cores


def resolve_config(config: Config) -> Config:
    """Fill in what the machine or other keys decide, and make every path absolute.

    Raises:
        BadInputError: a CUDA device is asked for that is not there.
    """
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache_dir = Path(config.cache_dir or cache_home / "clip_hba_behavior")
    values: dict[str, Any] = {
        "device": _device(config.device),
        "num_threads": config.num_threads or usable_cores(),
        "lr_schedule_epochs": config.lr_schedule_epochs or max(1, config.epochs),
        "cache_dir": str(cache_dir.expanduser().absolute()),
        "run_dir": str(run_directory_of(config)),
    }
    for key in (*DATA_KEYS, "baseline_dora_directory"):
        if getattr(config, key) is not None:
            values[key] = str(Path(getattr(config, key)).expanduser().absolute())
    for key in ("backbone", "tokenizer"):
        name = getattr(config, key)
        if name is not None and Path(name).expanduser().exists():
            values[key] = str(Path(name).expanduser().absolute())
    return make_config(config.model_dump() | values)


def run_directory_of(config: Config) -> Path:
    """Return the directory of the run that a configuration describes."""
    return Path(config.run_dir or f"runs/seed{config.random_seed}").expanduser().absolute()


def _device(name: str) -> str:
    if name == "cpu":  # every machine has one: torch need not be asked
        return name
    from clip_hba_behavior.reproducibility.state.numerics import resolve_device

    return str(resolve_device(name))
