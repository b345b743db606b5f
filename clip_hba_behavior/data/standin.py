"""The synthetic data set: pictures drawn from 66-d vectors, in THINGS format; and where the small CLIP is.

THINGS images and CLIP's weights cannot be shipped. This data set can: its targets are drawn at random with the
statistics of rescaled SPoSE embeddings, its pictures are drawn from the targets, so a model can learn the one from
the other. Every number is made by integer or correctly rounded floating-point arithmetic (`+ - * / sqrt`, never
`exp`), so that the files hold the same bytes on every CPU.
"""

import io
import math
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.config import DATA_KEYS
from clip_hba_behavior.data.drawing import NUM_DIMENSIONS, colour_and_shape, draw_image
from clip_hba_behavior.data.standin_record import digest_of, digest_on_disk, recorded_digest, write_record
from clip_hba_behavior.reproducibility.state.files import replace
from clip_hba_behavior.reproducibility.state.philox import stream, uniform

__all__ = [
    "PROMPTS",
    "data_keys",
    "draw_image",
    "draw_latents",
    "standin_backbone_directory",
    "write_images",
    "write_standin_dataset",
]

PROMPTS: tuple[str, ...] = tuple(" ".join(colour_and_shape(dimension)) for dimension in range(NUM_DIMENSIONS))
"""What each dimension draws: "red circles", "orange squares", ... 66 of them, all different."""

RDM_NOISE = 1.8
"""Width of the human-like RDM's uniform noise in standard deviations of the distances: leaves rho at 0.86."""

MAT_HEADER = b"MATLAB 5.0 MAT-file, the stand-in for RDM48_triplet.mat".ljust(116)


_TABLES = ("annotations.csv", "inference48.csv", "prompts.txt", "RDM48_triplet.mat")
_FILES = ("annotations.csv", "images", "inference48.csv", "RDM48_triplet.mat", "prompts.txt")  # as DATA_KEYS


class _Purpose(IntEnum):
    """Keeps the random streams of one seed apart."""

    TRAINING = 0
    HELD_OUT = 1
    RDM_NOISE = 2


def _uniform(seed: int, purpose: _Purpose, index: int, count: int) -> NDArray[np.float64]:
    """Draws `[count] float64` numbers between 0 and 1 (both excluded), a pure function of the arguments."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"cannot draw with seed {seed}: expected 0 to 2**64 - 1")
    return uniform(stream((seed, (purpose << 56) + index)).random_raw(count))


def _draw_row(seed: int, purpose: _Purpose, index: int) -> NDArray[np.float64]:
    """Draws one latent vector, `[66] float64`, each above 0 and below 100.

    A log-logistic value (few large ones, many small ones) whose median falls from 21 to 1 over the dimensions,
    bent below 100. Pooled: mean 5.5, standard deviation 9.6, median 2.3, 90th percentile 13, 99th 51; SPoSE has
    5.7, 10.2, 2.0, 15 and 53.
    """
    drawn = _uniform(seed, purpose, index, NUM_DIMENSIONS)
    root = np.sqrt(drawn / (1.0 - drawn))
    median = 0.8 + 20.0 / (1.0 + np.arange(NUM_DIMENSIONS) / 2.0)
    value = median * (root * np.sqrt(root))
    bent: NDArray[np.float64] = 100.0 * value / (100.0 + value)
    return bent


def _draw_rows(num_images: int, seed: int, purpose: _Purpose) -> NDArray[np.float64]:
    rows = [_draw_row(seed, purpose, index) for index in range(num_images)]
    return np.array(rows, dtype=np.float64).reshape(num_images, NUM_DIMENSIONS)


def draw_latents(num_images: int, seed: int) -> NDArray[np.float64]:
    """Draws target vectors with the statistics of rescaled SPoSE embeddings.

    Args:
        num_images: How many.
        seed: 0 to 2**64 - 1. Row i is a pure function of (seed, i): it does not depend on `num_images`.

    Returns:
        `[num_images, 66] float64`, each above 0 and below 100.

    Raises:
        ValueError: If the seed is out of range.
    """
    return _draw_rows(num_images, seed, _Purpose.TRAINING)


def correlation_distances(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computes 1 - Pearson correlation between rows with exact sums, so that the bits do not depend on BLAS.

    Args:
        rows: `[n, 66]`.

    Returns:
        `[n, n] float64`, symmetric, zero on the diagonal.
    """
    centred = [row - math.fsum(row) / len(row) for row in rows]
    norms = [math.sqrt(math.fsum(row * row)) for row in centred]
    distances = np.zeros((len(rows), len(rows)))
    for i in range(len(rows)):
        for j in range(i):
            distance = 1.0 - math.fsum(centred[i] * centred[j]) / (norms[i] * norms[j])
            distances[i, j] = distances[j, i] = distance
    return distances


def _human_like_rdm(latents: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Makes a dissimilarity matrix `[n, n]` that agrees with the latents as well as people's judgements do."""
    rdm = correlation_distances(latents)
    lower = np.tril_indices(len(latents), -1)
    distances = rdm[lower]
    centred = distances - math.fsum(distances) / len(distances)
    deviation = math.sqrt(math.fsum(centred * centred) / len(distances))
    noise = _uniform(seed, _Purpose.RDM_NOISE, 0, len(distances)) - 0.5
    # Folded at zero: a dissimilarity is never negative.
    noisy = np.abs(distances + RDM_NOISE * deviation * noise)
    rdm[lower] = noisy
    rdm.T[lower] = noisy
    return rdm


def _csv_text(names: Sequence[str], latents: NDArray[np.float64]) -> str:
    header = ",".join(["", "image_name", *(str(dimension) for dimension in range(NUM_DIMENSIONS))])
    lines = [
        ",".join([str(index), name, *(repr(float(value)) for value in row)])
        for index, (name, row) in enumerate(zip(names, latents, strict=True))
    ]
    return "\n".join([header, *lines, ""])


def _mat_bytes(rdm: NDArray[np.float64]) -> bytes:
    import scipy.io  # takes long, and is needed only where the data set is drawn

    buffer = io.BytesIO()
    scipy.io.savemat(buffer, {"RDM48_triplet": rdm})  # type: ignore[arg-type]  # the stubs know paths only
    # SciPy writes the time into the text header; MATLAB and SciPy ignore that text.
    return MAT_HEADER + buffer.getvalue()[len(MAT_HEADER) :]


def _write(path: Path, content: bytes) -> bool:
    """Writes a file, unless it holds this already: another run may be reading it. Says whether it did."""
    if path.is_file() and path.read_bytes() == content:
        return False
    replace(path, content, is_lasting=False)
    return True


def _encode_image(name: str, latent: NDArray[np.float64], image_size: int) -> bytes:
    """Draws a picture in the format of a name's suffix."""
    suffix = Path(name).suffix.lower()
    buffer = io.BytesIO()
    if suffix == ".png":
        draw_image(latent, image_size).save(buffer, format="PNG")
    elif suffix in (".jpg", ".jpeg"):
        draw_image(latent, image_size).save(buffer, format="JPEG", quality=95, subsampling=0)
    else:
        raise ValueError(f"cannot draw {name}: found suffix {suffix!r}, expected .png, .jpg or .jpeg")
    return buffer.getvalue()


def write_images(
    directory: Path, names: Sequence[str], latents: NDArray[np.float64], image_size: int = 64
) -> None:
    """Draws a picture for each row.

    Args:
        directory: Where to put them; made if missing.
        names: File names; the suffix gives the format (.png, .jpg or .jpeg).
        latents: `[len(names), 66]`, drawn ones or real SPoSE rows.
        image_size: Width and height in pixels, a multiple of 8 and at least 32.

    Raises:
        ValueError: If the numbers of names and rows differ, or a suffix is unknown.
    """
    if len(names) != len(latents):
        raise ValueError(
            f"cannot draw images: {len(names)} names for {len(latents)} rows; expected one name a row"
        )
    directory.mkdir(parents=True, exist_ok=True)
    for name, latent in zip(names, latents, strict=True):
        _write(directory / name, _encode_image(name, latent, image_size))


def write_standin_dataset(
    directory: Path, num_images: int = 480, num_inference: int = 48, seed: int = 0, image_size: int = 64
) -> tuple[str, ...]:
    """Writes a drawn data set in THINGS format, the same bytes each time; one that is there is not drawn again.

    `annotations.csv` and `inference48.csv` (the held-out images) with an unnamed index, `image_name` and 66 target
    columns; `images/`; `RDM48_triplet.mat` with the held-out images' dissimilarities; `prompts.txt`. And
    `dataset.json`, the last to be written, by which the files are known again.

    Args:
        directory: Where to write; made if missing. Other files are replaced, equal ones left.
        num_images: Images to train and test on.
        num_inference: Held-out images for RSA, at least 3; 48 as in THINGS.
        seed: 0 to 2**64 - 1. Image i does not depend on the numbers of images.
        image_size: Width and height in pixels, a multiple of 8 and at least 32.

    Returns:
        The files that had been drawn before and were changed or removed since: they are as drawn again.

    Raises:
        ValueError: If an argument is out of range.
    """
    if num_inference < 3:
        raise ValueError(
            f"cannot make an RDM of {num_inference} held-out images: expected at least 3 (such as 48)"
        )
    names = [f"drawn_{index:04d}.png" for index in range(num_images)]
    held_out_names = [f"heldout_{index:04d}.png" for index in range(num_inference)]
    files = [*_TABLES, *(f"images/{name}" for name in (*names, *held_out_names))]
    numbers = {"num_images": num_images, "num_inference": num_inference, "seed": seed, "image_size": image_size}
    recorded = recorded_digest(directory, numbers)
    if recorded is not None and digest_on_disk(directory, files) == recorded:
        return ()
    latents = draw_latents(num_images, seed)
    held_out = _draw_rows(num_inference, seed, _Purpose.HELD_OUT)
    contents = [
        _csv_text(names, latents).encode(),
        _csv_text(held_out_names, held_out).encode(),
        "\n".join([*PROMPTS, ""]).encode(),
        _mat_bytes(_human_like_rdm(held_out, seed)),
        *(_encode_image(name, latent, image_size) for name, latent in zip(names, latents, strict=True)),
        *(_encode_image(name, latent, image_size) for name, latent in zip(held_out_names, held_out, strict=True)),
    ]
    (directory / "images").mkdir(parents=True, exist_ok=True)
    drawn = list(zip(files, contents, strict=True))
    written = [name for name, content in drawn if _write(directory / name, content)]
    with suppress(OSError):  # all files may be in a directory that cannot be written to
        write_record(directory, numbers, digest_of(drawn))
    return tuple(written) if recorded is not None else ()


def data_keys(directory: Path) -> dict[str, str]:
    """Gives the configuration's keys for a data set that `write_standin_dataset` wrote to a directory."""
    return {key: str(directory / name) for key, name in zip(DATA_KEYS, _FILES, strict=True)}


def standin_backbone_directory() -> Path:
    """Gives the directory of the small CLIP that comes with the package, in Hugging Face format."""
    return Path(__file__).parent / "standin_clip"
