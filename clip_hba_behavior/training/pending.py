"""A step that the device may still be computing: what is read of it, a few steps later, without a stall."""

from dataclasses import dataclass
from typing import Any

import torch

# How many steps on the loss of one is read, by the kind of device. A CPU is done when it returns.
STEPS_LATE = {"cpu": 0, "cuda": 4}


@dataclass(frozen=True)
class PendingStep:
    """One step.

    Attributes:
        number: within its epoch, counted from 1.
        rows: of its batch, on the CPU.
        targets: of the batch, on the CPU or on their way there.
        pixels_digest: of the batch's pixels where these are not its images'.
        loss: a scalar, on the CPU or on its way there.
        copied: when both have come; None where they are there.
    """

    number: int
    rows: torch.Tensor
    targets: torch.Tensor
    pixels_digest: str | None
    loss: torch.Tensor
    copied: Any = None

    def value(self) -> float:
        """Wait for what was copied, and return the loss."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.loss.item()


def pending_step(
    number: int, rows: torch.Tensor, targets: torch.Tensor, pixels_digest: str | None, loss: torch.Tensor
) -> PendingStep:
    """Begin to copy what the record needs of a step; the device goes on meanwhile."""
    copies = [each.detach().to("cpu", non_blocking=True) for each in (targets, loss)]  # into pinned memory
    copied = torch.cuda.current_stream(loss.device).record_event() if loss.is_cuda else None
    return PendingStep(number, rows, copies[0], pixels_digest, copies[1], copied)
