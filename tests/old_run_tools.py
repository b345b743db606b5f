"""Tools for the runs of an old commit in `tests/old_runs`: put them on this machine, say where bits must agree."""

import io
import json
import shutil
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.reproducibility.state.environment import library_versions, machine

OLD_RUNS = Path(__file__).parent / "old_runs"
EXPECTED: dict[str, Any] = json.loads((OLD_RUNS / "expected.json").read_text())
# what bits depend on besides the processor; the first four compute, the last one decodes the images
LIBRARIES = ("torch", "numpy", "scipy", "cuda", "pillow")


def restored(name: str, directory: Path, data: Path, cache: Path) -> Path:
    """Copy an old run, and the run that it forked, into a directory; their files name this machine's paths."""
    paths = {
        "{RUNS}": str(directory),
        "{DATA}": str(data),
        "{CACHE}": str(cache),
        "{PYTHON}": sys.executable,
    }
    for each in {name, "plain"}:  # the fork's parent
        shutil.copytree(OLD_RUNS / each, directory / each)
    for path in directory.rglob("*"):
        if path.is_file():
            put_back(path, paths)
    return directory / name


def put_back(path: Path, paths: dict[str, str]) -> None:
    """Write paths where a file has placeholders."""
    if path.suffix == ".pth":
        content = torch.load(path)
        filled = filled_in(content["provenance"], paths)
        if filled != content["provenance"]:
            buffer = io.BytesIO()
            torch.save(content | {"provenance": filled}, buffer)
            path.write_bytes(buffer.getvalue())
        return
    before = after = path.read_bytes()
    for placeholder, real in paths.items():
        after = after.replace(placeholder.encode(), real.encode())
    if after != before:
        path.write_bytes(after)


def filled_in(value: Any, paths: dict[str, str]) -> Any:
    """Replace the placeholders in every text of a nested value."""
    if isinstance(value, dict):
        return {key: filled_in(each, paths) for key, each in value.items()}
    if isinstance(value, list):
        return [filled_in(each, paths) for each in value]
    if isinstance(value, str):
        for placeholder, real in paths.items():
            value = value.replace(placeholder, real)
    return value


def why_bits_differ_here(name: str, data: Path) -> str | None:
    """Say what of an old run's environment is not this machine's; None where its bits must come out again."""
    recorded = json.loads((OLD_RUNS / name / "environment.json").read_text())
    found = []
    if recorded["trajectory"].get("arithmetic", "native") == "native":
        found = differing_machine(recorded)
    drawn = {path.name: sha256(path.read_bytes()).hexdigest()[:16] for path in (data / "images").iterdir()}
    if drawn != recorded["images"]:
        found.append("the synthetic images have other bytes; Pillow's version, or its zlib's, decides them")
    return "; ".join(found) or None


def differing_machine(recorded: dict[str, Any]) -> list[str]:
    """Name what of processor and libraries bits in native arithmetic depend on, and is another."""
    here = {"device_model": machine(torch.device("cpu"))["device_model"], **library_versions()}
    # the old code recorded CUDA's version only where there was one
    there = {"device_model": recorded["machine"]["device_model"], "cuda": "none", **recorded["versions"]}
    return [
        f"{key} was {there.get(key)}, is {here.get(key)}"
        for key in ("device_model", *LIBRARIES)
        if there.get(key) != here.get(key)
    ]
