"""Damaged files of a finished sweep: the run and the file are named, and the others stay in the table."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fresh_process
from fresh_process import Outcome
from sweep_tools import table, write_sweep

ClipHba = Callable[..., Outcome]
SHORT, LONG = "e002_random_target_l1_s0", "e002_random_target_l2_s0"
NEWEST = "dora_params/epoch4_dora_params.pth"


@pytest.fixture(scope="module")
def finished(baseline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    sweep = write_sweep(directory, baseline, epochs=[2], kinds=["random_target"])
    outcome = fresh_process.call(
        fresh_process.clip_hba, ["sweep", "run", str(sweep)], output=directory / "output.txt"
    )
    assert outcome.code == 0, outcome.output
    return sweep


@pytest.fixture
def damage() -> Iterator[Callable[[Path, int | None], None]]:
    """Cut a file, or take it away; it is put back in the end."""
    before: dict[Path, bytes] = {}

    def cut(path: Path, size: int | None) -> None:
        before[path] = path.read_bytes()
        path.unlink()
        if size is not None:
            path.write_bytes(before[path][:size])

    yield cut
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "file", "size", "left"),
    [
        (LONG, "training_res.csv", None, {"e002_none", SHORT}),
        (LONG, "training_res.csv", 200, {"e002_none", SHORT}),
        (LONG, "training_res.csv", 0, {"e002_none", SHORT}),
        (LONG, "steps.jsonl", None, {"e002_none", SHORT}),
        (LONG, "steps.jsonl", 5000, {"e002_none", SHORT}),
        (LONG, "config.yaml", 300, {"e002_none", SHORT}),
        (LONG, "environment.json", 300, {"e002_none", SHORT}),
        (LONG, NEWEST, 1000, {"e002_none", SHORT}),
        (SHORT, NEWEST, 1000, {"e002_none", LONG}),  # the longer one began with another of its states
        (SHORT, "training_res.csv", None, {"e002_none"}),  # it has the longer one's first epoch
        (SHORT, "dora_params/epoch2_dora_params.pth", 1000, {"e002_none", SHORT}),
    ],
)
def test_a_damaged_file_of_a_run_is_named_and_the_others_stay_in_the_table(
    name: str,
    file: str,
    size: int | None,
    left: set[str],
    finished: Path,
    clip_hba: ClipHba,
    damage: Callable[[Path, int | None], None],
) -> None:
    directory = finished.with_suffix("")
    damage(directory / "runs" / name / file, size)
    outcome = clip_hba("sweep", "table", finished)
    assert outcome.code == 1, outcome.output
    assert f"{name if name not in left else LONG} is not in the table" in outcome.output
    assert str(directory / "runs" / name / file) in outcome.output
    assert {row["run"] for row in table(directory)} == left


@pytest.mark.parametrize("size", [None, 200])
def test_a_damaged_baseline_is_named_and_the_table_stays_as_it_was(
    size: int | None, own_baseline: Path, clip_hba: ClipHba, tmp_path: Path
) -> None:
    sweep = write_sweep(tmp_path, own_baseline, epochs=[3], kinds=["uniform_images"], lengths=[1])
    assert clip_hba("sweep", "run", sweep).code == 0
    before = table(tmp_path / "sweep")
    file = own_baseline / "training_res.csv"
    content = file.read_bytes()
    file.unlink()
    if size is not None:
        file.write_bytes(content[:size])
    outcome = clip_hba("sweep", "table", sweep)
    assert outcome.code == 1, outcome.output
    assert str(file) in outcome.output
    assert table(tmp_path / "sweep") == before
    assert f"`clip-hba resume {own_baseline}` writes" in outcome.output
    outcome = clip_hba("resume", own_baseline)
    assert outcome.code == 0, outcome.output
    assert file.read_bytes() == content
    outcome = clip_hba("sweep", "table", sweep)
    assert outcome.code == 0, outcome.output
    assert table(tmp_path / "sweep") == before
