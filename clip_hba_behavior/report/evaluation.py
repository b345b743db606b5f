"""What the model of each checkpoint predicts, from a run's own data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation
from clip_hba_behavior.use.evaluation import Evaluator

Parameters = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What checkpoints predict of the held-out images and, the best one, of the test images.

    Attributes:
        predictions: by epoch, ascending: `[48, 66] float32` of the held-out images.
        human_rdm: `[48, 48] float64`.
        human_rdm_file: where it was read.
        held_out: the held-out images' names.
        best: the epoch of the model that is looked at: of those with a checkpoint, the lowest test loss.
        test_predictions: `[num_test, 66] float32` of that model.
        test_targets: `[num_test, 66] float32`.
        test_images: their files.
        prompts: the names of the 66 dimensions.
        largest_difference: of a recorded behavioural RSA from the one computed here; inf where one is undefined.
    """

    predictions: dict[int, NDArray[np.float32]]
    human_rdm: NDArray[np.float64]
    human_rdm_file: Path
    held_out: tuple[str, ...]
    best: int
    test_predictions: NDArray[np.float32]
    test_targets: NDArray[np.float32]
    test_images: tuple[Path, ...]
    prompts: tuple[str, ...]
    largest_difference: float

    def model_rdm(self, epoch: int) -> NDArray[np.float64]:
        """Return the RDM of an epoch's model, `[48, 48] float64`, 1 - Pearson's correlation."""
        return correlation_distances(self.predictions[epoch])


@numerics_left_as_they_were()
def evaluate(
    record: RunRecord,
    checkpoints: Mapping[int, Parameters],
    keys: Mapping[str, Any],
    device: str,
    session: Session,
) -> Evaluation:
    """Predict with each checkpoint of a run.

    Args:
        record: of the run.
        checkpoints: the parameters of its epochs, ascending, at least one of them after training.
        keys: of the configuration that are others than the run's, such as where the data are now.
        device: where to compute.
        session: told of the progress.

    Raises:
        BadInputError: data or backbone are not at hand, or not those that the run recorded.
    """
    evaluator = Evaluator(record.path, {**keys, "device": device}, session)
    recorded = [epoch for epoch in checkpoints if epoch in record.rows]
    best = min(recorded, key=lambda epoch: record.rows[epoch]["test_loss"])
    predictions: dict[int, NDArray[np.float32]] = {}
    for done, (epoch, parameters) in enumerate(checkpoints.items(), start=1):
        evaluator.load(parameters)
        predictions[epoch] = evaluator.predict_held_out()
        session.interruptible().report("predicting with checkpoints", done, len(checkpoints))
    evaluator.load(checkpoints[best])
    return Evaluation(
        predictions=predictions,
        human_rdm=evaluator.human_rdm,
        human_rdm_file=evaluator.human_rdm_file,
        held_out=tuple(path.name for path in evaluator.held_out_paths),
        best=best,
        test_predictions=evaluator.predict_test(),
        test_targets=evaluator.test_targets,
        test_images=evaluator.test_paths,
        prompts=evaluator.prompts,
        largest_difference=_largest_difference(record, predictions, evaluator.human_rdm),
    )


def _largest_difference(
    record: RunRecord, predictions: Mapping[int, NDArray[np.float32]], human_rdm: NDArray[np.float64]
) -> float:
    """Return by how much a recorded behavioural RSA differs from the one computed here, at most."""
    differences = [0.0]
    for epoch, values in predictions.items():
        if epoch in record.rows:
            rho, _ = rank_correlation(correlation_distances(values), human_rdm)
            recorded = record.rows[epoch]["behavioral_rsa_rho"]
            if math.isnan(rho) or math.isnan(recorded):
                differences.append(0.0 if math.isnan(rho) and math.isnan(recorded) else math.inf)
            else:
                differences.append(abs(rho - recorded))
    return max(differences)
