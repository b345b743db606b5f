"""Frozen features on disk: computed once, in fixed chunks, shared by every run on the machine.

A folder holds one cache: `features.bin`, the rows; `index.json`, the digest of every chunk, published
when all are there; `filling.jsonl`, the digests so far, while they are not. The folder is named by the
digest of everything that the features depend on, so a change of any of it is another cache.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.model.cache_names import INDEX_NAME, KEY_NAME, LOCK_NAME, ROWS_NAME
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.system import allocate, lock_file, sync_file, unlock_file

Progress = Callable[[int, int], None]
Bounds = tuple[int, int]  # first row of a chunk, and the first behind it
Compute = Callable[[Sequence[Bounds]], Generator[tuple[torch.Tensor, list[str]], None, None]]
Rows: TypeAlias = NDArray[np.float32]


class Filling(NamedTuple):
    """What this process had to compute of a cache: rows, and the seconds that it took."""

    num_rows: int
    seconds: float


class FeatureCache:
    """Rows of float32 features in a memory-mapped file, each chunk verified before its first use.

    Attributes:
        filling: what had to be computed when it was opened; None where it was complete.
        sources: what each row was computed from; none where the key says it all.
    """

    def __init__(
        self,
        root: Path,
        key: Mapping[str, Any],
        num_rows: int,
        row_shape: tuple[int, ...],
        chunk_size: int,
        compute: Compute,
        progress: Progress = lambda done, total: None,
        has_sources: bool = False,
    ) -> None:
        """Open a cache and fill what is missing.

        If another process is filling it, wait for that process, then read.

        Args:
            root: the directory of all caches.
            key: everything that the rows depend on, as JSON values.
            num_rows: how many rows.
            row_shape: shape of one row.
            chunk_size: rows computed together; it changes bits, so it must stand in the key.
            compute: given the bounds of chunks, yields for each the rows `[stop - start, *row_shape] float32`, and
                a digest of what each row was computed from; or no digests, where the key says it all.
            progress: called with the rows done and in all while the cache is filled.
            has_sources: whether there are such digests; what was filled without them is then filled again.
        """
        self.num_rows = num_rows
        self.row_shape = row_shape
        self.chunk_size = chunk_size
        self.folder = root / digest(dict(key))[:32]
        self._journal = self.folder / "filling.jsonl"
        self._compute = compute
        self._has_sources = has_sources
        self._verified: set[int] = set()
        self.filling: Filling | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._read_index() is None:
            with self._filling_alone():
                if self._read_index() is None:  # else another process filled it while this one waited
                    self._fill(key, progress)
        with suppress(OSError):  # as a rule there is none; it is left by a kill behind the index
            self._journal.unlink()
        self._chunk_digests, self.sources = self._read_index() or ([], [])
        self._rows = self._map("r")

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows `[len(indices), *row_shape] float32`, on the CPU.

        Raises:
            NotReproducibleError: a damaged chunk that, computed again, is not what it was.
        """
        wanted = indices.numpy()
        for chunk in np.unique(wanted // self.chunk_size).tolist():
            self._verify(chunk)
        rows = torch.empty((len(wanted), *self.row_shape))  # torch's memory is aligned, a mapped row is not
        np.take(self._rows, wanted, axis=0, out=rows.numpy(), mode="clip")
        return rows

    def files(self) -> list[Path]:
        """Return the files that the rows and their digests are read from."""
        return [self.folder / ROWS_NAME, self.folder / INDEX_NAME]

    def _bounds(self, chunk: int) -> tuple[int, int]:
        start = chunk * self.chunk_size
        return start, min(start + self.chunk_size, self.num_rows)

    def _num_chunks(self) -> int:
        return math.ceil(self.num_rows / self.chunk_size)

    def _num_sources(self, start: int, stop: int) -> int:
        return stop - start if self._has_sources else 0

    def _map(self, mode: Literal["r", "r+"]) -> np.memmap[Any, np.dtype[np.float32]]:
        shape = (self.num_rows, *self.row_shape)
        return np.memmap(self.folder / ROWS_NAME, "<f4", mode, shape=shape)

    def _digest(self, rows: Rows, chunk: int) -> str:
        start, stop = self._bounds(chunk)
        return _rows_digest(rows[start:stop])

    def _read_index(self) -> tuple[list[str], list[str]] | None:
        """Return every chunk's digest and every row's source, if the cache is complete and undamaged."""
        path = self.folder / INDEX_NAME
        try:
            index = json.loads(path.read_bytes())
            chunk_digests, sources = index["chunk_digests"], index.get("sources", [])
            size = (self.folder / ROWS_NAME).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        is_complete = (
            index.get("digest") == _index_digest(chunk_digests, sources)
            and len(chunk_digests) == self._num_chunks()
            and len(sources) == self._num_sources(0, self.num_rows)
            and size == self.num_rows * math.prod(self.row_shape) * 4
        )
        return (chunk_digests, sources) if is_complete else None

    @contextmanager
    def _filling_alone(self) -> Iterator[None]:
        """Hold the folder's lock, waiting for it; the kernel releases it when this process ends."""
        with (self.folder / LOCK_NAME).open("ab") as file:
            lock_file(file.fileno(), wait=True)
            try:
                yield
            finally:
                unlock_file(file.fileno())

    def _fill(self, key: Mapping[str, Any], progress: Progress) -> None:
        for left in self.folder.glob(".*.tmp"):  # by a process that was killed; all are written under the lock
            left.unlink()
        replace(self.folder / KEY_NAME, json.dumps(dict(key), indent=1).encode())
        with (self.folder / ROWS_NAME).open("ab") as file:
            allocate(file.fileno(), self.num_rows * math.prod(self.row_shape) * 4)
        rows = self._map("r+")
        filled = _read_journal(self._journal)
        done = {
            chunk: made
            for chunk, made in filled
            if made.digest == self._digest(rows, chunk)
            and len(made.sources) == self._num_sources(*self._bounds(chunk))
        }
        replace(self._journal, b"".join(_journal_line(chunk, made) for chunk, made in done.items()))
        missing = [chunk for chunk in range(self._num_chunks()) if chunk not in done]
        began = time.perf_counter()
        # A thread writes a chunk down while the next is computed; what interrupts the fill waits for it.
        with (
            self._journal.open("ab") as file,
            ThreadPoolExecutor(1) as writer,
            closing(self._compute([self._bounds(chunk) for chunk in missing])) as computed,
        ):
            written: Future[_Made] | None = None
            for previous, chunk in zip([None, *missing], missing, strict=False):
                progress(self._bounds(chunk)[0], self.num_rows)
                features, sources = next(computed)
                values = features.cpu().numpy()
                if previous is not None and written is not None:
                    done[previous] = written.result()  # no more than one waits, and its error ends the fill
                written = writer.submit(self._write, rows, file, chunk, values, sources)
            if written is not None:
                done[missing[-1]] = written.result()
        self.filling = Filling(
            sum(stop - start for start, stop in map(self._bounds, missing)), time.perf_counter() - began
        )
        progress(self.num_rows, self.num_rows)
        made = [done[chunk] for chunk in range(self._num_chunks())]
        digests, sources = [each.digest for each in made], [name for each in made for name in each.sources]
        index: dict[str, Any] = {"chunk_digests": digests, "digest": _index_digest(digests, sources)}
        if sources:
            index["sources"] = sources
        replace(self.folder / INDEX_NAME, json.dumps(index).encode())

    def _write(
        self,
        rows: np.memmap[Any, np.dtype[np.float32]],
        journal: IO[bytes],
        chunk: int,
        values: Rows,
        sources: list[str],
    ) -> "_Made":
        """Write a chunk's rows, and once they are on the disk its line of the journal."""
        start, stop = self._bounds(chunk)
        rows[start:stop] = values
        rows.flush()
        made = _Made(self._digest(rows, chunk), sources)
        journal.write(_journal_line(chunk, made))
        journal.flush()
        sync_file(journal.fileno())
        return made

    def _verify(self, chunk: int) -> None:
        """Check a chunk once; compute a damaged one again and put it back."""
        if chunk in self._verified:
            return
        recorded = self._chunk_digests[chunk]
        if self._digest(self._rows, chunk) != recorded:
            with self._filling_alone():
                if self._digest(self._rows, chunk) != recorded:  # else another process repaired it
                    self._repair(chunk, recorded)
        self._verified.add(chunk)

    def _repair(self, chunk: int, recorded: str) -> None:
        start, stop = self._bounds(chunk)
        with closing(self._compute([(start, stop)])) as chunks:
            computed = next(chunks)[0].cpu().numpy()
        found = _rows_digest(computed)
        if found != recorded:
            raise NotReproducibleError(
                f"chunk {chunk} of the feature cache {self.folder} is damaged, and computed again it differs\n"
                f"  recorded: {recorded}\n  now:      {found}\n"
                "  remove that folder; it is made again, but runs made with it cannot be continued bit for bit"
            )
        rows = self._map("r+")
        rows[start:stop] = computed
        rows.flush()


def _rows_digest(rows: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()


class _Made(NamedTuple):
    """A chunk that was filled: the digest of its rows, and what each was computed from."""

    digest: str
    sources: list[str]


def _index_digest(chunk_digests: list[str], sources: list[str]) -> str:
    return digest([chunk_digests, sources] if sources else chunk_digests)


def _journal_line(chunk: int, made: _Made) -> bytes:
    return json.dumps([chunk, made.digest, *made.sources]).encode() + b"\n"


def _read_journal(path: Path) -> Iterator[tuple[int, _Made]]:
    """Read the lines of a fill that was interrupted, up to the first that is torn or damaged."""
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):
            return
        try:
            chunk, recorded, *sources = json.loads(line)
        except (ValueError, TypeError):
            return
        if type(chunk) is not int:
            return
        yield chunk, _Made(recorded, sources)
