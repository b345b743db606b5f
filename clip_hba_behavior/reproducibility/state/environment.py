"""What of a machine, its libraries and the program bears on a run's bits, and what of it changed."""

import hashlib
import os
import platform
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.process import processor_name

# Of the libraries recorded these compute; Python, safetensors and tokenizers do not: what they read is digested.
_LIBRARIES_THAT_COMPUTE = ("torch", "numpy", "scipy", "pillow", "cuda")
_LIBRARIES = ("torch", "numpy", "scipy", "pillow", "safetensors", "tokenizers")
# Which kernels MKL, ATen, oneDNN, OpenBLAS and cuBLAS take, and how they round.
_VARIABLES = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLAS_EMULATION_STRATEGY",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
)
_PREFIXES = ("DNNL_", "CUBLAS_EMULATE_")
USUAL_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what this package sets where nothing else is
NAMES = ("device", "device_model", *_LIBRARIES_THAT_COMPUTE, "trajectory_version", *_VARIABLES)
NOT_SET = "not set"
NOT_AVAILABLE = "not available"

Changes = dict[str, tuple[Any, Any]]


def is_compared(name: str) -> bool:
    """Whether `environment_changes` can give this name."""
    return name in NAMES or _is_variable(name)


def _is_variable(name: str) -> bool:
    return name in _VARIABLES or name.startswith(_PREFIXES)


def environment_changes(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    """Return what bears on bits and is not as it was: the one list for resume, fork and verify.

    Args:
        recorded: `device`, `versions`, `package`, `variables`, and `device_model` by itself or under `machine`.
            What it does not record is not taken for changed.
        found: the same, now.

    Returns:
        `(then, now)` by name.
    """
    changes = _changes(_single_values(recorded), _single_values(found))
    if "variables" in recorded and "variables" in found:
        then, now = recorded["variables"], found["variables"]
        names = [name for name in {**then, **now} if _is_variable(name)]
        changes |= _changes(*({name: each.get(name, NOT_SET) for name in names} for each in (then, now)))
    return changes


def package_changes(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    """Return whether the package is another: to be named, but most changes of sources change no bit."""
    then, now = (
        {
            f"package_{key}": value
            for key in ("version", "sources")
            if (value := each.get("package", {}).get(key)) != NOT_AVAILABLE
        }
        for each in (recorded, found)
    )
    return _changes(then, now)


def sentences(changes: Changes) -> list[str]:
    """Return a sentence for each change."""
    return [f"{name} was {then}, is {now}" for name, (then, now) in changes.items()]


def refuse_changes(
    run: Path,
    changes: Changes,
    allow: Collection[str],
    known: Iterable[str],
    digests: Collection[str],
    flag: Callable[[Iterable[str]], str],
    files: Iterable[str] = (),
) -> list[str]:
    """Refuse to continue a run that was made from something else, but for what is allowed to be another.

    Args:
        run: its directory.
        changes: what is not as it was.
        allow: names that may be another, on record.
        known: every name that may be allowed, beside what `is_compared`.
        digests: which names are of digests.
        flag: how a person allows some names.
        files: further lines that name what of the data differs.

    Returns:
        What differs and was allowed: a sentence each, to be recorded as drift.

    Raises:
        BadInputError: names what changed, the two values under each other, and the one way to go on.
    """
    unknown = sorted(key for key in set(allow) - set(known) if not is_compared(key))
    if unknown:
        raise BadInputError(f"{flag(unknown)}: nothing of that name is compared\n  known: {', '.join(known)}")
    refused = {key: values for key, values in changes.items() if key not in allow}
    if refused:
        lines = [
            f"{'the digest of the ' if key in digests else ''}{key}\n    in the run: {then}\n    now:        {now}"
            for key, (then, now) in refused.items()
        ]
        raise BadInputError(
            f"cannot resume {run}: what it was made from changed\n  "
            + "\n  ".join([*lines, *files])
            + f"\n  put it back as it was, or go on all the same, on record, with {flag(refused)}"
        )
    return sentences(changes)


def _single_values(environment: Mapping[str, Any]) -> dict[str, Any]:
    versions = environment.get("versions", {})
    return {
        "device": environment.get("device"),
        "device_model": environment.get("machine", environment).get("device_model"),
        **{name: versions.get(name) for name in _LIBRARIES_THAT_COMPUTE},
        "trajectory_version": environment.get("package", {}).get("trajectory_version"),
    }


def _changes(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    return {
        name: (recorded[name], now)
        for name, now in found.items()
        if recorded.get(name) is not None and now is not None and recorded[name] != now
    }


def variables() -> dict[str, str]:
    """Return the environment variables that are set and change bits."""
    return {name: value for name, value in sorted(os.environ.items()) if _is_variable(name)}


def sources_digest(directory: Path, patterns: Iterable[str]) -> str:
    """Return the SHA-256 over the sources in a directory that fit some patterns, or `not available`.

    A package may be installed without them, compiled only or inside an archive.
    """
    names = sorted({path.relative_to(directory).as_posix() for each in patterns for path in directory.glob(each)})
    total = hashlib.sha256()
    for name in names:
        content = (directory / name).read_bytes()
        total.update(f"{name} {len(content)}\n".encode() + content)
    return total.hexdigest() if names else NOT_AVAILABLE


def device_model(device: torch.device) -> str:
    """Name the processor that computes: its model, and on a CPU the instruction set in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})"


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    versions["cuda"] = torch.version.cuda or "none"
    return versions


def machine(device: torch.device) -> dict[str, Any]:
    """Describe this machine; of it only `device_model` bears on the bits."""
    return {
        "host": platform.node(),
        "system": platform.platform(),
        "executable": sys.executable,
        "num_cores": os.cpu_count(),
        "device_model": device_model(device),
    }
