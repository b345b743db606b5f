from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from clip_hba_behavior.reproducibility.record.epoch import Contradiction, Epoch, compare_epochs
from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.digest import digest, leaves


@dataclass(frozen=True)
class Tree:
    """A state of a loop that knows nothing of CLIP."""

    content: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return self.content

    def leaves(self) -> Iterator[tuple[str, Any]]:
        return leaves(self.content)

    def digest(self) -> str:
        return digest(self.content)


def epoch(loss: float = 2.0, weight: float = 1.0, row: float = 3.0) -> Epoch:
    end = {"state": {"weight": f"digest of {weight}"}, "metrics": {"test_loss": row}}
    return Epoch(
        4,
        end=Tree({"parameters": {"weight": torch.tensor([weight, 0.0])}, "epoch": 4}),
        steps={1: {"batch": "a", "loss": 1.0}, 2: {"batch": "b", "loss": loss}, END_OF_EPOCH: end},
        row={"test_loss": row},
    )


def named(differences: object) -> list[tuple[object, str, str]]:
    return [(each.step, each.source, each.name) for each in differences]  # type: ignore[attr-defined]


def test_equal_epochs_do_not_differ_though_their_tensors_are_others() -> None:
    assert compare_epochs(epoch(), epoch()) == ()


def test_differences_come_in_the_order_of_time() -> None:
    assert named(compare_epochs(epoch(), epoch(loss=2.5, weight=1.5, row=3.5))) == [
        (2, "ledger", "loss"),
        (END_OF_EPOCH, "ledger", "weight"),
        (END_OF_EPOCH, "ledger", "metrics/test_loss"),
        (END_OF_EPOCH, "state", "parameters/weight"),
        (END_OF_EPOCH, "results", "test_loss"),
    ]


def test_bits_are_compared_and_not_values() -> None:
    assert named(compare_epochs(epoch(loss=0.0), epoch(loss=-0.0))) == [(2, "ledger", "loss")]
    assert compare_epochs(epoch(loss=float("nan")), epoch(loss=float("nan"))) == ()
    (_, in_state) = compare_epochs(epoch(weight=0.0), epoch(weight=-0.0))
    assert (in_state.source, in_state.is_tensor, in_state.largest) == ("state", True, 0.0)


def test_where_a_source_is_silent_nothing_differs() -> None:
    whole = epoch()
    assert compare_epochs(whole, Epoch(4)) == ()
    part = Epoch(4, end=Tree({"parameters": {"weight": torch.tensor([1.0, 0.0])}}), steps={2: {"loss": 2.5}})
    assert named(compare_epochs(whole, part)) == [(2, "ledger", "loss")]


def test_a_sources_own_contradictions_differ_from_everything() -> None:
    damaged = Epoch(4, contradictions=(Contradiction("file", "the file is damaged"),))
    (found,) = compare_epochs(damaged, epoch())
    assert (found.source, found.name) == ("records", "the file is damaged")
