import logging
import random

import numpy as np
import pytest
import torch

from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.rng import (
    capture_rng_state,
    load_and_restore_rng_state,
    restore_rng_state,
    seed_generators,
    undisturbed_generators,
)


def draw_everywhere() -> tuple[list[float], list[float], list[float]]:
    return (
        torch.rand(3).tolist(),
        [*np.random.rand(3).tolist(), *np.random.randn(1).tolist()],
        [random.random(), random.gauss()],
    )


def test_every_generator_goes_on_where_it_was() -> None:
    seed_generators(7)
    draw_everywhere()  # NumPy and Python now hold half a pair of normal numbers
    state = capture_rng_state()
    first = draw_everywhere()
    seed_generators(8)
    restore_rng_state(state)
    assert draw_everywhere() == first


@pytest.mark.parametrize("stream", ["torch_rng_state", "numpy_rng_state", "python_rng_state"])
def test_a_stream_left_out_is_missed(stream: str) -> None:
    seed_generators(7)
    state = capture_rng_state()
    first = draw_everywhere()
    seed_generators(8)
    restore_rng_state(state | {stream: capture_rng_state()[stream]})
    assert draw_everywhere() != first


def test_capturing_draws_nothing() -> None:
    seed_generators(7)
    assert digest(capture_rng_state()) == digest(capture_rng_state())


def test_generators_are_put_back_after_something_drew() -> None:
    before = digest(capture_rng_state())
    with undisturbed_generators():
        draw_everywhere()
        assert digest(capture_rng_state()) != before
    assert digest(capture_rng_state()) == before


def test_a_state_of_the_cpu_is_the_same_in_a_process_that_has_used_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(capture_rng_state())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda *device: torch.zeros(16, dtype=torch.uint8))
    assert "cuda_rng_state_all" not in capture_rng_state()
    assert digest(capture_rng_state()) == before
    assert len(capture_rng_state(torch.device("cuda", 0))["cuda_rng_state_all"]) == 1


def test_the_guides_messages(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("test")
    with caplog.at_level(logging.INFO):
        assert load_and_restore_rng_state({"rng_state": capture_rng_state()}, logger) is True
        assert load_and_restore_rng_state({"some.weight": torch.zeros(1)}, logger) is False
    assert caplog.messages == [
        "✓ Restored RNG states from checkpoint for reproducible shuffle order",
        "⚠️  WARNING: No RNG states in checkpoint. Batch order will differ.",
    ]
    assert caplog.records[1].levelno == logging.WARNING
    assert load_and_restore_rng_state({}) is False
    assert load_and_restore_rng_state({"rng_state": {"torch_rng_state": torch.get_rng_state()}}) is False
    assert "WARNING: No RNG states in checkpoint. Batch order will differ." in capsys.readouterr().out


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_cuda_device_goes_on_where_it_was() -> None:
    state = capture_rng_state(torch.device("cuda"))
    assert len(state["cuda_rng_state_all"]) == 1
    first = torch.rand(5, device="cuda").tolist()
    restore_rng_state(state)
    assert torch.rand(5, device="cuda").tolist() == first


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_after_work_on_cuda_a_state_of_the_cpu_holds_no_stream_of_it() -> None:
    before = digest(capture_rng_state())
    torch.rand(1, device="cuda")
    assert digest(capture_rng_state(torch.device("cpu"))) == before
    assert "cuda_rng_state_all" in capture_rng_state(torch.device("cuda"))
