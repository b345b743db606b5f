"""Runs that meet a fault, and how they must end."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fresh_process
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from fresh_process import Outcome
from run_tools import differences, write_config
from torture.faults import watched_clip_hba

ClipHba = Callable[..., Outcome]


def begin(keys: dict[str, Any], run: Path, tmp_path: Path, **watching: Any) -> Outcome:
    """Train, watched, with a fault."""
    config = write_config(tmp_path / "config.yaml", keys)
    return watched(["train", str(config), "--run-dir", str(run)], tmp_path, **watching)


def watched(arguments: list[str], tmp_path: Path, timeout: float = 240, **watching: Any) -> Outcome:
    work = functools.partial(watched_clip_hba, **watching)
    output = tmp_path / "watched.txt"
    return fresh_process.call(work, arguments, str(tmp_path / "trace"), output=output, timeout=timeout)


def start_or_resume(clip_hba: ClipHba, run: Path, tmp_path: Path) -> Outcome:
    """Start again if the run never began, else resume."""
    if list_checkpoints(run / "dora_params"):
        return clip_hba("resume", run)
    return clip_hba("train", tmp_path / "config.yaml", "--run-dir", run)


def must_end_as(uninterrupted: Path, outcome: Outcome, run: Path) -> None:
    assert outcome.code == 0, outcome.output
    assert differences(uninterrupted, run) == []
    left = [
        path.name for path in run.rglob("*") if path.suffix in (".tmp", ".pending") or path.name == "quarantine"
    ]
    assert left == []
    for path in (uninterrupted / "dora_params").iterdir():
        assert (run / "dora_params" / path.name).read_bytes() == path.read_bytes()
