import logging
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.utils.data import DataLoader

from clip_hba_behavior.config import BatchOrder, make_config
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.rng import restore_rng_state
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.training.batch_order import draw_evaluation_seeds, draw_loader_seed, epoch_order
from clip_hba_behavior.training.trainer import Trainer
from fresh_process import Outcome
from run_tools import differences, write_config

ClipHba = Callable[..., Outcome]
RULES: tuple[BatchOrder, ...] = get_args(BatchOrder)
LATER_RULES = RULES[1:]
NUM_EPOCHS = 4
Epochs = list[tuple[list[int], bytes]]  # each epoch's order, and the global generator's state after it


def global_state() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def seed_and_split(seed: int) -> None:
    torch.manual_seed(seed)
    torch.randperm(11)  # the global generator never stands where the train loader's own begins


def epochs_of_real_loaders(rule: BatchOrder, seed: int, num_train: int, batch_size: int) -> Epochs:
    """Train and evaluate on nothing, with the loaders of each version of the earlier pipeline."""
    kind: dict[str, Any] = {"batch_size": batch_size, "collate_fn": list}
    if rule == "later_persistent":
        kind |= {"num_workers": 2, "persistent_workers": True, "multiprocessing_context": "forkserver"}
    own = {} if rule == "earlier" else {"generator": torch.Generator().manual_seed(seed)}
    seed_and_split(seed)
    train = DataLoader(range(num_train), shuffle=True, **own, **kind)
    test = DataLoader(range(5), **kind)
    rsa = DataLoader(range(6), **kind)
    list(test)
    epochs = []
    for _ in range(NUM_EPOCHS):
        order = [item for batch in train for item in batch]
        list(test)
        list(rsa)
        epochs.append((order, global_state()))
    return epochs


def epochs_of_the_rule(rule: BatchOrder, seed: int, num_train: int) -> Epochs:
    seed_and_split(seed)
    draw_loader_seed()
    epochs = []
    for epoch in range(1, NUM_EPOCHS + 1):
        order = epoch_order(rule, seed, epoch, num_train)
        draw_evaluation_seeds(rule, epoch)
        epochs.append((order.tolist(), global_state()))
    return epochs


@pytest.mark.parametrize(
    ("num_train", "batch_size"),
    [(8, 3), (9, 3), (1, 3), (26, 2)],
    ids=["a last batch of fewer", "whole batches", "one image", "more batches than are read ahead"],
)
@pytest.mark.parametrize("rule", RULES)
def test_orders_and_global_generator_are_those_of_real_loaders(
    rule: BatchOrder, num_train: int, batch_size: int
) -> None:
    expected = epochs_of_real_loaders(rule, 7, num_train, batch_size)
    assert epochs_of_the_rule(rule, 7, num_train) == expected


def test_two_rules_never_give_the_same_order() -> None:
    orders = {rule: [order for order, _ in epochs_of_the_rule(rule, 7, 37)] for rule in RULES}
    for one, other in combinations(RULES, 2):
        same = [left == right for left, right in zip(orders[one], orders[other], strict=True)]
        # the later two draw alike up to epoch 1: a worker that lives on shows in the second
        assert same == [{one, other} == set(LATER_RULES), False, False, False]


@pytest.mark.parametrize("rule", LATER_RULES)
def test_a_later_order_is_a_function_of_seed_and_epoch(rule: BatchOrder) -> None:
    in_turn = [epoch_order(rule, 7, epoch, 37).tolist() for epoch in range(1, 6)]
    torch.manual_seed(3)
    before = global_state()
    assert [epoch_order(rule, 7, epoch, 37).tolist() for epoch in (5, 2, 4)] == [in_turn[k] for k in (4, 1, 3)]
    assert global_state() == before
    assert epoch_order(rule, 8, 5, 37).tolist() != in_turn[4]
    assert len({tuple(order) for order in in_turn}) == 5


def train(clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any], rule: BatchOrder) -> Path:
    config = write_config(tmp_path / f"{rule}.yaml", small_config, batch_order=rule)
    outcome = clip_hba("train", config, "--run-dir", tmp_path / rule)
    assert outcome.code == 0, outcome.output
    return tmp_path / rule


@pytest.mark.system
@pytest.mark.parametrize("rule", LATER_RULES)
@pytest.mark.parametrize("epoch", [0, 2])
def test_resume_under_a_later_rule_equals_the_uninterrupted_run(
    rule: BatchOrder, epoch: int, clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    uninterrupted = train(clip_hba, tmp_path, small_config, rule)
    outcome = clip_hba("resume", uninterrupted, "--from-epoch", epoch, "--run-dir", tmp_path / "resumed")
    assert outcome.code == 0, outcome.output
    assert differences(uninterrupted, tmp_path / "resumed") == []
    outcome = clip_hba("resume", uninterrupted, "--set", "batch_order=earlier")
    assert outcome.code == 2
    assert f"batch_order\n    in the run: '{rule}'" in outcome.output


@pytest.mark.parametrize(
    ("rule", "draws"), [("earlier", [4, 4, 4, 4]), ("later", [2, 2, 2, 2]), ("later_persistent", [1, 0, 0, 0])]
)
def test_a_run_trains_and_draws_by_its_rule(
    rule: BatchOrder, draws: list[int], clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    run = train(clip_hba, tmp_path, small_config, rule)
    checkpoints = [read_checkpoint(checkpoint_path(run / "dora_params", epoch)) for epoch in range(5)]
    states = [checkpoint.whole_state().rng_state["torch_rng_state"] for checkpoint in checkpoints]
    for num_draws, before, after in zip(draws, states, states[1:], strict=False):
        torch.set_rng_state(before)
        for _ in range(num_draws):
            draw_loader_seed()
        assert torch.equal(torch.get_rng_state(), after)
    assert checkpoints[4].provenance["config"]["batch_order"] == rule


@pytest.mark.system
@pytest.mark.parametrize("rule", RULES)
def test_a_state_within_an_epoch_goes_on_in_that_epochs_order(
    rule: BatchOrder, clip_hba: ClipHba, tmp_path: Path, small_config: dict[str, Any]
) -> None:
    run = train(clip_hba, tmp_path, small_config, rule)
    config = RunDirectory(run).read_config()

    def new_trainer() -> Trainer:
        return build_trainer(config, Session(logging.getLogger("test")))[0]

    trainer = new_trainer()
    rows = trainer.split.train
    state = read_checkpoint(checkpoint_path(run / "dora_params", 2)).whole_state()
    restore_rng_state(state.rng_state)
    order = epoch_order(rule, config.random_seed, 3, len(rows))
    trainer.restore(state)
    steps, states = [], []
    for step in trainer.steps():
        steps.append(step)
        states.append(trainer.snapshot())
    assert len(steps) == 3
    expected = [
        trainer._batch_digest(batch, trainer.inputs.targets[batch])
        for batch in rows[order].split(config.batch_size)
    ]
    assert [step.batch_digest for step in steps] == expected
    complete = checkpoint_path(run / "dora_params", 3)
    for num_done, state in enumerate(states, start=1):
        resumed = new_trainer()
        resumed.restore(state)
        assert list(resumed.steps()) == steps[num_done:]
        resumed.finish_epoch()
        assert resumed.snapshot().digest() == read_checkpoint(complete).state_digest


def test_a_rule_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_order: found 'latest', expected 'earlier', 'later' or 'later_p"):
        make_config({"batch_order": "latest"})
