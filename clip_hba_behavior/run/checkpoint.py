"""A training state on disk: one flat file in the guide's layout, read without running anything.

The file is what `torch.save` makes of one dict of builtins and CPU tensors, so a plain
`torch.load(path)` opens it and `model.load_state_dict(checkpoint, strict=False)` takes it.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.config import as_recorded
from clip_hba_behavior.reproducibility.state import safe_load
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import AnotherFormatError, BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.rng import MISSING, SAVED, RngState, capture_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.reproducibility.state.tree import to_bytes
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, position_in_name, step_checkpoint_path
from clip_hba_behavior.run.results import P_VALUE_CAVEAT
from clip_hba_behavior.training.state import PartialState, TrainingState

FORMAT_VERSION = 1
# What the parts of a provenance are that others look into.
_PROVENANCE: dict[str, type] = {
    **dict.fromkeys(("config", "digests", "package", "versions", "variables"), dict),
    "drift": list,
}
_STATE_KEYS = [each.name for each in fields(TrainingState) if each.name != "parameters"]


@dataclass(frozen=True)
class Checkpoint:
    """One file's content, already checked.

    Attributes:
        path: where it was read.
        parameters: the trainable parameters by name.
        rng_state: the random streams, None in an old file that has none.
        state: the complete training state; None if the file holds only part of it.
        state_digest: the digest of `state`; None where `state` is.
        provenance: where the state comes from; empty in a file of the earlier pipeline.
    """

    path: Path
    parameters: dict[str, torch.Tensor]
    rng_state: RngState | None
    state: TrainingState | None
    state_digest: str | None
    provenance: dict[str, Any]

    def recorded(self) -> TrainingState | PartialState:
        """Return what the file holds, complete or not, to be compared."""
        return self.state if self.state is not None else PartialState(self.parameters, self.rng_state)

    def whole_state(self) -> TrainingState:
        """Return the state, which must be complete.

        Raises:
            BadInputError: the file holds only part of a state; names what is missing.
        """
        if self.state is None:
            has = "parameters and random states" if self.rng_state is not None else "parameters only"
            raise BadInputError(
                f"{self.path} does not hold the complete training state\n"
                f"  found:    {has}\n"
                "  expected: also optimizer, early stopping and cursor\n"
                "  resume from a checkpoint of this project, or start a fork from these parameters "
                "with training_run and baseline_dora_directory"
            )
        return self.state


class AlteredCheckpointError(BadInputError):
    """A file's state is not the one that was saved, or not the one that its name says.

    Attributes:
        altered: what the file holds now. To be compared, never to be continued.
    """

    def __init__(self, message: str, altered: Checkpoint) -> None:
        """Keep the content, so that what was altered can be named."""
        super().__init__(message)
        self.altered = altered


def to_content(
    state: TrainingState, provenance: Mapping[str, Any], beside: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Lay a complete state out flat, as it goes into the file; what stands beside it is not digested."""
    content: dict[str, Any] = dict(state.parameters)
    content |= {key: getattr(state, key) for key in _STATE_KEYS}
    content["format_version"] = FORMAT_VERSION
    content["state_digest"] = state.digest()
    content["training_run"] = provenance.get("training_run", 1)
    content["provenance"] = dict(provenance)
    return content | dict(beside or {})


def save_dora_parameters(
    model: torch.nn.Module,
    dora_parameters_path: str | os.PathLike[str],
    epoch: int,
    logger: logging.Logger | None = None,
    save_rng_state: bool = True,
    training_state: TrainingState | None = None,
    provenance: Mapping[str, Any] | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Publish `epoch<N>_dora_params.pth`. A file that exists is never replaced.

    Args:
        model: its trainable parameters are written under their names in `state_dict`.
        dora_parameters_path: the directory; made if it is not there.
        epoch: number of completed epochs.
        logger: where the guide's message goes; without one it is printed.
        save_rng_state: without random states the file is partial, whatever else is given.
        training_state: the complete state, a snapshot of this model in training. Without it parameters
            and random states are written, and the file is marked partial.
        provenance: where the state comes from.
        beside: written into the file too, and no part of the state: `Trainer.undrawn_streams`.

    Returns:
        The file's path.

    Raises:
        NotReproducibleError: the file exists and holds another state.
        BadInputError: the file exists, and the new one would be partial.
    """
    directory = Path(dora_parameters_path)
    directory.mkdir(parents=True, exist_ok=True)
    path = checkpoint_path(directory, epoch)
    if training_state is not None and save_rng_state:
        content = to_content(training_state, provenance or {}, beside)
    else:
        trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
        content = dict(snapshot(trainable))
        if save_rng_state:
            device = next((each.device for each in trainable.values()), torch.device("cpu"))
            content["rng_state"] = capture_rng_state(device)
        content |= {"epoch": epoch, "partial": True, "format_version": FORMAT_VERSION}
    _publish(path, content)
    if save_rng_state:
        (logger.info if logger is not None else print)(SAVED)
    return path


def save_step_checkpoint(
    directory: Path,
    state: TrainingState,
    provenance: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
) -> Path:
    """Publish the state within an epoch as `epoch<N>_step<K>.pth`. A file that exists is never replaced.

    Raises:
        NotReproducibleError: the file exists and holds another state.
    """
    directory.mkdir(exist_ok=True)
    path = step_checkpoint_path(directory, state.epoch + 1, state.step_in_epoch)
    publish_state(path, state, provenance, beside)
    return path


def publish_state(
    path: Path, state: TrainingState, provenance: Mapping[str, Any], beside: Mapping[str, Any] | None = None
) -> None:
    """Publish a complete state under any name. A file that exists is never replaced.

    Raises:
        NotReproducibleError: the file exists and holds another state.
    """
    _publish(path, to_content(state, provenance, beside))


def _publish(path: Path, content: dict[str, Any]) -> None:
    try:
        publish(path, to_bytes(content))
    except FileExistsError:
        _refuse_another_state(path, content.get("state_digest"))


def _refuse_another_state(path: Path, reached: str | None) -> None:
    """Let an existing file pass only if it holds the very state that this run reached."""
    if reached is None:
        raise BadInputError(f"{path} exists; a checkpoint is never replaced\n  give another directory")
    recorded = read_checkpoint(path).state_digest
    if recorded != reached:
        raise NotReproducibleError(
            f"{path.name} exists and holds another state than this run reached\n"
            f"  in the file:   {recorded}\n"
            f"  in this run:   {reached}\n"
            "  the file is left as it is; compare the two runs, or go on in a new --run-dir"
        )


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint of this project or of the earlier pipeline.

    Nothing that the file contains is run, and no memory is taken on its word: see `safe_load`. The
    file is refused, or its state is the one that was saved.

    Raises:
        BadInputError: there is no such file, it is no checkpoint, it is damaged, or it was made by
            a later version; as `AlteredCheckpointError` where only its digest does not fit.
    """
    path = Path(path)
    content = safe_load.load(path)
    parameters = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not parameters:
        raise BadInputError(f"{path} is no checkpoint: it holds no parameters")
    rng_state = content.get("rng_state")
    if "state_digest" not in content:
        return Checkpoint(path, parameters, rng_state, None, None, _provenance(content, path))

    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise AnotherFormatError(
            f"{path} has another format\n  found:    format_version {version!r}\n"
            f"  expected: format_version {FORMAT_VERSION}\n  read it with the version that wrote it"
        )
    missing = [key for key in _STATE_KEYS if key not in content]
    if missing:
        raise BadInputError(f"{path} is damaged: it lacks {', '.join(missing)}")
    state = TrainingState(parameters=parameters, **{key: content[key] for key in _STATE_KEYS})
    checkpoint = Checkpoint(
        path, parameters, rng_state, state, content["state_digest"], _provenance(content, path)
    )
    if state.digest() != checkpoint.state_digest:
        raise AlteredCheckpointError(
            f"{path} is damaged: its state is not the one that was saved\n"
            f"  digest of its content: {state.digest()}\n"
            f"  digest recorded in it: {checkpoint.state_digest}\n"
            "  use another epoch's checkpoint",
            checkpoint,
        )
    return checkpoint


def _provenance(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return where a state comes from, its configuration complete; empty in a file of the earlier pipeline.

    Raises:
        BadInputError: a part of it is of another kind than this program writes.
    """
    origin: dict[str, Any] = content.get("provenance", {})
    for key, kind in _PROVENANCE.items():
        if key in origin and not isinstance(origin[key], kind):
            raise BadInputError(
                f"{path} is damaged: where it comes from cannot be read\n  found:    {key} {origin[key]!r:.200}\n"
                f"  expected: a {kind.__name__}\n  use another epoch's checkpoint"
            )
    return origin | {"config": as_recorded(origin["config"])} if "config" in origin else origin


def read_named(path: Path) -> Checkpoint:
    """Read a checkpoint whose state must be the one that its name says.

    Raises:
        BadInputError: as `read_checkpoint`; as `AlteredCheckpointError` where it is another state.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.state
    expected = position_in_name(path.name)
    if state is not None and (state.epoch, state.step_in_epoch) != expected:
        raise AlteredCheckpointError(
            f"{path} holds another state than its name says: {_name_state(state.epoch, state.step_in_epoch)}; "
            f"was it renamed, or swapped with another?\n  expected: {_name_state(*expected)}\n"
            "  put the files back under their own names",
            checkpoint,
        )
    return checkpoint


def _name_state(epoch: int, step: int) -> str:
    return f"the one after epoch {epoch}" + (f" and {step} steps" if step else "")


def parameters_digest(parameters: Mapping[str, torch.Tensor]) -> str:
    """Return the digest of a set of parameters alone."""
    return digest(dict(parameters))


def describe(checkpoint: Checkpoint) -> str:
    """Return what a checkpoint holds, in lines for a person."""
    state, origin = checkpoint.state, checkpoint.provenance
    lines = [str(checkpoint.path)]
    if state is None:
        lines.append("  holds        part of a training state: it cannot be continued bit for bit")
    else:
        lines.append("  holds        the complete training state; its digest was checked")
        lines.append(f"  epoch        {state.epoch} completed, {state.step_in_epoch} steps into the next")
        lines += [f"  {key:<22} {value!r}" for key, value in state.metrics.items() if key != "epoch"]
        if "behavioral_rsa_p_value" in state.metrics:
            lines.append(f"  {'':<22} {P_VALUE_CAVEAT}")
        lines += [f"  {key:<22} {value!r}" for key, value in state.early_stopping_state.items()]
        lines.append(f"  state digest {checkpoint.state_digest}")
    if checkpoint.rng_state is None:
        lines.append(f"  random       none. {MISSING}")
    else:
        lines.append(f"  random       {', '.join(checkpoint.rng_state)}")
    total = sum(value.numel() for value in checkpoint.parameters.values())
    lines.append(
        f"  parameters   {total:,} in {len(checkpoint.parameters)} tensors, digest "
        f"{parameters_digest(checkpoint.parameters)}"
    )
    lines += [
        f"    {name}  {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        for name, value in checkpoint.parameters.items()
    ]
    for key, value in origin.items():
        if isinstance(value, dict):
            lines.append(f"  {key}")
            lines += [f"    {name:<18} {each}" for name, each in value.items()]
        else:
            lines.append(f"  {key:<12} {value}")
    return "\n".join(lines)
