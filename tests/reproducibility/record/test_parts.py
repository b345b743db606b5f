"""Whatever has a `state_dict` is saved, and loaded completely or not at all."""

from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clip_hba_behavior.reproducibility import BadInputError, load, save
from clip_hba_behavior.reproducibility.record.parts import states_of
from clip_hba_behavior.reproducibility.record.tracked import ledger_leaves
from clip_hba_behavior.reproducibility.state.tree import tree_digest

Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), 0.1, amsgrad=True),
    "Adafactor": lambda model: torch.optim.Adafactor(model.parameters(), 0.1),
    "LBFGS": lambda model: torch.optim.LBFGS(model.parameters(), 0.1, max_iter=3),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), 0.1, centered=True),
    "groups": lambda model: torch.optim.Adam([{"params": [each], "lr": 0.1} for each in model.parameters()]),
}
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "MultiStepLR": lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),
    "OneCycleLR": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
    "ReduceLROnPlateau": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
    "SequentialLR": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)],
        [2],
    ),
    "SequentialLR over MultiStepLR": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])],
        [2],
    ),
    "LambdaLR": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.9**epoch),
}


def make(
    optimizer: str = "AdamW", scheduler: str = "MultiStepLR", dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).to(dtype)
    made = OPTIMIZERS[optimizer](model)
    return {
        "model": model,
        "optimizer": made,
        "scheduler": SCHEDULERS[scheduler](made),
        "average": torch.optim.swa_utils.AveragedModel(model),
        "scaler": torch.amp.GradScaler("cpu", init_scale=8.0),
    }


def train(parts: dict[str, Any], num_steps: int) -> None:
    model, optimizer, scheduler = parts["model"], parts["optimizer"], parts["scheduler"]
    for _ in range(num_steps):
        inputs = torch.randn(5, 3).to(next(model.parameters()).dtype)

        def closure(inputs: torch.Tensor = inputs) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(inputs).square().mean()
            loss.backward()
            return loss.detach()

        loss = optimizer.step(closure)
        scheduler.step(*([loss] if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) else []))
        parts["average"].update_parameters(model)


def live_digest(parts: dict[str, Any]) -> str:
    return tree_digest([states_of(parts), torch.get_rng_state()])


@pytest.mark.parametrize(
    ("optimizer", "scheduler", "dtype"),
    [(name, "MultiStepLR", torch.float32) for name in OPTIMIZERS]
    + [("AdamW", name, torch.float32) for name in SCHEDULERS]
    + [("AdamW", "MultiStepLR", dtype) for dtype in (torch.float64, torch.bfloat16)],
)
def test_saved_and_loaded_parts_go_on_to_the_same_bits(
    optimizer: str, scheduler: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    parts = make(optimizer, scheduler, dtype)
    train(parts, 3)
    save(tmp_path / "state.pth", extra={"epoch": 3}, **parts)
    train(parts, 3)
    other = make(optimizer, scheduler, dtype)
    torch.manual_seed(5)
    assert load(tmp_path / "state.pth", **other) == {"epoch": 3}
    train(other, 3)
    assert live_digest(other) == live_digest(parts)


@pytest.mark.parametrize("left_out", ["model", "optimizer", "scheduler", "average"])
def test_without_one_part_they_do_not(left_out: str, tmp_path: Path) -> None:
    parts = make("SGD")
    train(parts, 3)
    rest = {name: part for name, part in parts.items() if name != left_out}
    save(tmp_path / "state.pth", **rest)
    train(parts, 3)
    other = make("SGD")
    load(tmp_path / "state.pth", **{name: other[name] for name in rest})
    train(other, 3)
    assert live_digest(other) != live_digest(parts)


def test_loading_keeps_containers_that_a_scheduler_needs(tmp_path: Path) -> None:
    parts = make()
    save(tmp_path / "state.pth", **parts)
    load(tmp_path / "state.pth", **parts)
    assert type(parts["scheduler"].milestones) is Counter


def test_the_saved_state_is_not_written_into_by_what_follows(tmp_path: Path) -> None:
    parts = make()
    train(parts, 1)
    before = save(tmp_path / "state.pth", **parts)
    load(tmp_path / "state.pth", **parts)
    train(parts, 1)
    load(tmp_path / "state.pth", **parts)
    assert save(tmp_path / "again.pth", **parts) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.update(model=nn.Linear(3, 4)), r"model/0\.weight: in the checkpoint, not in model"),
        (
            lambda parts: parts["model"].double(),
            r"model/0\.weight\n    in the checkpoint: \(4, 3\) torch\.float32",
        ),
        (lambda parts: parts.pop("scaler"), "scaler: in the checkpoint, but not given"),
        (lambda parts: parts.update(more=nn.Linear(1, 1)), "more: not in the checkpoint"),
        (
            lambda parts: parts.update(optimizer=torch.optim.AdamW(parts["model"][0].parameters())),
            r"optimizer: parameters by group\n    in the checkpoint: \[6\]\n    in optimizer: \[2\]",
        ),
        (
            lambda parts: parts.update(optimizer=torch.optim.AdamW(list(parts["model"].parameters())[::-1])),
            r"optimizer/state\{0\}/exp_avg\n    in the checkpoint: \(4, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_changed(
    change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path
) -> None:
    parts = make()
    train(parts, 2)
    save(tmp_path / "state.pth", **parts)
    other = make()
    change(other)
    before = live_digest(other)
    with pytest.raises(BadInputError, match=message):
        load(tmp_path / "state.pth", **other)
    assert live_digest(other) == before


class Forgetful:
    """A part that does not take over what it was given."""

    def __init__(self) -> None:
        self.value = 0

    def state_dict(self) -> dict[str, int]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass


def test_a_part_that_does_not_become_what_was_saved_is_named(tmp_path: Path) -> None:
    part, model = Forgetful(), nn.Linear(2, 2)
    part.value = 3
    save(tmp_path / "state.pth", part=part, model=model)
    other = nn.Linear(2, 2)
    before = tree_digest(states_of({"model": other}))
    with pytest.raises(BadInputError, match="did not become what was saved\n  part/value: 3 != 0"):
        load(tmp_path / "state.pth", part=Forgetful(), model=other)
    assert tree_digest(states_of({"model": other})) == before


class Broken(Forgetful):
    """A part whose own code fails."""

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise KeyError("mine")


def test_a_part_that_fails_leaves_the_others_as_they_were(tmp_path: Path) -> None:
    save(tmp_path / "state.pth", model=nn.Linear(2, 2), part=Forgetful())
    other = nn.Linear(2, 2)
    before = tree_digest(states_of({"model": other}))
    with pytest.raises(BadInputError, match="does not fit part\n  KeyError: 'mine'"):
        load(tmp_path / "state.pth", model=other, part=Broken())
    assert tree_digest(states_of({"model": other})) == before


class Counts:
    """A part whose state is a mapping with something of its own."""

    def __init__(self) -> None:
        self.counts: defaultdict[str, int] = defaultdict(int)

    def state_dict(self) -> dict[str, Any]:
        return {"counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.counts = state["counts"]


def test_a_defaultdict_keeps_its_factory(tmp_path: Path) -> None:
    part, other = Counts(), Counts()
    part.counts["a"] += 2
    save(tmp_path / "state.pth", part=part)
    load(tmp_path / "state.pth", part=other)
    other.counts["b"] += 1
    assert other.counts == {"a": 2, "b": 1}


def many_parts() -> dict[str, Any]:
    parameters = nn.ParameterList([torch.full((2,), 0.5) for _ in range(3000)])
    return {"model": parameters, "optimizer": torch.optim.AdamW(parameters, 0.1)}


@pytest.mark.system
def test_a_model_of_thousands_of_parameters_is_saved_and_loaded(tmp_path: Path) -> None:
    parts = many_parts()
    sum(each.sum() for each in parts["model"]).backward()
    parts["optimizer"].step()
    save(tmp_path / "new/directory/state.pth", **parts)
    other = many_parts()
    load(tmp_path / "new/directory/state.pth", **other)
    assert tree_digest(states_of(other)) == tree_digest(states_of(parts))
    leaves = ledger_leaves(states_of(parts), {})
    assert leaves.keys() == {"model", "optimizer"}  # a line for each tensor would outgrow the states


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_strides_are_part_of_a_state(kind: str, tmp_path: Path) -> None:
    """A fused optimizer computes other bits over moments whose strides are not the parameter's."""

    def make_parts() -> dict[str, Any]:
        torch.manual_seed(0)
        model = nn.Conv2d(8, 16, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        own = {"AdamW": lambda: torch.optim.AdamW(model.parameters(), 0.1, fused=True),
               "SGD": lambda: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)}  # fmt: skip
        return {"model": model, "optimizer": own[kind]()}

    def step(parts: dict[str, Any]) -> None:
        inputs = torch.randn(4, 8, 6, 6)
        parts["optimizer"].zero_grad()
        parts["model"](inputs).square().mean().backward()
        parts["optimizer"].step()

    def moments(parts: dict[str, Any]) -> list[tuple[int, ...]]:
        state = parts["optimizer"].state[parts["model"].weight]
        return [each.stride() for each in state.values() if each.ndim == 4]

    parts, other = make_parts(), make_parts()
    step(parts)
    save(tmp_path / "state.pth", **parts)
    step(parts)
    load(tmp_path / "state.pth", **other)
    assert moments(other) == moments(parts) == [parts["model"].weight.stride()] * (2 if kind == "AdamW" else 1)
    step(other)
    assert live_digest(other) == live_digest(parts)
    # the negative twin: moments in another order of memory
    load(tmp_path / "state.pth", **other)
    state = other["optimizer"].state[other["model"].weight]
    state.update({name: each.contiguous() for name, each in state.items() if each.ndim == 4})
    step(other)
    assert live_digest(other) != live_digest(parts)


@pytest.mark.parametrize("damage", ["cut", "zeros", "another file"])
def test_a_damaged_file_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "state.pth"
    parts = make()
    save(path, **parts)
    content = path.read_bytes()
    changed = {"cut": content[:-100], "zeros": content[:900] + bytes(300) + content[1200:], "another file": b"x"}
    path.write_bytes(changed[damage])
    before = live_digest(parts)
    with pytest.raises(BadInputError, match=r"state\.pth"):
        load(path, **parts)
    assert live_digest(parts) == before
