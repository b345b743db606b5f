"""What a run was made with: machine, versions, numerics, data; and whether this is still so."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config
from clip_hba_behavior.inputs import Inputs
from clip_hba_behavior.reproducibility.digest import digest
from clip_hba_behavior.reproducibility.errors import BadInputError
from clip_hba_behavior.reproducibility.numerics import library_versions, machine


def describe_environment(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return what stands in `environment.json`."""
    return {
        "versions": library_versions(),
        "machine": machine(inputs.device),
        "device": str(inputs.device),
        "trajectory": config.trajectory(),
        "digests": dict(inputs.digests),
        "git_commit": _git_commit(),
        "parent": None,
        "continued_from": None,
        "drift": [],
        "images": {
            path.name: image_digest[:16]
            for path, image_digest in zip(inputs.image_paths, inputs.image_digests, strict=True)
        },
    }


def provenance(config: Config, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each checkpoint records of its origin."""
    return {
        "training_run": config.training_run,
        "config": config.trajectory(),
        "config_digest": digest(config.trajectory()),
        "digests": environment["digests"],
        "versions": environment["versions"],
        "device": environment["device"],
        "device_model": environment["machine"]["device_model"],
        "parent": environment["parent"],
        "drift": environment["drift"],
    }


def compare_environments(run: Path, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Refuse to continue a run on other data, weights or settings; name other versions and machines.

    Args:
        run: the run's directory, for the message.
        recorded: its `environment.json`.
        found: `describe_environment` now.

    Returns:
        What differs and may change bits although the run can go on: a sentence each.

    Raises:
        BadInputError: names what changed, the two values under each other.
    """
    changed = _differing("", recorded["trajectory"], found["trajectory"])
    changed += _differing("the digest of the ", recorded["digests"], found["digests"])
    if changed:
        images = [
            name for name, value in found["images"].items() if recorded["images"].get(name, value) != value
        ] + sorted(recorded["images"].keys() ^ found["images"].keys())
        if images:
            more = f" and {len(images) - 5} more" if len(images) > 5 else ""
            changed.append(f"images that differ: {', '.join(images[:5])}{more}")
        raise BadInputError(
            f"cannot resume {run}: what it was made from changed\n  "
            + "\n  ".join(changed)
            + "\n  put it back as it was, or start a new run"
        )
    here = {"device": found["device"], "device_model": found["machine"]["device_model"], **found["versions"]}
    there = {
        "device": recorded["device"],
        "device_model": recorded["machine"]["device_model"],
        **recorded["versions"],
    }
    return [f"{key} was {there.get(key)}, is {here.get(key)}" for key in here if here[key] != there.get(key)]


def _differing(what: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}{key}\n    in the run: {recorded.get(key)}\n    now:        {value}"
        for key, value in found.items()
        if recorded.get(key) != value
    ]


def _git_commit() -> str | None:
    """Return the commit of the source tree that this package is the content of, if it is in one."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "rev-parse"]
    try:
        top = subprocess.run([*git, "--show-toplevel"], capture_output=True, text=True, check=True).stdout.strip()
        if Path(top) != root:  # installed inside another project's tree
            return None
        return subprocess.run([*git, "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
