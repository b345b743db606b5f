"""`clip-hba odd-one-out`: how often a model picks the image that people found least like the other two."""

from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.data.image_files import images_below
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.philox import stream_of, uniform
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text, quote
from clip_hba_behavior.use.request import CHANCE

RESAMPLES = 10_000
LEVEL = 0.95
SIMILARITIES = ("dot product", "cosine")
_MAX_BYTES = 512 * MIB  # the 4.7 million triplets of THINGS have some 70
_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Accuracy:
    """How often the odd one out was picked.

    Attributes:
        similarity: by which measure.
        share: of the triplets. One of several equally dissimilar images counts as its share of a guess.
        interval: the percentile interval of the share at `LEVEL`, triplets resampled.
        num_ties: triplets in which several images were equally odd.
    """

    similarity: str
    share: float
    interval: tuple[float, float]
    num_ties: int

    def relative_to(self, ceiling: float) -> float:
        """Return where the share is between chance (0) and the noise ceiling (1)."""
        return (self.share - CHANCE) / (ceiling - CHANCE)


def list_images(source: Path) -> list[Path]:
    """Return the images that the indices of triplets mean, the one of index 0 first.

    Args:
        source: a directory, whose images count in the order of their sorted names, as THINGS' concepts do; or a
            text file with one path a line, relative to its own directory.

    Raises:
        BadInputError: it is not there or cannot be read, or there are no images in it.
    """
    if source.is_dir():
        images, _ = images_below(source)
        images.sort(key=lambda path: path.name)  # in folders of concepts as in one
    else:
        try:
            with open_text(source, 16 * MIB, encoding="utf-8-sig") as file:
                lines = file.read().removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(
                f"--images {source} cannot be read: {error}\n"
                "  give a directory of images, or a text file with one path a line"
            ) from error
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise BadInputError(f"{source}, line {number}: it is empty\n  give one path a line")
        images = [source.parent / line for line in lines]
    if not images:
        raise BadInputError(f"there are no images in {source}\n  give the directory of the images")
    return images


def read_triplets(path: Path, odd: str, num_images: int) -> NDArray[np.int64]:
    """Read triplets: three 0-based indices of images a line, separated by blanks, tabs or commas.

    Args:
        path: of the text file.
        odd: which column is the odd one out: `first` or `last`.
        num_images: how many images there are.

    Returns:
        `[triplets, 3] int64`, the odd one out last.

    Raises:
        BadInputError: the file cannot be read; or a line, which is named, has not three indices of images.
    """
    found = array("q")
    try:
        with open_text(path, _MAX_BYTES, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                found.extend(_triplet(path, number, line, num_images))
    except (OSError, UnicodeDecodeError) as error:
        raise BadInputError(
            f"{path} cannot be read: {error}\n  give a text file with three indices a line"
        ) from error
    if not found:
        raise BadInputError(f"{path} has no triplets: it is empty\n  give three indices a line")
    triplets = np.frombuffer(found, dtype=np.int64).reshape(-1, 3)
    return triplets if odd == "last" else triplets[:, [1, 2, 0]]


def _triplet(path: Path, number: int, line: str, num_images: int) -> tuple[int, int, int]:
    cells = line.replace(",", " ").split()
    try:
        if "_" in line or not line.isascii():  # int takes more than a writer of triplets means
            raise ValueError
        first, second, third = map(int, cells)
    except ValueError:
        raise BadInputError(
            f"{path}, line {number}: no triplet\n  found:    {quote(line.strip())}\n"
            "  expected: three integers, separated by blanks, tabs or commas"
        ) from None
    for index in (first, second, third):
        if not 0 <= index < num_images:
            raise BadInputError(
                f"{path}, line {number}: index {index} means no image\n"
                f"  expected: 0 to {num_images - 1}, for {num_images} images\n"
                "  give the images that the triplets are about: --images"
            )
    if len({first, second, third}) < 3:
        raise BadInputError(
            f"{path}, line {number}: an image is in it twice\n  found:    {quote(line.strip())}\n"
            "  expected: three different indices"
        )
    return first, second, third


def odd_one_out_accuracy(
    predictions: NDArray[np.float32], triplets: NDArray[np.int64], similarity: str, resamples: int = RESAMPLES
) -> Accuracy:
    """Return how often the two most similar images of a triplet are the two that people left.

    Args:
        predictions: `[images, 66]`.
        triplets: `[triplets, 3]`, the odd one out last.
        similarity: of two images: `dot product` or `cosine` of their predictions.
        resamples: of the triplets, from a fixed stream.
    """
    rows = predictions.astype(np.float64)
    if similarity == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    alike = rows @ rows.T
    scores = np.empty(len(triplets))
    num_ties = 0
    for start in range(0, len(triplets), _AT_ONCE):
        one, other, odd = triplets[start : start + _AT_ONCE].T
        # pairs in the order of the image that each leaves out: the odd one, then the other two
        pairs = np.stack([alike[one, other], alike[other, odd], alike[one, odd]])
        most = pairs == pairs.max(axis=0)
        ties = most.sum(axis=0)
        scores[start : start + _AT_ONCE] = most[0] / ties
        num_ties += int((ties > 1).sum())
    return Accuracy(similarity, float(scores.mean()), _interval(scores, resamples), num_ties)


def _interval(scores: NDArray[np.float64], resamples: int) -> tuple[float, float]:
    """Return the percentile interval of the mean score, triplets resampled with replacement.

    Scores take few values, so a resample is a multinomial count of each: drawn as such, one value after the other,
    which takes no longer for many triplets. Each count is the binomial quantile of a uniform number.
    """
    from scipy.stats import binom  # takes long, and nothing else here needs it

    values, counts = np.unique(scores, return_counts=True)
    draws = uniform(stream_of("resamples of triplets").random_raw(resamples * len(values)))
    left, totals = np.full(resamples, float(len(scores))), np.zeros(resamples)
    behind = len(scores)  # triplets with this value or a later one
    for value, count, drawn in zip(values, counts, draws.reshape(len(values), resamples), strict=True):
        number = binom.ppf(drawn, left, count / behind)
        totals += value * number
        left -= number
        behind -= count
    low, high = np.quantile(totals / len(scores), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
