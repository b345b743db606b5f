"""What the model of each checkpoint predicts, from a run's own data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.config import make_config
from clip_hba_behavior.data.things import read_prompts
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import numerics_left_as_they_were
from clip_hba_behavior.reproducibility.state.snapshot import restore_parameters
from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation
from clip_hba_behavior.run.assembly import build_trainer, with_standin
from clip_hba_behavior.run.environment import changed_data
from clip_hba_behavior.run.resolution import resolve_config

Parameters = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What checkpoints predict of the held-out images and, the best one, of the test images.

    Attributes:
        predictions: by epoch, ascending: `[48, 66] float32` of the held-out images.
        human_rdm: `[48, 48] float64`.
        held_out: the held-out images' names.
        best: the epoch of the model that is looked at: of those with a checkpoint, the lowest test loss.
        test_predictions: `[num_test, 66] float32` of that model.
        test_targets: `[num_test, 66] float32`.
        test_images: their files.
        prompts: the names of the 66 dimensions.
        largest_difference: of a recorded behavioural RSA from the one computed here.
    """

    predictions: dict[int, NDArray[np.float32]]
    human_rdm: NDArray[np.float64]
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
    assert record.config is not None
    given = record.config.model_dump() | dict(keys) | {"device": device}
    config = with_standin(resolve_config(make_config(given)))
    trainer, found = build_trainer(config, session)
    changed = changed_data(record.environment, found)
    if changed:
        raise BadInputError("data or weights are not those of the run\n  " + "\n  ".join(changed))
    prompts = read_prompts(Path(str(config.prompts_file)))
    inputs, test = trainer.inputs, trainer.split.test
    recorded = [epoch for epoch in checkpoints if epoch in record.rows]
    best = min(recorded, key=lambda epoch: record.rows[epoch]["test_loss"])
    predictions: dict[int, NDArray[np.float32]] = {}
    test_predictions = torch.empty(0)
    for done, (epoch, parameters) in enumerate(checkpoints.items(), start=1):
        restore_parameters(trainer.parameters, parameters)
        predictions[epoch] = trainer.predict(inputs.inference_rows()).cpu().numpy()
        if epoch == best:
            test_predictions = trainer.predict(test).cpu()
        session.interruptible().report("predicting with checkpoints", done, len(checkpoints))
    names = [path.name for path in inputs.image_paths]
    return Evaluation(
        predictions=predictions,
        human_rdm=inputs.human_rdm,
        held_out=tuple(names[row] for row in inputs.inference_rows().tolist()),
        best=best,
        test_predictions=test_predictions.numpy(),
        test_targets=inputs.targets[test.to(inputs.device)].cpu().numpy(),
        test_images=tuple(inputs.image_paths[row] for row in test.tolist()),
        prompts=prompts,
        largest_difference=_largest_difference(record, predictions, inputs.human_rdm),
    )


def _largest_difference(
    record: RunRecord, predictions: Mapping[int, NDArray[np.float32]], human_rdm: NDArray[np.float64]
) -> float:
    """Return by how much a recorded behavioural RSA differs from the one computed here, at most."""
    differences = [0.0]
    for epoch, values in predictions.items():
        if epoch in record.rows:
            rho, _ = rank_correlation(correlation_distances(values), human_rdm)
            difference = abs(rho - record.rows[epoch]["behavioral_rsa_rho"])
            differences.append(0.0 if math.isnan(difference) else difference)
    return max(differences)
