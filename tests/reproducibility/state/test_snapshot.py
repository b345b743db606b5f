import copy
import dataclasses

import pytest
import torch
from torch import nn

from clip_hba_behavior.reproducibility.state.compare import compare
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import restore_optimizer, restore_parameters, snapshot
from clip_hba_behavior.training.state import TrainingState


def trained() -> tuple[nn.Linear, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


def state_of(model: nn.Linear, optimizer: torch.optim.Optimizer) -> TrainingState:
    return TrainingState(
        parameters=snapshot(dict(model.named_parameters())),
        optimizer_state=snapshot(optimizer.state_dict()),
        rng_state=snapshot(capture_rng_state()),
        early_stopping_state={"best_test_loss": 1.0, "epochs_no_improve": 2},
        epoch=3,
        metrics={"epoch": 3, "test_loss": 1.5},
    )


def test_a_snapshot_does_not_change_as_training_goes_on() -> None:
    model, optimizer = trained()
    state = state_of(model, optimizer)
    before = state.digest()
    step(model, optimizer)
    assert state.digest() == before


def test_a_restored_optimizer_does_not_write_into_the_saved_state() -> None:
    model, optimizer = trained()
    state = state_of(model, optimizer)
    before = state.digest()
    other, other_optimizer = trained()
    restore_parameters(dict(other.named_parameters()), state.parameters)
    restore_optimizer(other_optimizer, state.optimizer_state)
    step(other, other_optimizer)
    assert state.digest() == before
    step(model, optimizer)
    assert digest(dict(other.named_parameters())) == digest(dict(model.named_parameters()))


def test_load_state_dict_alone_would_write_into_the_saved_state() -> None:
    """The reason for the copy in `restore_optimizer`; when torch changes this, the copy can go."""
    model, optimizer = trained()
    state = state_of(model, optimizer)
    before = state.digest()
    other, other_optimizer = trained()
    other_optimizer.load_state_dict(state.optimizer_state)
    step(other, other_optimizer)
    assert state.digest() != before


@pytest.mark.parametrize("field", [each.name for each in dataclasses.fields(TrainingState)])
def test_every_field_counts_in_the_digest(field: str) -> None:
    state = state_of(*trained())
    value = getattr(state, field)
    changed = copy.deepcopy(value)
    if field == "parameters":
        changed["weight"].view(torch.int32)[0, 0] ^= 1
    elif field == "optimizer_state":
        changed["state"][0]["exp_avg"].view(torch.int32)[0, 0] ^= 1
    elif isinstance(value, dict):
        changed[next(iter(changed))] = None
    else:
        changed = 5
    other = dataclasses.replace(state, **{field: changed})
    assert other.digest() != state.digest()
    assert not compare(other.as_dict(), state.as_dict()).equal()


def test_parameters_of_another_model_are_refused_and_nothing_is_written() -> None:
    model, _ = trained()
    before = digest(dict(model.named_parameters()))
    for saved, reason in (
        ({"weight": torch.zeros(3, 4)}, "bias: not in the checkpoint"),
        (
            {"weight": torch.zeros(3, 4), "bias": torch.zeros(3), "m": torch.zeros(1)},
            "m: in the checkpoint, not in",
        ),
        ({"weight": torch.zeros(3, 5), "bias": torch.zeros(3)}, r"in checkpoint: \(\(3, 5\)"),
        ({"weight": torch.zeros(3, 4).double(), "bias": torch.zeros(3)}, "float64"),
    ):
        with pytest.raises(BadInputError, match=reason):
            restore_parameters(dict(model.named_parameters()), saved)
    assert digest(dict(model.named_parameters())) == before
