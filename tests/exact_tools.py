"""What the tests of the exact numerics share: numbers, errors, and processes that are played in one."""

import threading
from collections.abc import Callable

import torch

F64 = torch.float64


def normal(*shape: int, seed: int) -> torch.Tensor:
    """Normal float32 numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_outliers(rows: torch.Tensor, factor: float) -> torch.Tensor:
    """The rows with two columns so many times the others."""
    rows = rows.clone()
    rows[:, [3, rows.shape[1] // 2]] *= factor
    return rows


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the error relative to the norm."""
    return float((found.to(F64) - expected).norm() / expected.norm())


def gradients(
    function: Callable[..., torch.Tensor], *inputs: torch.Tensor, dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """The result and the gradients to all inputs, of a fixed linear function of it."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
    result = function(*leaves)
    upstream = normal(*result.shape, seed=1234).to(result.dtype)
    return [result.detach(), *torch.autograd.grad(result, leaves, upstream)]


class ProcessesInThreads:
    """A reduction over processes, each a thread of this one."""

    def __init__(self, number: int) -> None:
        self.barrier = threading.Barrier(number, timeout=30)
        self.values: list[torch.Tensor] = []

    def maximum(self, values: torch.Tensor) -> torch.Tensor:
        return self._all(values).amax(0)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return self._all(values).sum(0)

    def run(self, function: Callable[[int], torch.Tensor]) -> list[torch.Tensor]:
        """What each process's function returns, called with its number."""
        results: list[torch.Tensor] = [torch.empty(0)] * self.barrier.parties

        def work(number: int) -> None:
            results[number] = function(number)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(self.barrier.parties)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def _all(self, values: torch.Tensor) -> torch.Tensor:
        if self.barrier.wait() == 0:
            self.values = []
        self.barrier.wait()
        self.values.append(values)
        self.barrier.wait()
        together = torch.stack(self.values)
        self.barrier.wait()
        return together
