"""The parts of a batch that several processes compute, put together; the processes are threads here."""

import logging
from typing import Any

import pytest
import torch

from clip_hba_behavior import exact
from clip_hba_behavior.config import make_config
from clip_hba_behavior.model.operations import PortableOperations
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.record.signals import StopRequest
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.tree import to_bytes
from clip_hba_behavior.run import follow
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.processes import LostProcessError, Processes, UnequalProcessesError
from clip_hba_behavior.training.trainer import Trainer
from exact_tools import ProcessesInThreads, normal

ROWS = 11


class Played(Processes):
    """One of several processes that are threads of this one."""

    def __init__(self, rank: int, threads: ProcessesInThreads) -> None:
        super().__init__(rank, threads.barrier.parties)
        self._threads = threads

    def _reduce(self, values: torch.Tensor, how: Any) -> None:
        is_sum = "SUM" in str(how)
        values.copy_(self._threads.sum(values) if is_sum else self._threads.maximum(values))


def in_threads(size: int, work: Any) -> list[Any]:
    threads = ProcessesInThreads(size)
    return threads.run(lambda rank: work(Played(rank, threads)))


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_parts_are_all_rows_in_order_and_differ_by_one_at_most(size: int) -> None:
    for number in range(12):
        parts = [list(range(number))[Processes(rank, size).part(number)] for rank in range(size)]
        assert [row for part in parts for row in part] == list(range(number))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_rows_are_put_together_bit_for_bit() -> None:
    rows = normal(7, 3, seed=1)
    rows[0, 0], rows[1, 1], rows[6, 2] = -0.0, torch.nan, -torch.inf
    expected = rows.view(torch.int32)
    for found in in_threads(3, lambda processes: processes.together(rows[processes.part(7)], 7)):
        assert torch.equal(found.view(torch.int32), expected)


def test_all_learn_of_a_stop_by_the_same_sum() -> None:
    def names(processes: Played) -> list[str | None]:
        found = []
        for step in range(3):
            if step == 1 and processes.rank == 1:
                processes.asked.name = "SIGTERM"
            processes.maximum(torch.ones(1, dtype=torch.float64))
            assert processes.sum(torch.ones(2, 2, dtype=torch.int64)).tolist() == [[2, 2], [2, 2]]
            processes.agree()
            found.append(processes.agreed.name)
        return found

    assert in_threads(2, names) == [[None, *["a signal to another process"] * 2], [None, "SIGTERM", "SIGTERM"]]


def test_processes_that_differ_are_told_in_all_of_them() -> None:
    def outcome(processes: Played, digests: list[str]) -> str:
        try:
            processes.check_equal(digests[processes.rank], "their states after epoch 3")
        except UnequalProcessesError as error:
            return str(error)
        return "equal"

    same, other = "ab" * 32, "ab" * 5 + "ac" + "ab" * 26
    assert in_threads(2, lambda processes: outcome(processes, [same, same])) == ["equal", "equal"]
    for rank, message in enumerate(in_threads(2, lambda processes: outcome(processes, [same, other]))):
        assert "the 2 processes that share each batch differ in their states after epoch 3" in message
        assert f"digest in process {rank}: {[same, other][rank]}" in message


class _LeavingOneOut(Played):
    """Leaves out what the second process has of the first weight's gradient."""

    has_left_out = False

    def _reduce(self, values: torch.Tensor, how: Any) -> None:
        if self.rank == 1 and values.numel() == 24 * 16 + 1 and not self.has_left_out:
            values[:-1] = 0.0
            self.has_left_out = True
        super()._reduce(values, how)


def gradients(processes: Processes | None) -> str:
    """The digest of the gradients of two layers over a batch, or over this process's part of it."""
    operations = PortableOperations()
    part = slice(0, ROWS)
    if processes is not None:
        operations.share(processes)
        part = processes.part(ROWS)
    weights = [normal(*shape, seed=seed).requires_grad_() for seed, shape in enumerate([(24, 16), (8, 24)])]
    inputs, targets = normal(ROWS, 16, seed=5)[part], normal(ROWS, 8, seed=6)[part]
    hidden = operations.gelu(operations.linear(inputs, weights[0], None), is_quick=True)
    loss = operations.mse_loss(operations.linear(hidden, weights[1], None), targets)
    loss.backward()
    return digest([loss.detach(), *(weight.grad for weight in weights)])


@pytest.mark.parametrize("size", [2, 3, 12])
def test_gradients_of_parts_are_those_of_the_batch(size: int) -> None:
    assert in_threads(size, gradients) == [gradients(None)] * size


def test_a_part_that_is_left_out_of_one_gradient_gives_other_bits() -> None:
    """The negative twin."""
    threads = ProcessesInThreads(2)
    for found in threads.run(lambda rank: gradients(_LeavingOneOut(rank, threads))):
        assert found != gradients(None)


def portable_trainer(keys: dict[str, object], **changes: object) -> tuple[Trainer, dict[str, Any]]:
    config = resolve_config(make_config(keys | {"arithmetic": "portable"} | changes))
    return build_trainer(config, Session(logging.getLogger("test")))


@pytest.mark.parametrize(
    "changes",
    [
        {"perturb_type": "label_shuffle", "perturb_epoch": 1},
        {"perturb_type": "image_noise", "perturb_epoch": 1},
        {"perturb_type": "uniform_images", "perturb_epoch": 1},
        {"augmentation": ["random_resized_crop", "color_jitter"]},
    ],
    ids=lambda changes: str(next(iter(changes.values()))),
)
def test_each_process_has_its_part_of_the_same_batches(
    small_config: dict[str, object], changes: dict[str, object]
) -> None:
    """Batches of 10, 10 and 2 images in three processes: of the last one the first process has none."""
    trainer, _ = portable_trainer(small_config, batch_size=10, train_portion=0.375, **changes)
    order = torch.arange(22)
    expected = list(trainer._batches(order))
    parts = []
    for rank in range(3):
        trainer.processes = Processes(rank, 3)
        parts.append(list(trainer._batches(order)))
    assert [len(part.features) for part in parts[0]] == [3, 3, 0]
    for batch, *own in zip(expected, *parts, strict=True):
        assert torch.equal(torch.cat([part.features for part in own]), batch.features)
        for part in own:  # of these a process takes its part within the step; the record is of all
            assert torch.equal(part.rows, batch.rows)
            assert torch.equal(part.targets, batch.targets)
            assert part.pixels_digest == batch.pixels_digest


def test_an_image_less_part_has_gradients_of_zero(small_config: dict[str, object]) -> None:
    trainer, _ = portable_trainer(small_config, vision_layers=2)
    trainer.begin()
    predictions = trainer.model(trainer.inputs.image_features(torch.arange(0)), trainer.inputs.prompt_features)
    assert predictions.shape == (0, 66)
    exact.total(predictions).backward()
    assert all(not value.grad.any() for value in trainer.parameters.values() if value.grad is not None)
    assert all(value.grad is not None for value in trainer.parameters.values())


def test_a_process_that_reads_other_data_says_so(
    small_config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, environment = portable_trainer(small_config)
    trainer.begin()
    theirs = follow._comparable(environment) | {"targets": "another digest"}
    work = follow.Work(trainer.config.model_dump(), to_bytes(trainer.snapshot().as_dict()), True, theirs)
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(BadInputError) as error:
        follow._train_along(work, Processes(1, 2), Session(logging.getLogger("test")))
    assert "process 1 of 2 cannot train along: its targets are others" in str(error.value)
    assert "in process 0: another digest" in str(error.value)
    assert environment["digests"]["targets"] in str(error.value)


def test_processes_that_nobody_tells_where_to_meet_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():  # another launcher's, without MASTER_ADDR
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(LostProcessError, match=r"cannot meet: .*MASTER_ADDR(.|\n)*start them with torchrun"):
        Processes.join(0, 2, 2, StopRequest())


def test_a_process_takes_the_gpu_of_its_number() -> None:
    beside = follow._device_beside
    launch = follow.Launch(rank=5, size=8, local_rank=1, local_size=4)
    assert [beside(name, launch) for name in ("cpu", "cuda", "cuda:2")] == ["cpu", "cuda:1", "cuda:3"]
