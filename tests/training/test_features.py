"""Features held on the device, sent ahead, or read as they are needed: the same rows, and the same run."""

import dataclasses
import logging
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_hba_behavior.config import make_config
from clip_hba_behavior.model.feature_cache import Bounds, FeatureCache
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.advance import advance
from clip_hba_behavior.training.features import Features, free_memory
from clip_hba_behavior.training.trainer import Trainer

CPU = torch.device("cpu")
NUM_BYTES = 4 * 7 * 2 * 3
PLENTY = 10**12
WAYS: dict[str, int | None] = {"read": None, "held": PLENTY, "sent ahead": 0}
NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU = pytest.param("cuda:0", marks=[pytest.mark.cuda, NO_GPU])


def cache(tmp_path: Path, has_nan: bool = False) -> FeatureCache:
    def compute(chunks: Sequence[Bounds]) -> Generator[tuple[torch.Tensor, list[str]], None, None]:
        for start, stop in chunks:
            rows = torch.arange(start, stop).float()[:, None, None] + torch.rand(stop - start, 2, 3)
            yield rows / (rows[:, :1, :1] - 3.5).round() if has_nan else rows, []

    return FeatureCache(tmp_path, {"is": "a test"}, 7, (2, 3), 3, compute)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_rows_bit_for_bit(way: str, device: str, tmp_path: Path) -> None:
    rows = cache(tmp_path, has_nan=True)
    features = Features(rows, torch.device(device), WAYS[way])
    wanted = [torch.tensor(each, dtype=torch.int64) for each in ([6, 0, 0], [], [3], [1, 2, 5])]
    batches = list(features.batches(wanted))
    for found in (batches, [features.take(each) for each in wanted]):
        for each, indices in zip(found, wanted, strict=True):
            assert each.device == torch.device(device)
            assert each.cpu().numpy().tobytes() == rows.take(indices).numpy().tobytes()


def test_rows_that_take_half_of_what_is_free_are_held_and_the_log_says_so(tmp_path: Path) -> None:
    rows = cache(tmp_path)
    assert Features(rows, CPU, None).describe() is None
    assert "are held on cpu, which had" in str(Features(rows, CPU, 2 * NUM_BYTES).describe())
    said = str(Features(rows, CPU, 2 * NUM_BYTES - 1).describe())
    assert said.startswith("Features of 0.00 GB are more than half of the 0.00 GB free on cpu: each batch is read")
    assert free_memory(CPU) is None


def test_a_batch_is_on_its_way_before_the_one_before_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = cache(tmp_path)
    asked: list[list[int]] = []
    take = rows.take
    monkeypatch.setattr(rows, "take", lambda indices: (asked.append(indices.tolist()), take(indices))[1])
    batches = [torch.tensor([each]) for each in range(4)]
    next(iter(Features(rows, CPU, 0).batches(batches)))
    assert asked == [[0], [1]]
    asked.clear()
    next(iter(Features(rows, CPU, None).batches(batches)))
    assert asked == [[0]]


def trainer_with(way: str, keys: dict[str, Any]) -> Trainer:
    trainer, _ = build_trainer(resolve_config(make_config(keys)), Session(logging.getLogger("test")))
    inputs = trainer.inputs
    features = Features(inputs.image_cache, inputs.device, WAYS[way])
    trainer.inputs = dataclasses.replace(inputs, features=features)
    trainer.begin()
    return trainer


def test_a_run_has_the_same_bits_whichever_way_its_features_come(small_config: dict[str, Any]) -> None:
    found = {}
    for way in [*WAYS, "held wrongly"]:
        trainer = trainer_with(way.removesuffix(" wrongly"), small_config)
        held = trainer.inputs.features._held
        if way == "held wrongly":
            assert held is not None
            held[int(trainer.split.train[0])] += 1e-4
        found[way] = (list(advance(trainer, 1)), trainer.snapshot().digest())
    assert found["held"] == found["sent ahead"] == found["read"]
    assert found["held wrongly"][1] != found["held"][1]
