"""CLIP in the Hugging Face format: a directory, or a repository on the hub, of `config.json` and weight files."""

import json
import pickle
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from clip_hba_behavior.model.architecture import ClipConfig, weight_shapes
from clip_hba_behavior.model.clip import Clip, make_clip
from clip_hba_behavior.model.hub import PretrainedFiles
from clip_hba_behavior.reproducibility.state import safe_load
from clip_hba_behavior.reproducibility.state.archive import LOADING_ERRORS, reason
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_regular

_SAFETENSORS, _PICKLED = "model.safetensors", "pytorch_model.bin"
_MAX_JSON_BYTES = 16 * MIB
_MAX_WEIGHT_BYTES = 32 * 1024 * MIB  # ViT-bigG has 10 GB in float32
# What torch.save wrote before version 1.6, and writes on request, begins with.
_OLD_FORM = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


class _NotReadError(Exception):
    """A weight file cannot be read."""


def load_hugging_face(name: str) -> Clip:
    """Load a CLIP from a directory, or by its name on the hub or in the hub's cache.

    Raises:
        BadInputError: it is not there, is no CLIP, or lacks weights.
    """
    files = PretrainedFiles(name)
    config = _read_config(files)
    try:
        paths = _weight_files(files, weight_shapes(config).keys())
        return make_clip(config, _read(paths, weight_shapes(config).keys()), f"backbone {name}")
    except (OSError, _NotReadError) as error:
        raise _not_loaded(name, error) from error


def _read_config(files: PretrainedFiles) -> ClipConfig:
    name = files.name
    try:
        path = files.find("config.json")
    except OSError as error:
        raise _not_loaded(name, error) from error
    if path is None and not Path(name).is_dir():
        absent = FileNotFoundError("no config.json was found; with HF_HUB_OFFLINE=1 the hub's cache alone is read")
        raise _not_loaded(name, absent)
    if path is None:
        raise BadInputError(f"backbone {name} has no readable config.json: there is none")
    try:
        content = _read_json(path)
    except (OSError, ValueError) as error:
        raise BadInputError(f"backbone {name} has no readable config.json: {error}") from error
    if content.get("model_type") != "clip":
        raise BadInputError(
            f"backbone {name} is no CLIP\n  found:    model_type {content.get('model_type')!r} in config.json\n"
            "  expected: model_type 'clip'\n  name a CLIP model in Hugging Face format"
        )
    try:
        return ClipConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(each) for each in first["loc"]) or "the architecture"
        raise BadInputError(
            f"backbone {name} is no CLIP that can be computed here: {key} in config.json\n"
            f"  found:    {first['input']!r:.200}\n  expected: {first['msg']}"
        ) from error


def _weight_files(files: PretrainedFiles, wanted: Collection[str]) -> list[Path]:
    """Return the files that hold the weights that are wanted: one, or those that an index names."""
    for name in (_SAFETENSORS, _PICKLED):
        path = files.find(name)
        if path is not None:
            return [path]
        index = files.find(f"{name}.index.json")
        if index is not None:
            parts = [(part, files.find(part)) for part in _parts(index, wanted)]
            if absent := [part for part, found in parts if found is None]:
                raise _NotReadError(f"{index} names {absent[0]}, which is not there")
            return [found for _, found in parts if found is not None]
    raise _NotReadError(f"it has no {_SAFETENSORS} and no {_PICKLED}, nor an index of their parts")


def _read(paths: Iterable[Path], wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights that are wanted of some files."""
    for path in paths:
        try:
            yield from _read_safetensors(path, wanted) if path.suffix == ".safetensors" else _read_pickled(path)
        except (OSError, BadInputError) as error:
            raise _NotReadError(str(error)) from error


def _parts(index: Path, wanted: Collection[str]) -> list[str]:
    """Return the names of the files that hold the weights that are wanted."""
    try:
        files = _read_json(index).get("weight_map")
    except ValueError as error:
        raise _NotReadError(f"{index} is damaged: {error}") from error
    if not isinstance(files, dict):
        raise _NotReadError(f"{index} has no weight_map")
    parts = sorted({str(file) for weight, file in files.items() if _own_name(weight) in wanted})
    for part in parts:
        if Path(part).name != part:
            raise _NotReadError(f"{index} names a file that is not beside it: {part!r}")
    return parts


def _read_safetensors(path: Path, wanted: Collection[str]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import SafetensorError, safe_open

    open_regular(path, _MAX_WEIGHT_BYTES).close()
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if _own_name(name) in wanted]  # noqa: SIM118
        for name in names:
            with safe_open(
                path, framework="pt"
            ) as file:  # again for each: what is mapped of it would stay in memory
                weight = file.get_tensor(name)
            yield _own_name(name), weight
    except SafetensorError as error:
        raise _NotReadError(f"{path} is damaged: {error}") from error


def _read_pickled(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    with open_regular(path, _MAX_WEIGHT_BYTES) as file:
        is_old = file.read(len(_OLD_FORM)) == _OLD_FORM
    content = _read_old_form(path) if is_old else safe_load.load(path, "CLIP weight file", _MAX_WEIGHT_BYTES)
    while content:
        name = next(iter(content))
        value = content.pop(name)
        if isinstance(value, torch.Tensor):
            yield _own_name(name), value


def _read_old_form(path: Path) -> dict[str, Any]:
    """Read a pickle that is no archive, in torch's own safe mode."""
    try:
        with open_regular(path, _MAX_WEIGHT_BYTES) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except LOADING_ERRORS as error:
        raise _NotReadError(f"{path} is no CLIP weight file: {reason(error)}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise _NotReadError(f"{path} is no CLIP weight file: it holds no dict by name")
    return content


def _own_name(name: str) -> str:
    """Return a weight's name in CLIP itself: a model that CLIP is a part of saves it under `clip.`."""
    return str(name).removeprefix("clip.")


def _read_json(path: Path) -> dict[str, Any]:
    with open_regular(path, _MAX_JSON_BYTES) as file:
        content = json.loads(file.read())
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content


def _not_loaded(name: str, error: Exception) -> BadInputError:
    reason = str(error).strip().splitlines()
    where = "" if Path(name).is_dir() else f"\n  there is no directory {name} here, so the hub was asked for it"
    return BadInputError(
        f"backbone {name} could not be loaded: {reason[0] if reason else type(error).__name__}{where}\n"
        "  name a directory in Hugging Face format, a model on the hub, or OpenAI's .pt file"
    )
