"""Figures of how the model's representation agrees with the human one."""

import math

import numpy as np
from numpy.typing import NDArray

from clip_hba_behavior.report.evaluation import Evaluation, EveryEpoch
from clip_hba_behavior.report.figure import Figure, Heat, Level, Mark, Panel, Series, Table, epoch_step
from clip_hba_behavior.report.history import perturbed_span
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.rsa.noise_ceiling import NoiseCeiling
from clip_hba_behavior.rsa.rank_correlation import rank_correlation, ranks_of
from clip_hba_behavior.rsa.resampling import LEVEL, bootstrap, spread

RESAMPLES = 1_000  # of the images, the same for every epoch


def alignment_over_epochs(record: RunRecord, every: EveryEpoch, ceiling: NoiseCeiling | None) -> Figure:
    """Return the figure of behavioural RSA over epochs, with a band from resampling the images."""
    epochs, rdms, human = list(every.rdms), list(every.rdms.values()), every.human_rdm
    estimates = bootstrap(rdms, human, RESAMPLES)
    spreads = [spread(estimates[:, column]) for column in range(len(epochs))]
    rho = [_rho(rdm, human) for rdm in rdms]
    low, high = [each[1] for each in spreads], [each[2] for each in spreads]
    x = [float(epoch) for epoch in epochs]
    marks: list[Mark] = [
        *perturbed_span(record),
        Series(x, rho, "" if ceiling is None else "this run", 0, "line", low, high),
        Series(x, rho, style=0, kind="points"),
    ]
    text = (
        f"Spearman’s rho of the model’s and the human RDM of {len(human)} images on which nothing "
        f"was trained. The band holds {LEVEL:.0%} of the values when images are drawn with replacement "
        f"({RESAMPLES:,} draws, pairs of an image with itself left out). Every epoch has the same draws, so a "
        "difference between epochs can be surer than the bands suggest."
    )
    if ceiling is not None and not math.isnan(ceiling.maximum):
        marks += [
            Level(ceiling.maximum, f"most that any model can reach: {ceiling.maximum:.3f}"),
            Level(ceiling.reliability, f"a second measurement of people: {ceiling.reliability:.3f}", 3),
        ]
        text += (
            f" Lines: the RDMs of two halves of the human data correlate at {ceiling.split_half:.3f}. By Spearman "
            "and Brown, a second measurement of this size would reach the lower line, a perfect model the upper."
        )
    return Figure(
        "alignment",
        "Behavioural RSA over epochs",
        text,
        f"Behavioural RSA: {rho[0]:.3f} after epoch {epochs[0]}, {rho[-1]:.3f} after epoch {epochs[-1]}.",
        (
            Panel(
                tuple(marks), "epoch", "behavioural RSA (Spearman’s rho)",
                x_step=epoch_step(x[0], x[-1]),
            ),
        ),
        Table(("epoch", "rho", "sd", "low", "high"), [
            (epoch, value, *each) for epoch, value, each in zip(epochs, rho, spreads, strict=True)
        ]),
    )  # fmt: skip


def matrices(evaluation: Evaluation) -> Figure:
    """Return the figure of the model's RDM, the human one and their difference."""
    model, human = evaluation.model_rdm(), evaluation.human_rdm
    order = _similar_beside_each_other(human)
    names = [_stem(evaluation.held_out[row]) for row in order]
    shown = [_percentiles(rdm)[np.ix_(order, order)] for rdm in (model, human)]
    difference = shown[0] - shown[1]
    largest = float(np.nanmax(np.abs(difference)))
    pairs = (("Model", shown[0]), ("People", shown[1]))
    panels = [
        Panel((Heat(rdm.tolist(), names, names, "percentile", 0, 100),), title=title, height=400)
        for title, rdm in pairs
    ]
    heat = Heat(difference.tolist(), names, names, "model − people", -largest, largest, "diverging")
    panels.append(Panel((heat,), title="Difference", height=400))
    return Figure(
        "rdms",
        "Dissimilarity of the held-out images",
        "Each cell is a pair of images. RDMs are compared by rank, so both are shown as percentiles of "
        f"{len(np.triu_indices(len(human), 1)[0]):,} pairs: 100 is the most dissimilar pair. Red in "
        "the difference: the model takes a pair for less alike than people do. All three are in the order of an "
        f"average-linkage clustering of the human RDM. The model is that of epoch {evaluation.epoch}. The numbers "
        "are in the table of the next figure.",
        "Three matrices: dissimilarity by the model, by people, and their difference.",
        tuple(panels),
    )


def pairs(evaluation: Evaluation) -> Figure:
    """Return the figure of predicted against measured dissimilarity."""
    model, human = evaluation.model_rdm(), evaluation.human_rdm
    first, second = np.triu_indices(len(human), k=1)
    predicted, measured = model[first, second], human[first, second]
    names = [_stem(name) for name in evaluation.held_out]
    hover = [f"{names[a]}, {names[b]}" for a, b in zip(first, second, strict=True)]
    rho = _rho(model, human)
    return Figure(
        "pairs",
        "Predicted against measured dissimilarity",
        f"The {len(hover):,} pairs of held-out images, by the model of epoch {evaluation.epoch}: 1 − Pearson’s "
        "correlation of two images’ predicted dimensions, against the human dissimilarity. Pairs share images, so "
        "they are not independent: their number is no sample size.",
        f"{len(hover)} pairs of images; their ranks correlate at {rho:.3f}.",
        (
            Panel(
                (Series(measured.tolist(), predicted.tolist(), kind="points", hover=hover, is_faint=True),),
                "measured dissimilarity (people)",
                "predicted dissimilarity (model)",
                height=460,
            ),
        ),
        Table(
            ("image_1", "image_2", "measured", "predicted", "measured_percentile", "predicted_percentile"),
            [
                (names[a], names[b], *(float(each) for each in row))
                for a, b, *row in zip(
                    first, second, measured, predicted,
                    _percentiles(human)[first, second], _percentiles(model)[first, second], strict=True,
                )
            ],
        ),
    )  # fmt: skip


def _rho(model: NDArray[np.float64], human: NDArray[np.float64]) -> float:
    return rank_correlation(model, human)[0]


def _percentiles(rdm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return an RDM with each entry's percentile among all pairs, `[n, n]`, nan on the diagonal."""
    pairs = np.triu_indices(len(rdm), k=1)
    values = 100 * (ranks_of(rdm[pairs]) - 0.5) / len(pairs[0])
    found = np.full(rdm.shape, np.nan)
    found[pairs] = values
    found.T[pairs] = values
    return found


def _similar_beside_each_other(rdm: NDArray[np.float64]) -> list[int]:
    from scipy.cluster.hierarchy import leaves_list, linkage

    condensed = rdm[np.triu_indices(len(rdm), k=1)]
    return [int(row) for row in leaves_list(linkage(condensed, method="average"))]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name
