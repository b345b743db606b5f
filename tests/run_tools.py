"""Tools of the tests: configurations as files, and two runs compared byte for byte."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from clip_hba_behavior.reproducibility.state.compare import compare
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes, to_content
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.training.state import TrainingState
from fresh_process import Outcome


def write_config(path: Path, keys: dict[str, Any], **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(keys | changes))
    return path


def trained(
    clip_hba: Callable[..., Outcome], tmp_path: Path, keys: dict[str, Any], name: str = "run", **changes: Any
) -> Path:
    """Train a run in a fresh process and return its directory."""
    config = write_config(tmp_path / f"{name}.yaml", keys, **changes)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / name)
    assert outcome.code == 0, outcome.output
    return tmp_path / name


_FINISHED: dict[str, Path] = {}


def finished(
    clip_hba: Callable[..., Outcome], tmp_path: Path, keys: dict[str, Any], name: str = "run", **changes: Any
) -> Path:
    """Return a run for one test, as `trained` does: trained once per configuration and session, then copied."""
    wanted = json.dumps(keys | changes, sort_keys=True)
    if wanted not in _FINISHED:
        place = tmp_path.parent / f"trained-once{len(_FINISHED)}"
        place.mkdir()
        _FINISHED[wanted] = trained(clip_hba, place, keys, **changes)
    run = Path(shutil.copytree(_FINISHED[wanted], tmp_path / name))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(_FINISHED[wanted]), str(run)))
    write_config(tmp_path / f"{name}.yaml", keys, **changes)
    return run


def recorded_run_keys(reference: Path, things: Path) -> dict[str, Any]:
    """The configuration of the run that the earlier pipeline recorded."""
    data = reference / "dataset"
    return {
        "csv_file": str(data / "train160.csv"),
        "img_dir": str(data / "images"),
        "inference_csv_file": str(data / "val48.csv"),
        "RDM48_triplet_dir": str(data / "RDM48_triplet.mat"),
        "prompts_file": str(things / "prompts66.txt"),
        "backbone": str(reference / "backbone"),
        "random_seed": 1,
        "batch_size": 16,
        "num_threads": 1,
    }


def offered(output: str, label: str) -> list[str]:
    """The words of the command that a line of the output offers."""
    (line,) = [each.strip() for each in output.splitlines() if each.strip().startswith(label)]
    return shlex.split(line.removeprefix(label))[1:]


def differences(first: Path, second: Path) -> list[str]:
    """Name everything in which two runs are not the same: states leaf by leaf, and files byte by byte."""
    found = []
    left, right = (list_checkpoints(run / "dora_params") for run in (first, second))
    if left.keys() != right.keys():
        found.append(f"epochs {sorted(left)} != {sorted(right)}")
    for epoch in left.keys() & right.keys():
        states = [read_checkpoint(each[epoch]).whole_state() for each in (left, right)]
        comparison = compare(*(state.as_dict() for state in states))
        found += [f"epoch {epoch}: {each.name}: {each.what}" for each in comparison.differences]
    for name in ("training_res.csv", "steps.jsonl", "best.json"):
        if (first / name).read_bytes() != (second / name).read_bytes():
            found.append(f"{name} differs")
    return found


def rewrite_state(path: Path, state: TrainingState) -> None:
    """Forge a checkpoint: another state under a digest that fits."""
    provenance = read_checkpoint(path).provenance
    path.unlink()
    path.write_bytes(to_bytes(to_content(state, provenance)))
