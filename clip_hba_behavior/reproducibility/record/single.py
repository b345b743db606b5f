"""One state in one file, for whoever keeps the loop's bookkeeping."""

from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.record.made_from import devices_of
from clip_hba_behavior.reproducibility.record.parts import Part, check_parts, restore_parts, states_of
from clip_hba_behavior.reproducibility.record.tracked import TrackedState, read_state, state_bytes
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state, refuse_no_rng_state, restore_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.reproducibility.state.tree import copy_tree


def save(path: str | Path, extra: Any = None, **parts: Part) -> str:
    """Save parts and all global random streams in one file, complete or not at all.

    Args:
        path: the file; another state in its place is replaced, and directories above it are made.
        extra: whatever else is to be kept, such as the epoch: a tree of tensors, numbers and texts.
        parts: by name, whatever has `state_dict` and `load_state_dict`.

    Returns:
        The state's digest.

    Raises:
        BadInputError: something has no encoding; names where.
    """
    check_parts(parts)
    rng_state = snapshot(capture_rng_state(*devices_of(parts)))
    state = TrackedState(states_of(parts), rng_state, key="", metrics={"extra": copy_tree(extra, "extra")})
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    replace(target, state_bytes(target, state, {}))
    return state.digest()


def load(path: str | Path, **parts: Part) -> Any:
    """Load what `save` saved into live parts, then put the random streams back.

    Returns:
        What was given as `extra`.

    Raises:
        BadInputError: the file is not there or damaged, or a part or leaf does not fit; nothing is changed then.
    """
    check_parts(parts)
    devices = devices_of(parts)
    state, _ = read_state(Path(path).expanduser())
    refuse_no_rng_state(state.rng_state, str(path), *devices)
    restore_parts(parts, state.parts, str(path))
    restore_rng_state(state.rng_state, *devices)
    return state.metrics.get("extra")
