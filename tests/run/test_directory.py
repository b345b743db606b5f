"""A run's directory: what is removed of it, and what is not."""

import shutil
from pathlib import Path

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
