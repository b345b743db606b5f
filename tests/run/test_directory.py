"""A run's directory: what is removed of it, and what is not."""

import json
import shutil
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory

OLD_RUN = Path(__file__).parents[1] / "old_runs" / "plain"


def test_an_export_to_the_run_that_was_killed_does_not_keep_the_run_from_being_held(tmp_path: Path) -> None:
    run = RunDirectory(shutil.copytree(OLD_RUN, tmp_path / "run"))
    export = run.path / ".adapter.x.tmp"
    export.mkdir()
    (export / "README.md").touch()
    (run.path / ".config.yaml.x.tmp").touch()
    with run.held():
        assert list(run.path.glob(".*.tmp")) == [export]


def test_damaged_values_within_records_are_wrong_input(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "best.json").write_text('{"epoch": 1e400, "test_loss": 1}')
    with pytest.raises(BadInputError, match=r"best\.json cannot be read"):
        run.read_best()
    kinds: dict[str, object] = {
        key: {} for key in ("versions", "machine", "trajectory", "digests", "images", "targets")
    }
    content = kinds | {"drift": [5], "parent": None, "continued_from": None, "device": "cpu"}
    (tmp_path / "environment.json").write_text(json.dumps(content))
    with pytest.raises(BadInputError, match="drift holds 5"):
        run.read_environment()
