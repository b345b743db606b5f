"""What a run was made with: machine, versions, numerics, data; and whether this is still so."""

import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, as_digested, make_config
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.environment import (
    NAMES,
    Changes,
    environment_changes,
    library_versions,
    machine,
    package_changes,
    refuse_changes,
    sentences,
    sources_digest,
    variables,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint import Checkpoint
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.version import TRAJECTORY_VERSION, __version__

# What computes a state from the one before it. Not what reads tables, prompts and weights, which are digested as
# they were read, nor what writes, compares and reports.
SOURCES = (
    "training/**/*.py",
    "model/**/*.py",
    "rsa/**/*.py",
    "exact/**/*.py",
    "data/augmentation.py",
    "data/colours.py",
    "data/images.py",
    "data/jitter.py",
    "data/resizing.py",
    "reproducibility/state/digest.py",
    "reproducibility/state/numerics.py",
    "reproducibility/state/philox.py",
    "reproducibility/state/rng.py",
    "reproducibility/state/snapshot.py",
)
_PACKAGE = Path(__file__).parents[1]


def describe_environment(config: Config, inputs: Inputs) -> dict[str, Any]:
    """Return what stands in `environment.json`."""
    return {
        "package": {
            "version": __version__,
            "trajectory_version": TRAJECTORY_VERSION,
            "sources": sources_digest(_PACKAGE, SOURCES),
        },
        "versions": library_versions(),
        "variables": variables(),
        "machine": machine(inputs.device),
        "device": str(inputs.device),
        "trajectory": config.trajectory(),
        "digests": dict(inputs.digests),
        "git_commit": _git_commit(),
        "parent": None,
        "continued_from": None,
        "drift": [],
        "package_changes": [],
        "images": {
            path.name: image_digest[:16]
            for path, image_digest in zip(inputs.image_paths, inputs.image_digests, strict=True)
        },
        **(
            {
                "pixels": {
                    path.name: decoded[:16]
                    for path, decoded in zip(inputs.image_paths, inputs.image_cache.sources, strict=True)
                }
            }
            if inputs.image_cache.sources
            else {}
        ),
        "targets": {
            path.name: target_digest[:16]
            for path, target_digest in zip(inputs.image_paths, inputs.target_digests, strict=False)
        },
    }


def provenance(config: Config, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return what each checkpoint records of its origin."""
    return {
        "training_run": config.training_run,
        "config": config.trajectory(),
        "config_digest": digest(as_digested(config.trajectory())),
        "digests": environment["digests"],
        "package": environment["package"],
        "versions": environment["versions"],
        "variables": environment["variables"],
        "device": environment["device"],
        "device_model": environment["machine"]["device_model"],
        "host": environment["machine"]["host"],
        "parent": environment["parent"],
        "drift": environment["drift"],
    }


def compare_environments(
    run: Path, recorded: Mapping[str, Any], found: Mapping[str, Any], allow: Collection[str] = ()
) -> list[str]:
    """Refuse to continue a run on other data, weights, settings, machine or versions than it had.

    Args:
        run: the run's directory, for the message.
        recorded: its `environment.json`.
        found: `describe_environment` now.
        allow: what may be another: keys of the configuration, of the digests, or of what `environment_changes`
            compares.

    Returns:
        What differs and was allowed: a sentence each, to be recorded as drift.

    Raises:
        BadInputError: names what changed, the two values under each other, and the one way to go on.
    """
    # a key that was added since the run was made had its default's effect
    changes = _changes(make_config({}).trajectory() | recorded["trajectory"], found["trajectory"])
    changes |= _changes(recorded["digests"], found["digests"])
    changes |= changes_that_bear_on_bits(recorded, found)
    known = [*found["digests"], *NAMES, *found["trajectory"]]
    is_data_other = any(key in changes and key not in allow for key in found["digests"])
    return refuse_changes(
        run,
        changes,
        allow,
        known,
        digests=found["digests"],
        files=changed_files(recorded, found) if is_data_other else (),
        flag=lambda keys: f"--allow {','.join(keys)}",
    )


def _changes(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    return {key: (recorded.get(key), now) for key, now in found.items() if recorded.get(key) != now}


def two_settings(epoch: int) -> str:
    """Return how drift names an epoch within which something changed: no one setting repeats all of it."""
    return f"epoch {epoch} was trained under two settings"


def changed_data(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name what of data and weights is not what it was: digests under each other, then the files.

    Args:
        recorded: an `environment.json`, or a checkpoint's provenance, which knows no single files.
        found: `describe_environment` now.
    """
    changed = _differing("the digest of the ", recorded["digests"], found["digests"])
    return changed + (changed_files(recorded, found) if changed else [])


def changed_files(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name the images, and the images' targets, that are not what they were."""
    changed = []
    kinds = {
        "images": "images that differ",
        "pixels": "images that are decoded otherwise",
        "targets": "targets that differ, of the images",
    }
    for key, what in kinds.items():
        then, now = recorded.get(key), found.get(key, {})
        if then:
            names = [name for name, value in now.items() if then.get(name, value) != value]
            names += sorted(then.keys() ^ now.keys())
            if names:
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                changed.append(f"{what}: {', '.join(names[:5])}{more}")
    return changed


def check_fork(parent: Checkpoint, found: Mapping[str, Any]) -> list[str]:
    """Refuse a fork on other data or weights than its parent's; name other versions and machines.

    Returns:
        What differs and may change bits: a sentence each. Nothing for a parent of the earlier pipeline.

    Raises:
        BadInputError: names what differs, the two values under each other.
    """
    origin = parent.provenance
    if "digests" not in origin:
        return []
    changed = changed_data(origin, found)
    if changed:
        raise BadInputError(
            f"{parent.path} cannot be continued on other data or weights\n  "
            + "\n  ".join(changed).replace("in the run:", "in parent:  ")
            + "\n  name the data and the backbone of the baseline"
            + _decoder_advice(origin, found)
        )
    return drift_from(origin, found)


def _decoder_advice(origin: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Say what helps where the same image files are decoded to other pixels than a fork's parent saw."""
    then, now = origin["digests"], found["digests"]
    if then.get("images") != now.get("images") or then.get("pixels") == now.get("pixels"):
        return ""
    pillow = origin.get("versions", {}).get("pillow", "not recorded")
    return f"; the images are decoded otherwise here: install the Pillow of the baseline, {pillow}"


def drift_from(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name what may change bits and is not as it was; a sentence each.

    Args:
        recorded: an `environment.json`, or a checkpoint's provenance.
        found: `describe_environment` now.
    """
    return sentences(changes_that_bear_on_bits(recorded, found))


def recorded_settings(recorded: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys that an `environment.json`, or a checkpoint's provenance, records."""
    return recorded.get("trajectory") or recorded.get("config") or {}


def arithmetic_of(recorded: Mapping[str, Any]) -> str:
    """Return the arithmetic that an `environment.json`, or a checkpoint's provenance, records."""
    return str(recorded_settings(recorded).get("arithmetic", "native"))


def changes_that_bear_on_bits(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    """Return what of processor, versions and variables is another and bears on bits: nothing in portable ones."""
    changes = environment_changes(recorded, found)
    if arithmetic_of(recorded) == arithmetic_of(found) != "native":
        return {name: values for name, values in changes.items() if name == "trajectory_version"}
    return changes


def package_changes_from(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Name another version or other sources of this package, as `drift_from` does; they lower no claim."""
    return sentences(package_changes(recorded, found))


def _differing(what: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}{key}\n    in the run: {recorded.get(key)}\n    now:        {value}"
        for key, value in found.items()
        if recorded.get(key) != value
    ]


def _git_commit() -> str | None:
    """Return the commit of the source tree that this package is the content of, if it is in one."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "rev-parse"]
    try:
        top, commit = (
            subprocess.run([*git, asked], capture_output=True, encoding="utf-8", check=True).stdout.strip()
            for asked in ("--show-toplevel", "HEAD")
        )
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
    return commit if Path(top) == root else None  # it may be installed inside another project's tree
