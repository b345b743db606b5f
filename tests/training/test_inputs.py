"""The first fill of the feature cache: the same bytes for any number of reading processes, which end with it."""

import logging
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.things import DataError
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import InterruptedRunError
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.resolution import resolve_config

NUM_IMAGES, CHUNK = 108, 16  # in native arithmetic 7 chunks, in portable 4


def fill(
    keys: dict[str, Any], cache: Path, num_workers: int, session: Session | None = None, **changes: Any
) -> None:
    keys = keys | {"chunk_size": CHUNK, "num_workers": num_workers, "cache_dir": str(cache)} | changes
    build_trainer(resolve_config(make_config(keys)), session or Session(logging.getLogger("test")))


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


@pytest.mark.system
@pytest.mark.parametrize("arithmetic", ["native", "portable"])
def test_the_cache_has_the_same_bytes_for_any_number_of_reading_processes(
    small_config: dict[str, Any], tmp_path: Path, arithmetic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = []
    for num_workers in (0, 1, 2):
        cache = tmp_path / str(num_workers)
        fill(small_config, cache, num_workers, arithmetic=arithmetic)
        found.append(contents(cache))
        assert multiprocessing.active_children() == []
    assert len(found[0]) > 4
    assert found[0] == found[1] == found[2]
    lines = [record.getMessage() for record in caplog.records]
    rate = (
        rf"Computed the features of {NUM_IMAGES} images in \S+ s, \S+ per second; \d+ % of it waiting for images"
    )
    assert len([line for line in lines if re.fullmatch(rate, line)]) == 3
    fill(small_config, tmp_path / "0", 1, arithmetic=arithmetic)
    assert len(caplog.records) == 3, "a complete cache is only read"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_fill_that_is_interrupted_leaves_no_process_and_goes_on_where_it_was(
    small_config: dict[str, Any], tmp_path: Path, num_workers: int
) -> None:
    seen: list[int] = []

    def stop_at_the_fourth_chunk(what: str, done: int, total: int) -> None:
        if what == "computing features of images":
            seen.append(done)
            if len(seen) == 4:
                raise InterruptedRunError("stopped")

    session = Session(logging.getLogger("test"), stop_at_the_fourth_chunk)
    with pytest.raises(InterruptedRunError):
        fill(small_config, tmp_path / "cache", num_workers, session)
    assert multiprocessing.active_children() == []
    (journal,) = (tmp_path / "cache").rglob("filling.jsonl")
    assert len(journal.read_text().splitlines()) == 3, "what was computed is written down"
    fill(small_config, tmp_path / "cache", num_workers)
    fill(small_config, tmp_path / "at once", 0)
    assert contents(tmp_path / "cache") == contents(tmp_path / "at once")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read_ends_the_fill_with_its_own_message(
    small_config: dict[str, Any], tmp_path: Path, num_workers: int
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in Path(str(small_config["img_dir"])).iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    *_, last = sorted(images.iterdir())
    last.write_bytes(last.read_bytes()[:200])
    with pytest.raises(DataError, match=rf"{last.name}: the image cannot be read"):
        fill(small_config, tmp_path / "cache", num_workers, img_dir=str(images))
    assert multiprocessing.active_children() == []
