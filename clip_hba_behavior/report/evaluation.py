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
from clip_hba_behavior.rsa.rank_correlation import correlation_distances, rank_correlation
from clip_hba_behavior.use.evaluation import Evaluator

Parameters = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """What the model that is looked at predicts.

    Attributes:
        epoch: its own: of those with a checkpoint, the one with the lowest test loss.
        predictions: `[48, 66] float32` of the held-out images.
        human_rdm: `[48, 48] float64`.
        human_rdm_file: where it was read.
        held_out: the held-out images' names.
        test_predictions: `[num_test, 66] float32`.
        test_targets: `[num_test, 66] float32`.
        test_images: their files.
        prompts: the names of the 66 dimensions.
    """

    epoch: int
    predictions: NDArray[np.float32]
    human_rdm: NDArray[np.float64]
    human_rdm_file: Path
    held_out: tuple[str, ...]
    test_predictions: NDArray[np.float32]
    test_targets: NDArray[np.float32]
    test_images: tuple[Path, ...]
    prompts: tuple[str, ...]

    def model_rdm(self) -> NDArray[np.float64]:
        """Return the model's RDM, `[48, 48] float64`, 1 - Pearson's correlation."""
        return correlation_distances(self.predictions)


@dataclass(frozen=True)
class EveryEpoch:
    """The RDM of each checkpoint's model.

    Attributes:
        rdms: by epoch, ascending: `[48, 48] float64` of the held-out images, 1 - Pearson's correlation.
        human_rdm: `[48, 48] float64`.
        largest_difference: of a recorded behavioural RSA from the one computed here; inf where one is undefined.
    """

    rdms: dict[int, NDArray[np.float64]]
    human_rdm: NDArray[np.float64]
    largest_difference: float


class Checkpoints:
    """A run's checkpoints, with the data and the backbone to predict by them."""

    def __init__(
        self,
        record: RunRecord,
        parameters: Mapping[int, Parameters],
        keys: Mapping[str, Any],
        device: str,
        session: Session,
    ) -> None:
        """Read the data, and build the model.

        Args:
            record: of the run.
            parameters: of its epochs, ascending, at least one of them after training.
            keys: of the configuration that are others than the run's, such as where the data are now.
            device: where to compute.
            session: told of the progress.

        Raises:
            BadInputError: data or backbone are not at hand, or not those that the run recorded.
        """
        self._record, self._parameters, self._session = record, parameters, session
        self._evaluator = Evaluator(record.path, {**keys, "device": device}, session)

    def best(self) -> Evaluation:
        """Predict by the model with the lowest test loss."""
        rows, evaluator = self._record.rows, self._evaluator
        epoch = min((each for each in self._parameters if each in rows), key=lambda each: rows[each]["test_loss"])
        evaluator.load(self._parameters[epoch])
        return Evaluation(
            epoch=epoch,
            predictions=evaluator.predict_held_out(),
            human_rdm=evaluator.human_rdm,
            human_rdm_file=evaluator.human_rdm_file,
            held_out=tuple(path.name for path in evaluator.held_out_paths),
            test_predictions=evaluator.predict_test(),
            test_targets=evaluator.test_targets,
            test_images=evaluator.test_paths,
            prompts=evaluator.prompts,
        )

    def every_epoch(self) -> EveryEpoch:
        """Predict the held-out images by each checkpoint."""
        rdms: dict[int, NDArray[np.float64]] = {}
        for done, (epoch, parameters) in enumerate(self._parameters.items(), start=1):
            self._evaluator.load(parameters)
            rdms[epoch] = correlation_distances(self._evaluator.predict_held_out())
            self._session.interruptible().report("predicting with checkpoints", done, len(self._parameters))
        human_rdm = self._evaluator.human_rdm
        return EveryEpoch(rdms, human_rdm, _largest_difference(self._record, rdms, human_rdm))


def _largest_difference(
    record: RunRecord, rdms: Mapping[int, NDArray[np.float64]], human_rdm: NDArray[np.float64]
) -> float:
    """Return by how much a recorded behavioural RSA differs from the one computed here, at most."""
    differences = [0.0]
    for epoch, rdm in rdms.items():
        if epoch in record.rows:
            rho, _ = rank_correlation(rdm, human_rdm)
            recorded = record.rows[epoch]["behavioral_rsa_rho"]
            if math.isnan(rho) or math.isnan(recorded):
                differences.append(0.0 if math.isnan(rho) and math.isnan(recorded) else math.inf)
            else:
                differences.append(abs(rho - recorded))
    return max(differences)
