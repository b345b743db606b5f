"""What a run was made with: machine, versions, numerics, data; and whether this is still so."""

import subprocess
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.config import Config
from clip_hba_behavior.inputs import Inputs
from clip_hba_behavior.reproducibility.errors import BadInputError
from clip_hba_behavior.reproducibility.numerics import library_versions, machine


def describe_environment(config: Config, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """Return what stands in `environment.json`."""
    return {
        "versions": library_versions(),
        "machine": machine(device),
        "numerics": {
            "device": str(device),
            "num_threads": config.num_threads,
            "deterministic": config.deterministic,
            "tf32": config.tf32,
            "sdpa_backend": config.sdpa_backend,
            "eval_batch_size": config.eval_batch_size,
            "chunk_size": config.chunk_size,
        },
        "digests": dict(inputs.digests),
        "git_commit": _git_commit(),
        "parent": None,
    }


def provenance(config: Config, environment: dict[str, Any]) -> dict[str, Any]:
    """Return what each checkpoint records of its origin."""
    return {
        "config_digest": config.trajectory_digest(),
        "random_seed": config.random_seed,
        "training_run": config.training_run,
        "digests": environment["digests"],
        "numerics": environment["numerics"],
        "versions": environment["versions"],
        "device_model": environment["machine"]["device_model"],
        "parent": environment["parent"],
    }


def check_unchanged(run: Path, recorded: dict[str, Any], config: Config, found: dict[str, Any]) -> None:
    """Refuse to continue a run on other data, weights or settings than it was started with.

    Args:
        run: the run's directory, for the message.
        recorded: the checkpoint's provenance.
        config: the configuration about to be used.
        found: `describe_environment` now.

    Raises:
        BadInputError: names what changed, the two values under each other.
    """
    pairs = [("config", recorded.get("config_digest"), config.trajectory_digest())]
    pairs += [(name, recorded.get("digests", {}).get(name), value) for name, value in found["digests"].items()]
    changed = [(name, before, now) for name, before, now in pairs if before != now]
    if changed:
        lines = [
            f"the {name.replace('_', ' ')} changed\n    in checkpoint: {before}\n    now:           {now}"
            for name, before, now in changed
        ]
        raise BadInputError(
            f"cannot resume {run}:\n  " + "\n  ".join(lines) + "\n  put it back as it was, or start a new run"
        )


def _git_commit() -> str | None:
    """Return the commit of the source tree this package lies in, if it lies in one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
