"""What a run's model predicts, at any of its epochs, for the images that it was not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.data.things import read_prompts
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.snapshot import restore_parameters
from clip_hba_behavior.run.assembly import is_synthetic, with_standin
from clip_hba_behavior.run.checkpoint import read_named
from clip_hba_behavior.run.checkpoint_files import position_in_name
from clip_hba_behavior.run.environment import changed_data
from clip_hba_behavior.run.replayer import Replayer
from clip_hba_behavior.use.request import named_checkpoint
from clip_hba_behavior.verification.files import RunFiles
from clip_hba_behavior.verification.replays import recorded_config


@dataclass(frozen=True)
class Predictions:
    """The predictions of one epoch's model.

    Attributes:
        epoch: number of completed epochs.
        held_out: `[48, 66] float32`, in the order of the human RDM.
        test: `[num_test, 66] float32`, of the test images of the run's own split.
    """

    epoch: int
    held_out: NDArray[np.float32]
    test: NDArray[np.float32]


class Evaluator:
    """A run's data and model, put together once; the features of images come from the cache, as in training.

    It seeds the random generators and sets the numerics of this process, as training does.

    Attributes:
        path: the run's directory.
        synthetic: whether its data are the synthetic data set.
        prompts: the 66 dimensions' names.
        human_rdm: `[48, 48] float64`.
        human_rdm_file: where it was read.
        held_out_paths: image files, in the order of the RDM.
        test_paths: image files.
        test_targets: `[num_test, 66] float32`.
        recorded: the results on record, by epoch and column.
    """

    def __init__(self, run: Path, keys: Mapping[str, Any], session: Session) -> None:
        """Read a run's data and build its model.

        Args:
            run: its directory.
            keys: of a configuration, where data and backbone are now.
            session: told of the progress.

        Raises:
            BadInputError: there is no such run, or data or backbone are not those that it recorded.
        """
        files = RunFiles(run)
        recorded = files.found.run.read_environment()
        config = recorded_config(files, keys)
        replayer = Replayer(config, session)
        self._trainer = replayer.trainer()
        self.path = files.path
        self.recorded = files.rows
        self.synthetic = is_synthetic(files.found.run.read_config())
        if changed := changed_data(recorded, replayer.environment()):
            raise BadInputError(
                f"data or weights are not those that {self.path} was trained with\n  "
                + "\n  ".join(changed)
                + "\n  put them back, or say where they are: --config FILE"
            )
        inputs, split = self._trainer.inputs, self._trainer.split
        with_data = with_standin(config)
        self.prompts = read_prompts(Path(str(with_data.prompts_file)))
        self.human_rdm = inputs.human_rdm
        self.human_rdm_file = Path(str(with_data.RDM48_triplet_dir))
        self.held_out_paths = inputs.image_paths[inputs.num_images() :]
        self.test_paths = tuple(inputs.image_paths[row] for row in split.test.tolist())
        self.test_targets: NDArray[np.float32] = inputs.targets[split.test.to(inputs.device)].cpu().numpy()

    def evaluate(self, epoch: int | None) -> Predictions:
        """Predict by the model after an epoch, with the bits of the run's own evaluation.

        Args:
            epoch: number of completed epochs; None for the best one, as `best.json` names it.

        Raises:
            BadInputError: there is no such checkpoint, or it does not fit the model.
        """
        path = named_checkpoint(self.path, epoch)
        self.load(read_named(path).parameters)
        return Predictions(position_in_name(path.name)[0], self.predict_held_out(), self.predict_test())

    def load(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Give the model an epoch's parameters.

        Raises:
            BadInputError: they do not fit.
        """
        restore_parameters(self._trainer.parameters, parameters)

    def predict_held_out(self) -> NDArray[np.float32]:
        """Predict the held-out images, `[48, 66] float32`, in the order of the human RDM."""
        found: NDArray[np.float32] = self._trainer.predict(self._trainer.inputs.inference_rows()).cpu().numpy()
        return found

    def predict_test(self) -> NDArray[np.float32]:
        """Predict the test images of the run's own split, `[num_test, 66] float32`."""
        found: NDArray[np.float32] = self._trainer.predict(self._trainer.split.test).cpu().numpy()
        return found
