import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from clip_hba_behavior import exact
from clip_hba_behavior.exact.totals import ONE_PROCESS, Reduce
from exact_tools import F64, ProcessesInThreads, gradients, normal, relative_error

SHARES = [1, 40, 7]


def split(function: Callable[[int, Reduce], torch.Tensor]) -> list[torch.Tensor]:
    """What three processes with uneven shares of 48 rows return."""
    processes = ProcessesInThreads(len(SHARES))
    return processes.run(lambda number: function(number, processes))


def test_cross_is_the_same_for_every_split_and_order_of_the_rows() -> None:
    x, y = normal(48, 30, seed=1), normal(48, 20, seed=2)
    whole = exact.cross(x, y)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    assert torch.equal(whole, exact.cross(x[order], y[order]))
    parts = list(zip(x.split(SHARES), y.split(SHARES), strict=True))
    for result in split(lambda number, reduce: exact.cross(*parts[number], reduce)):
        assert torch.equal(whole, result)


def test_native_gradients_depend_on_the_split() -> None:
    """The failed control of the test above."""
    x, y = normal(48, 30, seed=1), normal(48, 20, seed=2)
    parts = [a.T @ b for a, b in zip(x.split(SHARES), y.split(SHARES), strict=True)]
    assert not torch.equal(x.T @ y, parts[0] + parts[1] + parts[2])


@pytest.mark.parametrize("rows", [1000, 1025, 9000])
def test_cross_of_many_rows_is_exact_in_any_cut(rows: int) -> None:
    x, y = normal(rows, 12, seed=1), normal(rows, 9, seed=2) * torch.exp(3 * normal(rows, 1, seed=3))
    whole = exact.cross(x, y)
    expected = x.to(F64).T @ y.to(F64)
    assert relative_error(whole, expected) < (3e-8 if rows <= 1025 else 4e-7)
    assert relative_error(whole, expected) < relative_error(x.T @ y, expected)
    processes = ProcessesInThreads(2)
    parts = [slice(0, 13), slice(13, rows)]
    for result in processes.run(lambda number: exact.cross(x[parts[number]], y[parts[number]], processes)):
        assert torch.equal(whole, result)


def test_cross_takes_columns_of_zeros_and_processes_without_rows() -> None:
    x, y = normal(48, 5, seed=1), normal(48, 4, seed=2)
    x[:, 2] = 0
    whole = exact.cross(x, y)
    assert not bool(whole[2].any())
    parts = [slice(0, 0), slice(0, 48)]
    processes = ProcessesInThreads(2)
    for result in processes.run(lambda number: exact.cross(x[parts[number]], y[parts[number]], processes)):
        assert torch.equal(whole, result)
    x[3, 1] = torch.inf
    found = exact.cross(x, y)
    assert bool(found[1].isnan().all())
    assert bool(found[[0, 2, 3, 4]].isfinite().all())


def test_linear_and_layer_norm_train_the_same_on_uneven_shares() -> None:
    x, target = normal(48, 30, seed=1), normal(48, 20, seed=2)
    start = [normal(20, 30, seed=3), normal(20, seed=4), normal(30, seed=5), normal(30, seed=6)]

    def step(x: torch.Tensor, target: torch.Tensor, reduce: Reduce) -> torch.Tensor:
        weight, bias, gain, shift = leaves = [tensor.clone().requires_grad_() for tensor in start]
        hidden = exact.layer_norm(x, gain, shift, reduce=reduce)
        loss = exact.mse_loss(exact.linear(hidden, weight, bias, reduce), target, reduce)
        return torch.cat([loss.view(1), *(grad.flatten() for grad in torch.autograd.grad(loss, leaves))])

    whole = step(x, target, ONE_PROCESS)
    parts = list(zip(x.split(SHARES), target.split(SHARES), strict=True))
    for result in split(lambda number, reduce: step(*parts[number], reduce)):
        assert torch.equal(whole, result)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_a_total_is_accurate_and_knows_no_order(scale: float) -> None:
    values = (normal(5000, seed=1) * torch.exp(2 * normal(5000, seed=2)) * scale).to(F64)
    total = exact.total(values)
    exactly = sum(map(Fraction, values.tolist()))
    assert abs(Fraction(total.item()) - exactly) <= 5000 * values.abs().max().item() * 2.0**-38
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(total, exact.total(values[order]))
    processes = ProcessesInThreads(2)
    for result in processes.run(lambda number: exact.total(values[number * 77 : 77 + number * 5000], processes)):
        assert torch.equal(total, result)
    assert not torch.equal(values.float().sum(), values[order].float().sum())  # the failed control


def test_totals_of_few_and_no_values() -> None:
    assert exact.total(torch.tensor([1.5])).item() == 1.5
    assert exact.total(torch.tensor([3.0, -1.0, 0.25])).item() == 2.25
    assert exact.total(torch.empty(0)).item() == 0.0
    assert math.isnan(exact.total(torch.tensor([1.0, torch.inf])).item())
    assert torch.equal(
        exact.column_totals(torch.tensor([[1.0, 2.0], [3.0, -2.0]])), torch.tensor([4.0, 0.0]).to(F64)
    )


def test_mean_squared_error_and_its_gradient() -> None:
    predictions, targets = normal(64, 66, seed=1), normal(64, 66, seed=2)
    found = gradients(lambda x: exact.mse_loss(x, targets), predictions)
    expected = gradients(lambda x: torch.nn.functional.mse_loss(x, targets.to(F64)), predictions, dtype=F64)
    for ours, reference in zip(found, expected, strict=True):
        assert relative_error(ours, reference) < 6e-8
    with pytest.raises(ValueError, match=r"predictions \[2\], targets \[2, 1\]\n  expected: one shape"):
        exact.mse_loss(torch.ones(2), torch.ones(2, 1))
    with pytest.raises(ValueError, match="no entries"):
        exact.mse_loss(torch.ones(0, 3), torch.ones(0, 3))


def test_cross_of_unequal_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="3 and 4 rows"):
        exact.cross(torch.ones(3, 1), torch.ones(4, 1))
