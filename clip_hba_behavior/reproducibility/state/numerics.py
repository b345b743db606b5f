"""Settings that change bits: check them, apply them, put them back."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend

from clip_hba_behavior.reproducibility.state.errors import BadInputError

SDPA_BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


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


def check_float64_products(device: torch.device) -> None:
    """Refuse what makes float64 products inexact where their exact result fits in float64: cuBLAS's emulation.

    Raises:
        BadInputError: names the variable.
    """
    name = "CUBLAS_EMULATE_DOUBLE_PRECISION"
    if device.type == "cuda" and os.environ.get(name, "0") not in ("", "0"):
        raise BadInputError(
            f"{device} cannot honour arithmetic: portable\n"
            f"  found:    {name}={os.environ[name]}: cuBLAS may compute float64 products by others\n"
            f"  expected: float64's own\n  unset {name}"
        )


def rounds_to_tf32(device: torch.device) -> bool:
    """Whether a device can round the inputs of float32 products to TF32: a GPU since Ampere."""
    return device.type == "cuda" and torch.cuda.is_tf32_supported()


def apply_numerics(num_threads: int, deterministic: bool, tf32: bool) -> None:
    """Set what this process computes with. Call it before CUDA starts.

    Args:
        num_threads: threads of one CPU operation; sums are split among them, so it changes bits.
        deterministic: refuse operations whose bits change from call to call.
        tf32: let CUDA round the inputs of float32 products to TF32.
    """
    torch.set_num_threads(num_threads)
    # `torch.use_deterministic_algorithms` would import torch's compiler too, as long again as torch
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # sums of bfloat16 are in float32


def describe_numerics() -> dict[str, bool | int | str]:
    """Return what of this process's settings changes bits, by name."""
    return {
        "num_threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "tf32": _allows_tf32(torch.backends.cuda.matmul, torch.backends.cuda.matmul),
        "cudnn_tf32": _allows_tf32(torch.backends.cudnn, getattr(torch.backends.cudnn, "conv", None)),
        "cpu_matmul_precision": _precision("matmul"),
        "cpu_conv_precision": _precision("conv"),
    }


def _allows_tf32(owner: Any, newer: Any) -> bool:
    """Read a switch of TF32. Once `fp32_precision`, its newer name, was set, torch does not tell it by the old."""
    try:
        return bool(owner.allow_tf32)
    except RuntimeError:
        return bool(newer.fp32_precision == "tf32")


def _switches_of_tf32(owner: Any, parts: Sequence[str]) -> list[tuple[Any, str]]:
    """Return where TF32 is switched: by the old name or, where the newer one was used, by that."""
    try:
        _ = owner.allow_tf32
    except RuntimeError:
        return [(getattr(owner, part), "fp32_precision") for part in parts] or [(owner, "fp32_precision")]
    return [(owner, "allow_tf32")]


def _precision(operation: str) -> str:
    """Return how oneDNN may round float32 products on a CPU; `none` and `ieee` are both not at all."""
    switch = getattr(getattr(torch.backends, "mkldnn", None), operation, None)  # since torch 2.9
    found = str(getattr(switch, "fp32_precision", "none"))
    return "none" if found == "ieee" else found


@contextmanager
def numerics_left_as_they_were() -> Iterator[None]:
    """Put back what `apply_numerics` sets: the caller may go on with work of its own in this process.

    The random states are not touched.
    """
    flags: list[tuple[Any, str]] = [(torch.backends.cudnn, "benchmark"), (torch.backends.cudnn, "deterministic")]
    flags.append((torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"))
    flags += [
        *_switches_of_tf32(torch.backends.cudnn, ("conv", "rnn")),
        *_switches_of_tf32(torch.backends.cuda.matmul, ()),
    ]
    values = [getattr(owner, name) for owner, name in flags]
    num_threads = torch.get_num_threads()
    deterministic = torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        for (owner, name), value in zip(flags, values, strict=True):
            setattr(owner, name, value)
        torch.set_num_threads(num_threads)
        torch.set_deterministic_debug_mode(deterministic)
