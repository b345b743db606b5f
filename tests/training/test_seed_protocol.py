import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from clip_hba_behavior.config import Arithmetic
from clip_hba_behavior.data.standin import standin_backbone_directory
from clip_hba_behavior.model.architecture import ClipConfig, TextConfig, VisionConfig
from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.training import seed_protocol
from clip_hba_behavior.training.batch_order import draw_epoch_order, draw_loader_seed
from small_clip import clip_of, small_clip


def test_the_order_is_what_a_shuffling_dataloader_gives() -> None:
    loader = DataLoader(TensorDataset(torch.arange(37)), batch_size=5, shuffle=True)
    unshuffled = DataLoader(TensorDataset(torch.arange(4)))
    torch.manual_seed(11)
    expected = []
    for _ in range(3):
        expected.append(torch.cat([batch for (batch,) in loader]).tolist())
        list(unshuffled)
        list(unshuffled)
    after = torch.get_rng_state()
    torch.manual_seed(11)
    found = []
    for _ in range(3):
        found.append(draw_epoch_order(37).tolist())
        draw_loader_seed()
        draw_loader_seed()
    assert found == expected
    assert torch.equal(torch.get_rng_state(), after)


def test_a_draw_left_out_shifts_every_later_order() -> None:
    torch.manual_seed(11)
    draw_epoch_order(37)
    draw_loader_seed()
    draw_loader_seed()
    expected = draw_epoch_order(37)
    torch.manual_seed(11)
    draw_epoch_order(37)
    draw_loader_seed()
    assert not torch.equal(draw_epoch_order(37), expected)


def test_only_torchs_cpu_generator_is_drawn_from() -> None:
    import random

    import numpy as np

    backbone = clip_of(small_clip())
    model = CLIPHBA(backbone, 2, 1, 4, 0.0, torch.zeros(66, dtype=torch.int64))
    seed_protocol.begin(3, 100, 0.8)
    numpy_before, python_before = str(np.random.get_state()), random.getstate()
    seed_protocol.draw_initial_parameters(model, backbone.config)
    draw_epoch_order(80)
    assert str(np.random.get_state()) == numpy_before
    assert random.getstate() == python_before


def test_the_recorded_run_is_drawn_again_from_its_seed(reference: Path) -> None:
    recorded = json.loads((reference / "run/batch_order.json").read_text())
    backbone = load_backbone(str(reference / "backbone"))
    model = CLIPHBA(backbone, 2, 1, 32, 0.0, torch.zeros(66, dtype=torch.int64))

    split = seed_protocol.begin(1, 160, 0.8)
    assert split.train.tolist() == recorded["train_idx"]
    assert split.test.tolist() == recorded["test_idx"]

    seed_protocol.draw_initial_parameters(model, backbone.config)
    initial = read_checkpoint(reference / "run/epoch0_dora_init.pth").parameters
    assert digest(dict(model.dora_parameters())) == digest(initial)

    draw_loader_seed()  # the first evaluation
    for epoch, order in enumerate(recorded["perms"], start=1):
        assert draw_epoch_order(128).tolist() == order
        draw_loader_seed()
        draw_loader_seed()
        saved = read_checkpoint(reference / f"run/dora/epoch{epoch}_dora_params.pth").rng_state
        assert saved is not None
        assert digest(torch.get_rng_state()) == digest(saved["torch_rng_state"])


@pytest.mark.parametrize("left_out", ["layer widths", "vocabulary", "rank"])
def test_another_backbone_or_rank_draws_other_orders(left_out: str) -> None:
    def order(vocab_size: int, num_layers: int, rank: int) -> torch.Tensor:
        backbone = clip_of(small_clip())
        text = backbone.config.text_config.model_copy(update={"vocab_size": vocab_size})
        config = backbone.config.model_copy(update={"text_config": text})
        model = CLIPHBA(backbone, num_layers, 1, rank, 0.0, torch.zeros(66, dtype=torch.int64))
        seed_protocol.begin(1, 50, 0.8)
        seed_protocol.draw_initial_parameters(model, config)
        return draw_epoch_order(40)

    usual = order(120, 2, 4)
    other = {"layer widths": order(120, 1, 4), "vocabulary": order(130, 2, 4), "rank": order(120, 2, 8)}
    assert torch.equal(usual, order(120, 2, 4))
    assert not torch.equal(usual, other[left_out])


# --- portable arithmetic ------------------------------------------------------------------------------


def state_after(draw: Callable[[], object]) -> torch.Tensor:
    torch.manual_seed(3)
    torch.rand(5)
    draw()
    return torch.get_rng_state()


def test_a_normal_draw_takes_the_words_that_the_protocol_counts() -> None:
    for size in (*range(16, 100), 623, 624, 640, 1000, 4096, 50_000, 50_001):
        for kind, draw in (("normal", torch.Tensor.normal_), ("uniform", torch.Tensor.uniform_)):
            words = seed_protocol._num_words(kind, (size,))
            native = state_after(lambda size=size, draw=draw: draw(torch.empty(size)))
            assert torch.equal(state_after(lambda words=words: torch.rand(words)), native), (kind, size)


def test_the_draws_of_vit_b_32_take_them_too() -> None:
    """Each shape once; the two longest, of 25 million words each, are left out."""
    shapes = set(seed_protocol.construction_draws(ClipConfig()))
    assert len(shapes) > 20
    for kind, shape in sorted(shapes, key=str):
        if math.prod(shape) < 3_000_000:
            draw = torch.Tensor.normal_ if kind == "normal" else torch.Tensor.uniform_
            native = state_after(lambda shape=shape, draw=draw: draw(torch.empty(shape)))
            words = seed_protocol._num_words(kind, shape)
            assert torch.equal(state_after(lambda words=words: torch.rand(words)), native), (kind, shape)


def drawn(arithmetic: Arithmetic) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The parameters that a run on the synthetic data set begins with, and the generator's state."""
    backbone = load_backbone(str(standin_backbone_directory()))
    model = CLIPHBA(backbone, 2, 1, 4, 0.0, torch.zeros(66, dtype=torch.int64))
    seed_protocol.begin(1, 160, 0.8)
    seed_protocol.draw_initial_parameters(model, backbone.config, arithmetic)
    return {name: value.detach() for name, value in model.dora_parameters().items()}, torch.get_rng_state()


def test_portable_initial_parameters_leave_the_native_generator_and_have_these_bits_forever() -> None:
    native, native_state = drawn("native")
    portable, portable_state = drawn("portable")
    assert torch.equal(portable_state, native_state)
    assert native.keys() == portable.keys()
    for name, value in portable.items():
        torch.testing.assert_close(value, native[name], rtol=0, atol=1.5 * 2.0**-24)  # the bound is at most 1/2
    factors = {name: value for name, value in portable.items() if "delta_D" in name}
    assert len(factors) == 6
    assert digest(factors)[:32] == "0f2af20ff4a8754bca259329ef8fd51e"
    assert digest(portable_state)[:32] == "df7ffd49ed9778333ed3e58911c11e22"


@pytest.mark.parametrize(("vision", "text", "shape"), [(15, 64, [15]), (64, 3, [3, 3])])
def test_a_backbone_too_narrow_for_portable_draws_is_refused_before_any(
    vision: int, text: int, shape: list[int]
) -> None:
    config = ClipConfig(
        vision_config=VisionConfig(hidden_size=vision, num_attention_heads=1, intermediate_size=16),
        text_config=TextConfig(hidden_size=text, num_attention_heads=1, intermediate_size=16, vocab_size=10),
        projection_dim=4,
    )
    before = torch.get_rng_state()
    with pytest.raises(BadInputError) as refused:
        seed_protocol.skip_model_construction(config, "portable")
    assert torch.equal(torch.get_rng_state(), before)
    assert str(refused.value) == (
        "arithmetic: portable cannot start a run on so narrow a backbone\n"
        f"  numbers in its smallest normal draw: {math.prod(shape)} (shape {shape})\n"
        "  expected:                            at least 16\n"
        "  use a wider backbone, or arithmetic: native"
    )
    seed_protocol.skip_model_construction(config)
