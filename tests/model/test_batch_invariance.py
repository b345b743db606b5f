"""An image's features and predictions are the same bits alone and in any batch."""

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

from clip_hba_behavior.model.clip import Clip, TowerName
from clip_hba_behavior.model.clip_hba import FrozenPrefix
from clip_hba_behavior.model.operations import PortableOperations
from clip_hba_behavior.training.inputs import compute_in_chunks
from twin_tools import Data, Twin, standin_data_of

NUM_IMAGES, NUM_PROMPTS = 9, 12
ORDER = torch.tensor([4, 0, 8, 3, 7, 1, 6, 2, 5])
PARTS = [[index] for index in range(NUM_IMAGES)] + [[0, 1, 2, 3, 4, 5, 6], [7, 8], [3, 8, 3]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def standin(standin_data: Path) -> Iterator[tuple[Clip, Data]]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    backbone, data = standin_data_of(standin_data)
    yield backbone, data.part(NUM_IMAGES, NUM_PROMPTS)
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module", params=[1, 3], ids=["1 layer", "3 layers"])
def portable(request: pytest.FixtureRequest, standin: tuple[Clip, Data]) -> Twin:
    twin = Twin("portable", *standin, (request.param, request.param), rank=4)
    twin.draw()
    return twin


def test_features_do_not_depend_on_the_chunk(standin: tuple[Clip, Data], portable: Twin) -> None:
    backbone, data = standin
    vision, text = (
        FrozenPrefix(backbone, tower, portable.layers[0], PortableOperations()) for tower in get_args(TowerName)
    )
    for chunk_size in (1, 7, 64):
        assert torch.equal(portable.image_features, compute_in_chunks(vision, data.pixels, chunk_size, CPU))
    shuffled = compute_in_chunks(vision, data.pixels[ORDER], 7, CPU)
    assert torch.equal(portable.image_features[ORDER], shuffled)
    for part in (slice(0, 1), slice(4, 11)):
        assert torch.equal(portable.prompt_features[part], text(data.token_ids[part], data.ends[part]))


def test_predictions_do_not_depend_on_the_batch(portable: Twin) -> None:
    whole = portable.predict(torch.arange(NUM_IMAGES))
    assert torch.equal(whole[ORDER], portable.predict(ORDER))
    for part in PARTS:
        assert torch.equal(whole[part], portable.predict(torch.tensor(part))), part


def test_gradients_do_not_depend_on_the_order_in_a_batch(portable: Twin) -> None:
    gradients = []
    for rows in (torch.arange(NUM_IMAGES), ORDER):
        portable.backward(rows)
        gradients.append([value.grad for value in portable.parameters.values() if value.grad is not None])
    assert len(gradients[0]) == 3 * sum(portable.layers)
    assert all(map(torch.equal, *gradients))


def test_native_predictions_do(standin: tuple[Clip, Data]) -> None:
    """The failed control of the tests above."""
    twin = Twin("native", *standin, (3, 3), rank=4)
    twin.draw()
    whole = twin.predict(torch.arange(NUM_IMAGES))
    assert not all(torch.equal(whole[part], twin.predict(torch.tensor(part))) for part in PARTS)
