import io

import pytest
import torch

from clip_hba_behavior import exact
from exact_tools import F64, normal

SETTINGS = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.05}


def train(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], steps: range) -> None:
    for step in steps:
        for number, parameter in enumerate(parameters):
            target = normal(*parameter.shape, seed=number).to(parameter.dtype)
            noise = normal(*parameter.shape, seed=1000 * step + number).to(parameter.dtype)
            parameter.grad = (parameter.detach() - target) * (1 + noise)
        optimizer.step()


def start(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    return [normal(30, 20, seed=11).to(dtype).requires_grad_(), normal(7, seed=12).to(dtype).requires_grad_()]


def test_it_follows_float64_closer_than_torchs_float32() -> None:
    reference, ours, theirs = start(F64), start(), start()
    train(torch.optim.AdamW(reference, **SETTINGS), reference, range(200))
    train(exact.AdamW(ours, **SETTINGS), ours, range(200))
    train(torch.optim.AdamW(theirs, **SETTINGS), theirs, range(200))
    for a, b, c in zip(reference, ours, theirs, strict=True):
        error = (b.to(F64) - a).norm() / a.norm()
        assert error < 2e-6
        assert error < 1.2 * (c.to(F64) - a).norm() / a.norm()


def test_a_saved_optimizer_continues_bit_for_bit() -> None:
    whole = start()
    train(exact.AdamW(whole, **SETTINGS), whole, range(6))

    parameters = start()
    optimizer = exact.AdamW(parameters, **SETTINGS)
    train(optimizer, parameters, range(3))
    file = io.BytesIO()
    torch.save({"parameters": parameters, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    resumed = [parameter.detach().requires_grad_() for parameter in loaded["parameters"]]
    optimizer = exact.AdamW(resumed)
    optimizer.load_state_dict(loaded["optimizer"])
    train(optimizer, resumed, range(3, 6))
    assert all(map(torch.equal, whole, resumed))


def test_a_resumed_run_without_the_powers_would_differ() -> None:
    """The failed control of the test above."""
    whole, parameters = start(), start()
    train(exact.AdamW(whole, **SETTINGS), whole, range(6))
    optimizer = exact.AdamW(parameters, **SETTINGS)
    train(optimizer, parameters, range(3))
    for state in optimizer.state.values():
        state["beta2_power"] = float(torch.tensor(state["beta2_power"]))  # as float32
    train(optimizer, parameters, range(3, 6))
    assert not all(map(torch.equal, whole, parameters))


def test_a_closure_parameters_without_gradients_and_a_schedule() -> None:
    first, second = start()
    optimizer = exact.AdamW([first, second], lr=1.0, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    before = second.detach().clone()

    def closure() -> float:
        optimizer.zero_grad()
        loss = first.sum()
        loss.backward()
        return loss.item()

    start_value = first.detach().clone()
    assert optimizer.step(closure) == pytest.approx(start_value.sum().item())
    schedule.step()
    optimizer.step(closure)
    assert torch.allclose(first, start_value - 1.5, atol=1e-6)
    assert torch.equal(second, before)


def test_helpful_errors() -> None:
    with pytest.raises(ValueError, match=r"shape \[2\]\n  found:    torch.float64\n  expected: torch.float32"):
        exact.AdamW([torch.ones(2, dtype=F64, requires_grad=True)])
    with pytest.raises(ValueError, match=r"betas \(0.9, 1.0\).*\n  expected: betas from 0 to below 1"):
        exact.AdamW([torch.ones(2, requires_grad=True)], betas=(0.9, 1.0))
