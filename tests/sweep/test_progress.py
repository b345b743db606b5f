"""The progress of a sweep: runs done, under way and left, and the time left."""

import re
from pathlib import Path

import pytest

import fresh_process
from clip_hba_behavior.reproducibility.record.lease import hold
from clip_hba_behavior.run import log
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.sweep import progress
from clip_hba_behavior.sweep.plan import make_sweep_file
from clip_hba_behavior.sweep.progress import SweepProgress
from clip_hba_behavior.sweep.sweep import make_sweep
from sweep_tools import write_sweep


def test_runs_are_done_under_way_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = RunDirectory(tmp_path / "baseline")
    baseline.checkpoints.mkdir(parents=True)
    baseline.config_file.write_text("epochs: 4\nnum_threads: 1\n")
    for epoch in range(5):
        checkpoint_path(baseline.checkpoints, epoch).touch()
    given = {"baseline": str(baseline.path), "directory": str(tmp_path / "sweep"), "kinds": []}
    sweep = make_sweep(make_sweep_file(given | {"epochs": [1, 2, 3, 4]}))
    (plan,) = sweep.plans
    told: list[tuple[str, int, int]] = []
    watched = SweepProgress(sweep, lambda *each: told.append(each))
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LOOKS", 0.0)
    for name, newest in (("e001_none", 4), ("e002_none", 3), ("e003_none", 2)):
        run = RunDirectory(plan.path(name))
        run.checkpoints.mkdir(parents=True)
        checkpoint_path(run.checkpoints, newest).touch()
    with hold(plan.path("e002_none")):
        watched.look()
    watched.end("e003_none")  # it stopped early, or failed
    watched.look()
    assert told == [
        ("epochs (runs: 1 done, 1 under way, 2 left)", 6, 10),
        ("epochs (runs: 2 done, 0 under way, 2 left)", 8, 10),
    ]


def sweep_with_many_lines(arguments: list[str]) -> None:
    """Run a `clip-hba` command line as this process, with a line of progress for every look."""
    log.SECONDS_BETWEEN_LINES = 0.0
    progress.SECONDS_BETWEEN_LOOKS = 0.0
    fresh_process.clip_hba(arguments)


@pytest.fixture
def lines(baseline: Path, tmp_path: Path) -> list[str]:
    sweep = write_sweep(tmp_path, baseline, epochs=[3, 4], kinds=["label_shuffle"], lengths=[1], controls=False)
    outcome = fresh_process.call(sweep_with_many_lines, ["sweep", "run", str(sweep)], output=tmp_path / "out.txt")
    assert outcome.code == 0, outcome.output
    return outcome.output.splitlines()


def test_in_a_pipe_a_line_now_and_then_tells_how_far_a_sweep_is(lines: list[str]) -> None:
    told = [line for line in lines if line.startswith("epochs (runs: ")]
    for line in told:
        assert re.fullmatch(
            r"epochs \(runs: \d done, \d under way, \d left\): \d of 3 \(\d+ %\), \d+ s left", line
        )
    assert "epochs (runs: 2 done, 0 under way, 0 left): 3 of 3 (100 %), 0 s left" in told
    assert "[2/2] " in "\n".join(lines)


def test_a_bar_keeps_its_place_while_its_counts_change(monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[str] = []

    class Progress:
        def __init__(self, *columns: object, transient: bool) -> None:
            self.descriptions: dict[int, str] = {}

        def __enter__(self) -> "Progress":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def add_task(self, description: str, total: int, completed: int) -> int:
            added.append(description)
            return len(added)

        def update(self, task: int, description: str, completed: int, total: int) -> None:
            self.descriptions[task] = description

        def remove_task(self, task: int) -> None:
            assert self.descriptions == {1: "epochs (runs: 2 done)"}

    monkeypatch.setattr("rich.progress.Progress", Progress)
    with log._drawing() as draw:
        for number in (0, 1, 2):
            draw(f"epochs (runs: {number} done)", number, 2)
    assert added == ["epochs (runs: 0 done)"]
