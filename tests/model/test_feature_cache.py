import json
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import fresh_process
from clip_hba_behavior.model.feature_cache import Bounds, FeatureCache
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError

NUM_ROWS, CHUNK = 10, 4


def rows(start: int, stop: int) -> torch.Tensor:
    """Row i holds i + 0, 1/16, ..., 5/16."""
    return torch.arange(start, stop)[:, None, None] + torch.arange(6.0).reshape(2, 3) / 16


def must_not_compute(start: int, stop: int) -> torch.Tensor:
    raise AssertionError("the cache is complete and must not be computed again")


def open_cache(
    root: Path, compute: Callable[[int, int], torch.Tensor], key: str = "weights", sources: bool = False
) -> FeatureCache:
    def with_sources(chunks: Sequence[Bounds]) -> Generator[tuple[torch.Tensor, list[str]], None, None]:
        for start, stop in chunks:
            yield compute(start, stop), [f"source {row}" for row in range(start, stop)] if sources else []

    return FeatureCache(root, {"key": key}, NUM_ROWS, (2, 3), CHUNK, with_sources, has_sources=sources)


def test_what_each_row_was_made_from_is_kept(tmp_path: Path) -> None:
    expected = [f"source {row}" for row in range(NUM_ROWS)]
    cache = open_cache(tmp_path, rows, sources=True)
    assert cache.sources == expected
    assert open_cache(tmp_path, must_not_compute, sources=True).sources == expected
    index = cache.folder / "index.json"
    index.write_text(index.read_text().replace("source 3", "source 4"))  # damaged: it is filled again
    assert open_cache(tmp_path, rows, sources=True).sources == expected


@pytest.mark.parametrize("kept", ["index.json", "filling.jsonl"])
def test_what_was_filled_without_sources_is_filled_again(kept: str, tmp_path: Path) -> None:
    folder = open_cache(tmp_path, rows).folder
    if kept == "filling.jsonl":  # the fill was killed before its end
        chunk_digests = json.loads((folder / "index.json").read_text())["chunk_digests"]
        lines = [json.dumps([chunk, made]) + "\n" for chunk, made in enumerate(chunk_digests)]
        (folder / kept).write_text("".join(lines[:2]))
        (folder / "index.json").unlink()
    expected = [f"source {row}" for row in range(NUM_ROWS)]
    assert open_cache(tmp_path, rows, sources=True).sources == expected


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    cache = open_cache(tmp_path, rows)
    wanted = torch.tensor([9, 0, 5, 5])
    assert torch.equal(cache.take(wanted), rows(0, NUM_ROWS)[wanted])


def test_a_whole_cache_is_read_not_computed(tmp_path: Path) -> None:
    open_cache(tmp_path, rows)
    cache = open_cache(tmp_path, must_not_compute)
    assert torch.equal(cache.take(torch.arange(NUM_ROWS)), rows(0, NUM_ROWS))


def test_another_key_is_another_cache(tmp_path: Path) -> None:
    first = open_cache(tmp_path, rows)
    second = open_cache(tmp_path, lambda start, stop: rows(start, stop) + 1, key="other weights")
    assert torch.equal(second.take(torch.tensor([0])), first.take(torch.tensor([0])) + 1)


@pytest.mark.parametrize(
    "damage", ["a flipped bit", "a lost index", "a torn index", "a short file", "a lost file"]
)
def test_a_damaged_cache_is_made_whole_again(damage: str, tmp_path: Path) -> None:
    folder = open_cache(tmp_path, rows).folder
    features, index = folder / "features.bin", folder / "index.json"
    if damage == "a flipped bit":
        content = bytearray(features.read_bytes())
        content[100] ^= 1
        features.write_bytes(content)
    elif damage == "a lost index":
        index.unlink()
    elif damage == "a torn index":
        index.write_bytes(index.read_bytes()[:-9])
    elif damage == "a short file":
        features.write_bytes(features.read_bytes()[:50])
    else:
        features.unlink()
    cache = open_cache(tmp_path, rows)
    assert torch.equal(cache.take(torch.arange(NUM_ROWS)), rows(0, NUM_ROWS))
    assert torch.equal(open_cache(tmp_path, must_not_compute).take(torch.arange(NUM_ROWS)), rows(0, NUM_ROWS))


def test_damage_that_cannot_be_repeated_is_said(tmp_path: Path) -> None:
    folder = open_cache(tmp_path, rows).folder
    np.memmap(folder / "features.bin", "<f4", "r+")[0] = 7
    cache = open_cache(tmp_path, lambda start, stop: rows(start, stop) * 2)
    with pytest.raises(NotReproducibleError, match="computed again it differs"):
        cache.take(torch.tensor([0]))
    cache.take(torch.tensor([9]))  # the other chunks are as they were


def test_a_fill_that_was_interrupted_goes_on_where_it_was(tmp_path: Path) -> None:
    computed: list[int] = []

    def breaks_off(start: int, stop: int) -> torch.Tensor:
        if start == 2 * CHUNK:
            raise KeyboardInterrupt
        computed.append(start)
        return rows(start, stop)

    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, breaks_off)
    assert computed == [0, CHUNK]
    journal = next(tmp_path.glob("*/filling.jsonl"))
    with journal.open("a") as file:
        file.write("[2, ")  # torn: the next fill must not append to it
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, breaks_off)

    def goes_on(start: int, stop: int) -> torch.Tensor:
        computed.append(start)
        return rows(start, stop)

    cache = open_cache(tmp_path, goes_on)
    assert computed == [0, CHUNK, 2 * CHUNK]
    assert torch.equal(cache.take(torch.arange(NUM_ROWS)), rows(0, NUM_ROWS))


def fill_slowly(root: str, log: str) -> None:
    def compute(start: int, stop: int) -> torch.Tensor:
        with Path(log).open("a") as file:
            file.write(f"{start}\n")
        time.sleep(0.2)
        return rows(start, stop)

    found = open_cache(Path(root), compute).take(torch.arange(NUM_ROWS))
    assert torch.equal(found, rows(0, NUM_ROWS))


def test_two_processes_that_start_at_once_compute_each_chunk_once(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    processes = [
        fresh_process.start(fill_slowly, str(tmp_path / "cache"), str(log), output=tmp_path / f"{name}.txt")
        for name in ("first", "second")
    ]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0, (tmp_path / "second.txt").read_text()
    assert sorted(log.read_text().split()) == ["0", "4", "8"]
