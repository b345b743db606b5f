"""How tasks of SLURM ended that left runs undone: as its accounts have it, or that it keeps none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.sweep.cluster import accounts_of
from fresh_process import Outcome
from sweep_tools import write_sweep

ClipHba = Callable[..., Outcome]
# what SLURM 22.05 printed of an array whose tasks ended, failed, were killed, and were cancelled
SACCT = """\
7_0|COMPLETED|0:0|00:00:01||500M
7_0.batch|COMPLETED|0:0|00:00:01||
7_1|FAILED|1:0|00:00:14||500M
7_1.batch|FAILED|1:0|00:00:14|323748K|
7_2|FAILED|0:9|00:00:01||500M
7_2.batch|CANCELLED|0:9|00:00:01||
7_3|CANCELLED by 0|0:0|00:00:13||500M
7_3.batch|CANCELLED|0:15|00:00:13|4592K|
"""


@pytest.fixture
def sacct(requeued: Path) -> Callable[[str], None]:
    """Put the script of an `sacct` beside the other commands of SLURM."""

    def write(script: str) -> None:
        path = requeued.parent / "commands/sacct"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return write


def test_each_task_has_its_state_end_time_and_memory(sacct: Callable[[str], None]) -> None:
    sacct(f"cat <<'END'\n{SACCT}END")
    found = accounts_of(["7_0", "7_1", "7_2", "7_3", "7_4"])
    assert {task: account.describe() for task, account in found.items()} == {
        "7_0": "COMPLETED, exit code 0, after 00:00:01, memory not measured",
        "7_1": "FAILED, exit code 1, after 00:00:14, used 323748K of 500M",
        "7_2": "FAILED, signal 9, after 00:00:01, memory not measured",
        "7_3": "CANCELLED by 0, exit code 0, after 00:00:13, used 4592K of 500M",
    }


def test_what_keeps_no_accounts_is_refused_with_its_words(
    sacct: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sacct('echo "Slurm accounting storage is disabled" >&2; exit 1')
    with pytest.raises(BadInputError, match="was refused by SLURM: Slurm accounting storage is disabled"):
        accounts_of(["7_0"])
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BadInputError, match="sacct is not here"):
        accounts_of(["7_0"])


def test_status_tells_how_tasks_ended_that_left_runs_undone(
    baseline: Path, clip_hba: ClipHba, sacct: Callable[[str], None], tmp_path: Path
) -> None:
    keys = {"lengths": [1], "slurm": {"chains_per_task": 3}}
    sweep = write_sweep(tmp_path, baseline, **keys)
    asked = tmp_path / "asked.txt"
    sacct(f"echo \"$@\" > {asked}; cat <<'END'\n{SACCT}END")
    outcome = clip_hba("sweep", "status", sweep)
    assert "left runs undone" not in outcome.output  # none was submitted
    assert not asked.exists()
    outcome = clip_hba("sweep", "run", sweep, "--engine", "slurm")
    assert "job 7: 2 tasks, 6 chains, 6 runs; logs in " in outcome.output, outcome.output
    assert "a task takes 3 chains: slurm.chains_per_task" in outcome.output
    folder = tmp_path / "sweep/slurm/1"
    assert clip_hba("sweep", "task", folder, "--index", 0).code == 0
    outcome = clip_hba("sweep", "status", sweep)
    assert outcome.code == 1
    log = folder / "task_1.log"
    expected = (
        f"job 7_1 left runs undone: FAILED, exit code 1, after 00:00:14, used 323748K of 500M\n  its log: {log}\n"
    )
    assert expected in outcome.output
    assert "--jobs=7\n" in asked.read_text()  # the first task did all that it had
    assert "3 done, 3 missing" in outcome.output

    sacct('echo "Slurm accounting storage is disabled" >&2; exit 1')
    outcome = clip_hba("sweep", "status", sweep)
    assert "there is no accounting here (sacct was refused by SLURM: " in outcome.output
    assert "Slurm accounting storage is disabled" in outcome.output
    assert f"why jobs left runs undone, only their logs tell:\n  {log}\n" in outcome.output
