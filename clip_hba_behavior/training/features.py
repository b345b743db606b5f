"""Frozen features where the model computes: all held on the device, or each batch sent ahead of its step."""

import math
from collections.abc import Iterator, Sequence

import torch

from clip_hba_behavior.model.feature_cache import FeatureCache

# The rest is for the model, its activations and other processes.
_SHARE_OF_FREE_MEMORY = 0.5


class Features:
    """A cache's rows, on a device; which way they come there changes no bit.

    On a CPU each batch is read from the cache as it is needed. On another device all rows are held in its memory
    if they fit, and else a batch is sent while the step before it computes.
    """

    def __init__(self, cache: FeatureCache, device: torch.device, num_free: int | None) -> None:
        """Hold the rows, if they fit.

        Args:
            cache: filled.
            device: where the model computes.
            num_free: bytes that are free there, see `free_memory`; None to read each batch as it is needed.

        Raises:
            NotReproducibleError: as `FeatureCache.take`.
        """
        self._cache, self._device = cache, device
        self._num_bytes, self._num_free = 4 * cache.num_rows * math.prod(cache.row_shape), num_free
        self._held: torch.Tensor | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if num_free is not None and self._num_bytes <= _SHARE_OF_FREE_MEMORY * num_free:
            self._held = torch.empty((cache.num_rows, *cache.row_shape), device=device)
            for rows in torch.arange(cache.num_rows).split(cache.chunk_size):
                self._held[rows[0] : rows[-1] + 1] = cache.take(rows)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """Return some rows `[len(rows), *row_shape] float32` on the device; `rows` are on the CPU."""
        if self._held is not None:
            return self._held[send(rows, self._device)]
        return self._cache.take(rows).to(self._device)

    def batches(self, batches: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the rows of each batch, as `take` does; where they are sent, the next batch's are under way."""
        if self._held is not None or self._num_free is None:
            yield from map(self.take, batches)
            return
        coming: _Sent | None = None
        for rows in batches:
            following = _Sent(self._cache.take(rows), self._device, self._stream)
            if coming is not None:
                yield coming.arrive()
            coming = following
        if coming is not None:
            yield coming.arrive()

    def describe(self) -> str | None:
        """Say where the rows are and why, in a sentence for the log; None where nothing had to be decided."""
        if self._num_free is None:
            return None
        size, free = self._num_bytes / 1e9, self._num_free / 1e9
        if self._held is not None:
            return f"Features of {size:.2f} GB are held on {self._device}, which had {free:.2f} GB free"
        return (
            f"Features of {size:.2f} GB are more than half of the {free:.2f} GB free on {self._device}: "
            "each batch is read from the cache and sent while the step before it computes"
        )


class _Sent:
    """A batch on its way."""

    def __init__(self, rows: torch.Tensor, device: torch.device, stream: torch.cuda.Stream | None) -> None:
        self._stream, self._event = stream, None
        if stream is None:
            self._rows = rows.to(device)
            return
        with torch.cuda.stream(stream):
            self._rows = send(rows, device)
        self._event = stream.record_event()

    def arrive(self) -> torch.Tensor:
        """Let the device wait for the rows before it computes on; this process goes on."""
        if self._event is not None:
            current = torch.cuda.current_stream(self._rows.device)
            current.wait_event(self._event)
            self._rows.record_stream(current)  # its memory is not another batch's before this stream has read it
        return self._rows


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Send a tensor from the CPU, from pinned memory, without waiting until the device is done with its work."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that are free on a device that has memory of its own; None of a CPU."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
