"""Settings that change bits: apply them, and record what else the bits depend on."""

import os
import platform
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from clip_hba_behavior.reproducibility.state.errors import BadInputError

SDPA_BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_LIBRARIES = ("torch", "transformers", "numpy", "scipy", "pillow", "safetensors", "tokenizers")


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu`, `cuda` or `cuda:N` into a device of this machine.

    Raises:
        BadInputError: a CUDA device is asked for that is not there.
    """
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        index = device.index or 0
        if not torch.cuda.is_available() or index >= torch.cuda.device_count():
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            raise BadInputError(
                f"this machine cannot honour device: {name}\n"
                f"  found:    {found} CUDA devices\n  expected: device {index}\n"
                "  run it where the device is, or set device: cpu"
            )
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    return device


def check_sdpa_backend(name: str, device: torch.device) -> None:
    """Refuse an attention kernel that does not exist for float32 on a device.

    Raises:
        BadInputError: names the kernels that do.
    """
    known = {"cpu": ("math", "flash"), "cuda": ("math", "efficient")}[device.type]
    if name not in known:
        raise BadInputError(
            f"this device cannot honour sdpa_backend: {name}\n  found:    {device}, float32\n"
            f"  expected: {' or '.join(known)}"
        )


def apply_numerics(num_threads: int, deterministic: bool, tf32: bool) -> None:
    """Set what this process computes with. Call it before CUDA starts.

    Args:
        num_threads: threads of one CPU operation; sums are split among them, so it changes bits.
        deterministic: refuse operations whose bits change from call to call.
        tf32: let CUDA round the inputs of float32 products to TF32.
    """
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32


def device_model(device: torch.device) -> str:
    """Name the processor that computes: its model, and on a CPU the instruction set in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_model()} ({torch.backends.cpu.get_cpu_capability()})"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@cache
def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that compute."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    if torch.version.cuda is not None:
        versions["cuda"] = torch.version.cuda
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
