"""Every random stream of a run: capture it, put it back."""

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from clip_hba_behavior.reproducibility.state.errors import BadInputError

RngState = dict[str, Any]

SAVED = "Saved RNG states for reproducibility"
RESTORED = "✓ Restored RNG states from checkpoint for reproducible shuffle order"
MISSING = "⚠️  WARNING: No RNG states in checkpoint. Batch order will differ."


def capture_rng_state(*devices: torch.device) -> RngState:
    """Return the state of torch's, NumPy's and Python's global generators, and of CUDA devices'.

    NumPy's key array is stored as a uint32 tensor: torch's safe loader refuses the raw array, and
    `np.random.set_state` takes the tensor as it is.

    Returns:
        `torch_rng_state`, torch's bytes; `numpy_rng_state`, what `np.random.get_state(legacy=True)` returns, of
        Python's own types; `python_rng_state`, what `random.getstate()` returns; and with CUDA devices
        `cuda_rng_state_all`, the bytes of each.

    Args:
        devices: where the run computes. What the state holds follows from them alone: whether the process has used
            CUDA for something else must not count in the digest, and neither must the number of devices.
    """
    algorithm, key, position, has_gauss, cached_gaussian = np.random.get_state(legacy=True)
    state: RngState = {
        "torch_rng_state": torch.get_rng_state(),
        "numpy_rng_state": (
            str(algorithm),
            torch.from_numpy(np.asarray(key, dtype=np.uint32).copy()),
            int(position),
            int(has_gauss),
            float(cached_gaussian),
        ),
        "python_rng_state": random.getstate(),
    }
    if cuda := [each for each in devices if each.type == "cuda"]:
        state["cuda_rng_state_all"] = [torch.cuda.get_rng_state(each) for each in cuda]
    return state


def restore_rng_state(state: Mapping[str, Any], *devices: torch.device) -> None:
    """Put the generators back. Must be the last thing before training goes on.

    Args:
        state: what `capture_rng_state` returned, or `checkpoint["rng_state"]`, of this project or
            of the earlier pipeline (whose NumPy key is an array).
        devices: those that it was captured of; without any, the current CUDA device gets its stream.
    """
    torch.set_rng_state(state["torch_rng_state"])
    np.random.set_state(state["numpy_rng_state"])
    version, words, gauss_next = state["python_rng_state"]
    random.setstate((version, tuple(words), gauss_next))
    if "cuda_rng_state_all" in state and torch.cuda.is_available():
        states = state["cuda_rng_state_all"]
        if cuda := [each for each in devices if each.type == "cuda"]:
            # a run that was moved to the CUDA devices, as it was allowed, has no streams of them yet
            for device, stream in zip(cuda, states, strict=True):
                torch.cuda.set_rng_state(stream, device)
        else:  # the earlier pipeline saved one for every device
            torch.cuda.set_rng_state(states[min(torch.cuda.current_device(), len(states) - 1)])


def refuse_no_rng_state(state: Mapping[str, Any], source: str, *devices: torch.device) -> None:
    """Return if `restore_rng_state` can take a state; no generator is touched.

    Raises:
        BadInputError: it lacks a stream, has a malformed one, or streams of another number of CUDA devices.
    """
    try:
        torch.Generator().set_state(state["torch_rng_state"])
        np.random.RandomState(0).set_state(state["numpy_rng_state"])
        version, words, gauss_next = state["python_rng_state"]
        random.Random(0).setstate((version, tuple(words), gauss_next))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BadInputError(f"{source} holds no random states that can be restored: {error}") from error
    found = len(state.get("cuda_rng_state_all", ()))
    expected = sum(each.type == "cuda" for each in devices)
    if found and expected and found != expected:  # else the device is another, which the run allows or refuses
        raise BadInputError(
            f"{source} does not fit the parts: CUDA devices that they are on\n"
            f"  in the checkpoint: {found}\n  now:               {expected}\n"
            "  put the parts on as many devices as before"
        )


@contextmanager
def undisturbed_generators() -> Iterator[None]:
    """Let something draw, and put all global generators back, CUDA's too if this process has started it."""
    before = capture_rng_state(torch.device("cuda" if torch.cuda.is_initialized() else "cpu"))
    try:
        yield
    finally:
        restore_rng_state(before)


def seed_generators(seed: int) -> None:
    """Seed torch's (CPU and CUDA), NumPy's and Python's global generators."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def load_and_restore_rng_state(checkpoint: Mapping[str, Any], logger: logging.Logger | None = None) -> bool:
    """Restore the random states that a checkpoint holds, or warn that it holds none.

    Args:
        checkpoint: a loaded checkpoint of any age.
        logger: where the guide's message goes; without one it is printed.

    Returns:
        Whether there was a random state to restore.
    """
    say = logger.info if logger is not None else print
    warn = logger.warning if logger is not None else print
    if not {"torch_rng_state", "numpy_rng_state", "python_rng_state"} <= checkpoint.get("rng_state", {}).keys():
        warn(MISSING)
        return False
    restore_rng_state(checkpoint["rng_state"])
    say(RESTORED)
    return True
