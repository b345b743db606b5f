"""What a tracked run is made from: settings, data, kinds of parts, versions, processor; and what of it changed."""

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.reproducibility.record.parts import Part
from clip_hba_behavior.reproducibility.state.environment import (
    NAMES,
    Changes,
    device_model,
    environment_changes,
    library_versions,
    refuse_changes,
    variables,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import describe_numerics
from clip_hba_behavior.reproducibility.state.tree import copy_tree


def devices_of(parts: Mapping[str, Part]) -> tuple[torch.device, ...]:
    """Return where the parts compute: the CUDA devices that their tensors are on, else the CPU."""
    found = set()
    for part in parts.values():
        pending = [part.state_dict()] if isinstance(part, Part) else []
        while pending:
            value = pending.pop()
            if isinstance(value, torch.Tensor) and value.is_cuda:
                found.add(value.device)
            elif isinstance(value, Mapping):
                pending.extend(value.values())
            elif isinstance(value, list | tuple):
                pending.extend(value)
    return tuple(sorted(found, key=lambda each: each.index or 0)) or (torch.device("cpu"),)


def describe_run(
    parts: Mapping[str, Part], settings: Mapping[str, Any] | None, data: str | None, device: torch.device
) -> dict[str, Any]:
    """Describe what a run is made from: settings, data, versions, processor, what else changes bits."""
    if not isinstance(settings, Mapping | None):
        raise BadInputError(f"settings is a {type(settings).__name__}; expected values by name")
    copied = copy_tree(dict(settings or {}), "settings")
    if data is not None and not isinstance(data, str):
        raise BadInputError(f"data is a {type(data).__name__}; expected a text, such as digest(x, y) gives")
    return {
        "settings": _as_json(copied),
        "digests": {} if data is None else {"data": data},
        "versions": library_versions(),
        "variables": variables(),
        "device": device.type,
        "device_model": device_model(device),
        "numerics": describe_numerics(),
        "parts": {name: f"{type(part).__module__}.{type(part).__qualname__}" for name, part in parts.items()},
    }


def machine_changes(record: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    """Return what of versions, processor and numeric settings is not as it was: with it, no bits are claimed."""
    then, now = record["numerics"], found["numerics"]
    others = {name: (then[name], now[name]) for name in now if name in then and then[name] != now[name]}
    return environment_changes(record, found) | others


def made_from_changes(record: Mapping[str, Any], found: Mapping[str, Any]) -> Changes:
    """Return what of settings, data and kinds of parts is not as it was: with it, it is another run."""
    changes: Changes = {}
    for kind in ("settings", "digests"):
        then, now = record[kind] or {}, found[kind]
        if record[kind] is not None:
            names = {**then, **now}
            changes |= {name: (then.get(name), now.get(name)) for name in names if _differ(then, now, name)}
    for name, now in found["parts"].items():
        then = record["parts"].get(name)
        # a class is of `__main__` in a script, and of the script's module where that is imported
        if then is not None and str(then).rpartition(".")[2] != now.rpartition(".")[2]:
            changes[f"parts.{name}"] = (then, now)
    return changes


def _differ(then: Mapping[str, Any], now: Mapping[str, Any], name: str) -> bool:
    """Whether a value is another: one that is no number is itself."""
    return bool(then.get(name) != now.get(name) and json.dumps(then.get(name)) != json.dumps(now.get(name)))


def changes_from(
    record: Mapping[str, Any], found: Mapping[str, Any], path: Path, allow: Collection[str]
) -> list[str]:
    """Return what is not as it was recorded and is allowed; raises as `refuse_changes` does for the rest."""
    changes = machine_changes(record, found) | made_from_changes(record, found)
    settings = [*found["settings"], *(record["settings"] or {})]
    known = [*settings, "data", *(f"parts.{name}" for name in found["parts"]), *found["numerics"], *NAMES]

    def flag(names: Iterable[str]) -> str:
        return f"track(..., allow={list(names)!r})"

    return refuse_changes(path, changes, allow, dict.fromkeys(known), ("data",), flag)


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as a JSON file gives them back: a tuple is a list."""
    try:
        content: dict[str, Any] = json.loads(json.dumps(settings))
    except (TypeError, ValueError) as error:
        raise BadInputError(f"settings cannot be written as JSON: {error}") from error
    return content
