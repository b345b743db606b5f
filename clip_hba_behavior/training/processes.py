"""The processes that share each batch of a run."""

import re
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from clip_hba_behavior.reproducibility.record.signals import StopRequest
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError, StoppedError

# The first process may fill the cache of features for hours before the others hear of it. That one has ended is
# seen at once, by its closed connections.
PATIENCE = timedelta(days=7)


class LostProcessError(StoppedError):
    """Another process of the run has ended, so no batch can be computed any more; what was complete stays."""


class UnequalProcessesError(NotReproducibleError):
    """The processes have come to different states: one of their machines computes other bits."""


class Processes:
    """The processes that share each batch, as an `exact.Reduce` of their parts; they make equal calls in order.

    Each sum carries one entry more: how many processes were asked to stop. So all of them learn of it at the same
    sum, and stop after the same step.

    Attributes:
        rank: this process's number.
        size: how many there are.
        num_local: how many there are on this machine, which share its cores.
        asked: whether this process was asked to stop.
        agreed: whether any was, as of the last call of `agree`; the same in all of them.
        are_listening: whether the others wait in `hear`, not within a step.
    """

    def __init__(self, rank: int = 0, size: int = 1, num_local: int = 1, asked: StopRequest | None = None) -> None:
        """Name the processes; to talk to each other they must have joined."""
        self.rank, self.size, self.num_local = rank, size, num_local
        self.asked = asked or StopRequest()
        self.agreed = StopRequest()
        self.are_listening = True
        self._group: distributed.ProcessGroup | None = None
        self._num_asked: torch.Tensor | None = None

    @classmethod
    def join(
        cls, rank: int, size: int, num_local: int, asked: StopRequest, patience: timedelta = PATIENCE
    ) -> "Processes":
        """Meet the others, where the environment says; wait until all are there.

        Args:
            rank: this process's number.
            size: how many there are.
            num_local: how many there are on this machine.
            asked: whether this process was asked to stop.
            patience: how long to wait, for them and for each answer.

        Raises:
            LostProcessError: they cannot be reached.
        """
        try:
            distributed.init_process_group("gloo", timeout=patience)
        except (RuntimeError, ValueError) as error:  # ValueError: the environment does not say where
            raise LostProcessError(
                f"the {size} processes of this run cannot meet: {error}\n"
                "  start them with torchrun, which says where"
            ) from None
        return cls(rank, size, num_local, asked)

    def share_on(self, device: torch.device) -> None:
        """Prepare for numbers on a device: those on GPUs are put together by NCCL."""
        if device.type == "cuda" and self._group is None:
            self._group = distributed.new_group(backend="nccl", timeout=PATIENCE)

    def part(self, number: int) -> slice:
        """Return which of so many rows are this process's; the others have the rest, and some may have none."""
        return slice(number * self.rank // self.size, number * (self.rank + 1) // self.size)

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise maximum over all processes, in place.

        Raises:
            LostProcessError: one of them has ended.
        """
        self._reduce(values, distributed.ReduceOp.MAX)
        return values

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the elementwise sum over all processes, float64 or int64.

        Raises:
            LostProcessError: one of them has ended.
        """
        is_asked = values.new_full((1,), int(self.asked.name is not None))
        carried = torch.cat([values.reshape(-1), is_asked])
        self._reduce(carried, distributed.ReduceOp.SUM)
        self._num_asked = carried[-1]
        return carried[:-1].view(values.shape)

    def together(self, own: torch.Tensor, number: int) -> torch.Tensor:
        """Put together what each process has of so many rows, bit for bit.

        Args:
            own: the rows that `part` says, `[rows, ...] float32`.
            number: of all rows.

        Raises:
            LostProcessError: one of the processes has ended.
        """
        if self.size == 1:
            return own
        bits = own.new_zeros((number, *own.shape[1:]), dtype=torch.int64)  # of float32 a sum would lose -0
        bits[self.part(number)] = own.view(torch.int32).to(torch.int64)
        return self.sum(bits).to(torch.int32).view(torch.float32)

    def agree(self) -> None:
        """Bring `agreed` up to the last sum."""
        if self._num_asked is not None and self._num_asked.item() > 0:
            self.agreed.name = self.asked.name or "a signal to another process"

    def check_equal(self, digest: str, what: str) -> None:
        """Return if all processes give the same digest.

        Raises:
            UnequalProcessesError: they do not; in all of them.
            LostProcessError: one of them has ended.
        """
        if self.size == 1:
            return
        number = float(int(digest[:12], 16))
        largest, least = self.maximum(torch.tensor([number, -number], dtype=torch.float64)).tolist()
        if largest != -least:
            raise UnequalProcessesError(
                f"the {self.size} processes that share each batch differ in {what}\n"
                f"  digest in process {self.rank}: {digest}\n"
                "  one of them computes other bits; the epoch's end was not written\n"
                "  compare their machines with scripts/exact_anywhere.py, and go on with one process"
            )

    def tell(self, message: Any) -> None:
        """Give the others, who wait in `hear`, a message.

        Raises:
            LostProcessError: one of them has ended.
        """
        self._broadcast([message])

    def hear(self) -> Any:
        """Wait for the first process's message.

        Raises:
            LostProcessError: it has ended.
        """
        return self._broadcast([None])[0]

    def _reduce(self, values: torch.Tensor, how: Any) -> None:
        try:
            distributed.all_reduce(values, how, self._group if values.is_cuda else None)
        except RuntimeError as error:
            raise _lost(error) from None

    def _broadcast(self, messages: list[Any]) -> list[Any]:
        try:
            distributed.broadcast_object_list(messages, src=0)
        except RuntimeError as error:
            raise _lost(error) from None
        return messages


ALONE = Processes()


def _lost(error: RuntimeError) -> LostProcessError:
    why = re.sub(r"^\[.*?\] ", "", str(error)).partition("\n")[0].partition(". ")[0]
    return LostProcessError(f"another process of this run has ended: {why}\n  what was complete stays")
