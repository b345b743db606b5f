"""How well the dimensions, and which images, are predicted."""

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.config import PreprocessingRule
from clip_hba_behavior.data.images import read_image
from clip_hba_behavior.data.things import DataError
from clip_hba_behavior.report.blocks import Gallery, Picture
from clip_hba_behavior.report.evaluation import Evaluation
from clip_hba_behavior.report.figure import Figure, Level, Panel, Series, Table
from clip_hba_behavior.rsa.dimensions import CORRECTION, dimension_correlations

SHARE_OF_FALSE = 0.05
_NUM_PICTURES = 6
_NUM_TOP = 3
_SIDE = 112  # pixels of a thumbnail; twice as many are kept for dense screens
_LONGEST_NAME = 34


def dimensions(evaluation: Evaluation) -> Figure:
    """Return the figure of each dimension's correlation with its targets, over the test images."""
    found = dimension_correlations(evaluation.test_predictions, evaluation.test_targets)
    order = np.argsort(-np.nan_to_num(found.r, nan=-2.0), kind="stable")
    is_sure = found.p_adjusted <= SHARE_OF_FALSE
    names = tuple(_short(evaluation.prompts[row]) for row in order)
    places: dict[bool, tuple[list[float], list[float]]] = {True: ([], []), False: ([], [])}
    for place, row in enumerate(order):
        x, y = places[bool(is_sure[row])]
        x.append(float(found.r[row]))
        y.append(float(place))
    number = len(found.r)
    sure = int(is_sure.sum())
    median = float(np.nanmedian(found.r))
    return Figure(
        "dimensions",
        f"Correlation of each dimension on the {found.num_images} test images",
        "Pearson’s correlation of predicted and measured values over the test images, of the model of "
        f"epoch {evaluation.epoch}, which was chosen by the loss of these images. Each p is two-sided, by "
        f"{found.permutations:,} permutations of the images, "
        "because most values are near zero and a few are large; the p of all "
        f"{found.num_tests} dimensions are corrected together ({CORRECTION}). Where the corrected p is "
        f"{SHARE_OF_FALSE} at most, about that share of the dimensions is expected to be there by chance.",
        f"{sure} of {number} dimensions correlate with their targets after correction; the median correlation is "
        f"{median:.2f}.",
        (
            Panel(
                (
                    Level(0.0, is_upright=True),
                    Series(*places[True], f"corrected p ≤ {SHARE_OF_FALSE}", 0, "points"),
                    Series(*places[False], f"corrected p > {SHARE_OF_FALSE}", 1, "points"),
                ),
                "Pearson’s correlation",
                x_range=(min(0.0, float(np.nanmin(found.r))) - 0.03, 1.03),
                y_names=names,
                height=140 + 15 * number,
            ),
        ),
        Table(
            ("dimension", "prompt", "r", "p", "p_adjusted"),
            [
                (
                    int(row),
                    evaluation.prompts[row],
                    *(float(each[row]) for each in (found.r, found.p, found.p_adjusted)),
                )
                for row in order
            ],
        ),
    )


def galleries(evaluation: Evaluation, rule: PreprocessingRule) -> list[Gallery]:
    """Return the test images that are predicted best and worst, with their largest dimensions.

    Args:
        evaluation: of the run.
        rule: how an image's colours become RGB, as the run has it.
    """
    errors = ((evaluation.test_predictions.astype(np.float64) - evaluation.test_targets) ** 2).mean(axis=1)
    order = np.argsort(errors, kind="stable")
    number = min(_NUM_PICTURES, len(order) // 2)
    chosen = {"Predicted best": order[:number], "Predicted worst": order[len(order) - number :][::-1]}
    return [
        Gallery(title, [_picture(evaluation, int(row), float(errors[row]), rule) for row in rows])
        for title, rows in chosen.items()
    ]


def _picture(evaluation: Evaluation, row: int, error: float, rule: PreprocessingRule) -> Picture:
    path = evaluation.test_images[row]
    return Picture(
        path.stem,
        _thumbnail(path, rule),
        [
            ("error", f"{error:.4g}"),
            ("predicted", _top(evaluation, evaluation.test_predictions[row])),
            ("measured", _top(evaluation, evaluation.test_targets[row])),
        ],
    )


def _top(evaluation: Evaluation, values: NDArray[np.float32]) -> str:
    largest = np.argsort(-values, kind="stable")[:_NUM_TOP]
    return "\n".join(f"{_short(evaluation.prompts[each])} {values[each]:.3g}" for each in largest)


def _thumbnail(path: Path, rule: PreprocessingRule) -> bytes | None:
    from PIL import Image, ImageOps

    try:
        image = read_image(path, rule)
    except DataError:  # it went since the run's data were read
        return None
    content = io.BytesIO()
    small = ImageOps.fit(image, (2 * _SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    small.save(content, "JPEG", quality=70, optimize=True)
    return content.getvalue()


def _short(prompt: str) -> str:
    return prompt if len(prompt) <= _LONGEST_NAME else prompt[: _LONGEST_NAME - 1].rstrip(" ,/") + "…"
