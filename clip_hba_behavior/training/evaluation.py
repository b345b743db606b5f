"""The evaluation of a model: one pass over the test and the held-out images, with the prompts encoded once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from clip_hba_behavior import exact
from clip_hba_behavior.config import Config
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.rsa import portable, rank_correlation
from clip_hba_behavior.training.inputs import Inputs
from clip_hba_behavior.training.processes import Processes


@dataclass(frozen=True)
class Evaluation:
    """What one pass gives.

    Attributes:
        test_loss: the mean squared error on the test images.
        held_out: predictions of the held-out images, `[48, 66] float32`.
    """

    test_loss: float
    held_out: NDArray[np.float32]


@torch.no_grad()
def evaluate(
    config: Config, model: CLIPHBA, inputs: Inputs, test: torch.Tensor, processes: Processes
) -> Evaluation:
    """Evaluate a model, drawing nothing, and leave it in evaluation mode.

    In native arithmetic the bits depend on how many images are computed together, so that each batch is of
    `eval_batch_size` test images, or of as many held-out ones, and the loss is the mean of their means. In
    portable arithmetic they do not: see `predict`.

    Args:
        config: its arithmetic and `eval_batch_size`.
        model: with the parameters to evaluate.
        inputs: features, targets and prompts.
        test: the rows of the test images.
        processes: those that share the images.
    """
    held_out = inputs.inference_rows()
    targets = inputs.targets[test.to(inputs.device)]
    if config.is_portable():
        predictions = predict(config, model, inputs, torch.cat([test, held_out]), processes)
        of_test, of_held_out = predictions.split([len(test), len(held_out)])
        loss = exact.mse_loss(of_test.double(), targets.double()).item()
        return Evaluation(loss, of_held_out.cpu().numpy())
    size = config.eval_batch_size
    batches = [*test.split(size), *held_out.split(size)]
    parts = _predict(model, inputs, batches)
    losses = [functional.mse_loss(*each) for each in zip(parts, targets.split(size), strict=False)]
    numbers = torch.stack(losses).tolist()  # a GPU is waited for once
    total = sum(loss * len(rows) for loss, rows in zip(numbers, batches, strict=False))
    return Evaluation(total / len(test), torch.cat(parts[len(losses) :]).cpu().numpy())


@torch.no_grad()
def predict(
    config: Config, model: CLIPHBA, inputs: Inputs, rows: torch.Tensor, processes: Processes
) -> torch.Tensor:
    """Predict `[len(rows), 66] float32`, drawing nothing; the model is left in evaluation mode.

    On a GPU portable arithmetic computes as many images together as its memory holds; everywhere else these are
    `eval_batch_size`.
    """
    own = rows[processes.part(len(rows))]
    if config.is_portable() and inputs.device.type == "cuda":
        parts = in_batches_that_fit(own, lambda batches: _predict(model, inputs, batches))
    else:
        parts = _predict(model, inputs, own.split(config.eval_batch_size))
    return processes.together(torch.cat(parts), len(rows))


def in_batches_that_fit(
    rows: torch.Tensor, compute: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]
) -> list[torch.Tensor]:
    """Compute all rows together; where the device's memory does not hold that, in halves, and so on.

    Raises:
        OutOfMemoryError: it does not hold a single one.
    """
    size = max(1, len(rows))
    while True:
        try:
            return compute(rows.split(size))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
        size = (size + 1) // 2  # not in the handler: the error holds on to what was computed


def behavioral_rsa(
    config: Config, predictions: NDArray[np.float32], human_rdm: NDArray[np.float64]
) -> dict[str, float]:
    """Compare the held-out images' predicted RDM with the human one (Spearman's rho and its p)."""
    rsa = portable if config.is_portable() else rank_correlation
    rho, p_value = rsa.rank_correlation(rsa.correlation_distances(predictions), human_rdm)
    return {"behavioral_rsa_rho": rho, "behavioral_rsa_p_value": p_value}


def _predict(model: CLIPHBA, inputs: Inputs, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    model.eval()
    prompts = model.encode_prompts(inputs.prompt_features)
    return [model.similarities(model.encode_images(inputs.image_features(rows)), prompts) for rows in batches]
