import json
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.state.digest import digest
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
