"""One pass over test and held-out images: the bits are those of a pass over each, and the prompts cost once."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.standin import data_keys
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.evaluation import Evaluation, evaluate, in_batches_that_fit
from clip_hba_behavior.training.trainer import Trainer

BATCH = 5  # neither 12 test images nor 48 held-out ones are a multiple


@pytest.fixture(scope="module", params=["native", "portable"])
def trainer(request: pytest.FixtureRequest, standin_data: Path) -> Trainer:
    keys = {**data_keys(standin_data), "rank": 4, "num_threads": 1, "device": "cpu", "eval_batch_size": BATCH}
    config = resolve_config(make_config(keys | {"arithmetic": request.param}))
    trainer, _ = build_trainer(config, Session(logging.getLogger("test")))
    trainer.begin()
    return trainer


def evaluated(trainer: Trainer, batch: int) -> Evaluation:
    config = trainer.config.model_copy(update={"eval_batch_size": batch})
    return evaluate(config, trainer.model, trainer.inputs, trainer.split.test, trainer.processes)


def test_one_pass_gives_the_bits_of_a_forward_for_each_batch(trainer: Trainer) -> None:
    found = trainer.evaluate()
    test, held_out = trainer.split.test.split(BATCH), trainer.inputs.inference_rows().split(BATCH)

    @torch.no_grad()
    def forward(rows: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = trainer.model(trainer.inputs.image_features(rows), trainer.inputs.prompt_features)
        return result

    assert torch.equal(torch.from_numpy(found.held_out), torch.cat([forward(rows) for rows in held_out]))
    if trainer.config.is_portable():
        predictions = torch.cat([forward(rows) for rows in test]).double()
        loss = trainer.model.operations.mse_loss(predictions, trainer.inputs.targets[trainer.split.test].double())
        assert found.test_loss == loss.item()
        return
    total = 0.0
    for rows in test:
        total += functional.mse_loss(forward(rows), trainer.inputs.targets[rows]).item() * len(rows)
    assert found.test_loss == total / len(trainer.split.test)


def test_the_prompts_are_encoded_once(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode: Callable[[torch.Tensor], torch.Tensor] = trainer.model.encode_prompts

    def counted(features: torch.Tensor) -> torch.Tensor:
        calls.append(len(features))
        return encode(features)

    monkeypatch.setattr(trainer.model, "encode_prompts", counted)
    trainer.evaluate()
    assert calls == [66]


def test_the_batch_of_evaluation_changes_bits_in_native_arithmetic_alone(trainer: Trainer) -> None:
    few, many = evaluated(trainer, BATCH), evaluated(trainer, 64)
    same = few.test_loss == many.test_loss and few.held_out.tobytes() == many.held_out.tobytes()
    assert same == trainer.config.is_portable()


def test_batches_are_halved_until_the_memory_holds_them() -> None:
    tried = []

    def compute(batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        tried.append(len(batches[0]))
        if len(batches[0]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [rows * 2 for rows in batches]

    assert torch.equal(torch.cat(in_batches_that_fit(torch.arange(17), compute)), torch.arange(17) * 2)
    assert tried == [17, 9, 5, 3]
    assert [len(each) for each in in_batches_that_fit(torch.arange(0), compute)] == [0]


def test_one_image_that_does_not_fit_is_an_error() -> None:
    def compute(batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_batches_that_fit(torch.arange(3), compute)
