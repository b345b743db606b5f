"""The held-out images of a run, on which its alignment with people is measured."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.config import Config
from clip_hba_behavior.data import things
from clip_hba_behavior.data.image_files import locate_images
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.environment import changed_files
from clip_hba_behavior.use.load import refuse_other_digests


@dataclass(frozen=True)
class HeldOut:
    """The held-out images in the order of their table, which is that of the human RDM.

    Attributes:
        names: of the images, as in the table.
        paths: of their files.
        human_rdm: `[48, 48] float64`.
    """

    names: tuple[str, ...]
    paths: tuple[Path, ...]
    human_rdm: NDArray[np.float64]


def held_out_of(config: Config, run: RunDirectory) -> HeldOut:
    """Find the held-out images of a run.

    Args:
        config: resolved, as a loaded model has it.
        run: which recorded what its data were.

    Raises:
        BadInputError: table, RDM or images are not there, or are not those that the run recorded.
    """
    table = things.read_annotations(Path(str(config.inference_csv_file)))
    human_rdm = things.read_human_rdm(Path(str(config.RDM48_triplet_dir)))
    found = {"inference_targets": things.targets_digest(table), "human_rdm": digest(torch.from_numpy(human_rdm))}
    refuse_other_digests(run, found)
    paths = locate_images(Path(str(config.img_dir)), table.image_names, config.image_suffix)
    now = {path.name: sha256[:16] for path, sha256 in zip(paths, things.image_digests(paths), strict=True)}
    recorded = run.read_environment()["images"]
    changed = changed_files({"images": {name: recorded.get(name) for name in now}}, {"images": now})
    if changed:
        raise BadInputError(
            f"the held-out images are not those that {run.path} recorded\n  " + "\n  ".join(changed) + "\n"
            "  put back what the run was trained with, or say where it is: img_dir in --config"
        )
    return HeldOut(table.image_names, paths, human_rdm)
