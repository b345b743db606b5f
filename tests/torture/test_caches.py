"""A feature cache that is damaged or missing is made again with the same bytes."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fresh_process
from fresh_process import Outcome
from run_tools import write_config
from torture.faults import Fault
from torture.runs import begin, must_end_as, start_or_resume

pytestmark = pytest.mark.system

ClipHba = Callable[..., Outcome]


def lose_the_cache(cache: Path) -> None:
    shutil.rmtree(cache)


def change(name: str, change_content: Callable[[bytes], bytes], cache: Path) -> None:
    for path in cache.rglob(name):
        path.write_bytes(change_content(path.read_bytes()))


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE: dict[str, Callable[[Path], None]] = {
    "lost": lose_the_cache,
    "rows cut off": functools.partial(change, "features.bin", lambda content: content[: len(content) // 3]),
    "rows emptied": functools.partial(change, "features.bin", lambda content: b""),
    "a bit of the rows": functools.partial(change, "features.bin", flipped),
    "index cut off": functools.partial(change, "index.json", lambda content: content[:-20]),
    "a bit of the index": functools.partial(change, "index.json", flipped),
}


def contents(cache: Path) -> dict[Path, bytes]:
    return {path.relative_to(cache): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_feature_cache_that_is_damaged_or_lost_is_made_whole_with_the_same_bytes(
    what: str, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    outcome = begin(keys | {"cache_dir": str(cache)}, run, tmp_path, fault=Fault(3, "link", "checkpoint"))
    assert outcome.code == -9, outcome.output
    before = contents(cache)
    DAMAGE[what](cache)
    assert contents(cache) != before
    must_end_as(uninterrupted, clip_hba("resume", run), run)
    assert contents(cache) == before


JOURNAL_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "garbage": lambda content: b"\xff\n" + content,
    "a flipped bit": flipped,
    "zeros": lambda content: content[:-30] + bytes(29) + b"\n",
}


@pytest.mark.parametrize("damage", JOURNAL_DAMAGE)
def test_a_damaged_journal_of_an_interrupted_filling_is_not_believed(
    damage: str, clip_hba: ClipHba, keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    cache, run = tmp_path / "cache", tmp_path / "run"
    with_cache = keys | {"cache_dir": str(cache), "chunk_size": 16}
    fault = Fault(5, "msync", "feature cache")  # the last chunk of the images
    outcome = begin(with_cache, run, tmp_path, fault=fault)
    assert outcome.code == -9, outcome.output
    change("filling.jsonl", JOURNAL_DAMAGE[damage], cache)
    outcome = start_or_resume(clip_hba, run, tmp_path)
    undamaged = begin(with_cache | {"cache_dir": str(tmp_path / "another")}, tmp_path / "undamaged", tmp_path)
    assert undamaged.code == 0, undamaged.output
    must_end_as(tmp_path / "undamaged", outcome, run)
    assert contents(cache) == contents(tmp_path / "another")


def test_two_processes_that_fill_one_feature_cache_at_once_both_run(
    keys: dict[str, Any], uninterrupted: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys, cache_dir=str(tmp_path / "cache"))
    processes = {
        run: fresh_process.start(
            fresh_process.clip_hba,
            ["train", str(config), "--run-dir", str(run)],
            output=run.with_suffix(".txt"),
        )
        for run in (tmp_path / "first", tmp_path / "second")
    }
    for run, process in processes.items():
        process.join(120)
        must_end_as(uninterrupted, Outcome(process.exitcode, run.with_suffix(".txt").read_text()), run)
