"""`clip-hba rdm`: a model's predictions of the held-out images and their RDM, as files for other tools."""

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.reproducibility.state.files import published_directory
from clip_hba_behavior.rsa import portable, rank_correlation
from clip_hba_behavior.use.held_out import HeldOut
from clip_hba_behavior.use.predict import Predictions, write_predictions
from clip_hba_behavior.use.trained_model import TrainedModel


def model_rdm(model: TrainedModel, predictions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the RDM of predictions, `[n, n]`: 1 - Pearson's correlation, computed as training does."""
    if model.config.is_portable():
        return portable.correlation_distances(predictions)
    return rank_correlation.correlation_distances(predictions)


def exactly_symmetric(rdm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an RDM, `[n, n]`, with its upper triangle below the diagonal too, and zeros on it; nan stays.

    In native arithmetic rounding leaves 1e-16 on the diagonal and between the triangles. The upper one, which
    every correlation here is of, keeps its bits.
    """
    upper = np.triu(rdm, k=1)
    found: NDArray[np.float64] = upper + upper.T
    np.fill_diagonal(found, np.where(np.isnan(np.diag(rdm)), np.nan, 0.0))
    return found


def write_rdm(
    out: Path,
    model: TrainedModel,
    held_out: HeldOut,
    predictions: NDArray[np.float32],
    about: Mapping[str, str | int],
) -> None:
    """Write a new directory; the same predictions give the same bytes.

    It holds `features.npy`, `[48, 66] float32`, and `file_names.txt`, as thingsvision writes them; the same as
    `predictions.csv`; and the RDM as `rdm.npy`, `[48, 48] float64`, as `rdm.csv`, and as `rdm.pkl`, which
    `rsatoolbox.rdm.load_rdm` opens.

    Args:
        out: the directory.
        model: whose predictions they are.
        held_out: the images.
        predictions: `[48, 66]`, of these.
        about: what rsatoolbox is to know of the model: its descriptors.

    Raises:
        FileExistsError: there is something already.
    """
    rdm = exactly_symmetric(model_rdm(model, predictions))
    with published_directory(out) as directory:
        (directory / "features.npy").write_bytes(_npy(predictions.astype("<f4", copy=False)))
        (directory / "file_names.txt").write_bytes("".join(f"{name}\n" for name in held_out.names).encode())
        named = Predictions(tuple(map(Path, held_out.names)), predictions, model.prompts, ())
        write_predictions(directory / "predictions.csv", named)
        (directory / "rdm.npy").write_bytes(_npy(rdm.astype("<f8", copy=False)))
        (directory / "rdm.csv").write_bytes(_csv(held_out.names, rdm))
        (directory / "rdm.pkl").write_bytes(_for_rsatoolbox(held_out.names, rdm, about))


def _npy(values: NDArray[np.floating]) -> bytes:
    content = io.BytesIO()
    np.save(content, values, allow_pickle=False)
    return content.getvalue()


def _csv(names: Sequence[str], rdm: NDArray[np.float64]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *names])
    writer.writerows([name, *map(repr, row)] for name, row in zip(names, rdm.tolist(), strict=True))
    return text.getvalue().encode()


def _for_rsatoolbox(names: Sequence[str], rdm: NDArray[np.float64], about: Mapping[str, str | int]) -> bytes:
    """Return the dict that rsatoolbox (0.3) makes RDMs of, pickled: builtins, and one NumPy array.

    Its other format, HDF5, would take a library more.
    """
    content = {
        "dissimilarities": rdm[np.triu_indices(len(rdm), k=1)][None],
        "dissimilarity_measure": "correlation",
        "descriptors": dict(about),
        "rdm_descriptors": {"index": [0]},
        "pattern_descriptors": {"index": list(range(len(names))), "image": list(names)},
    }
    return pickle.dumps(content, protocol=4)
