"""How far training moved the parameters."""

import re
from collections.abc import Mapping

import torch

from clip_hba_behavior.model.clip_hba import DORA_PARAMETERS
from clip_hba_behavior.report.evaluation import Parameters
from clip_hba_behavior.report.figure import Figure, Mark, Panel, Series, Table, epoch_step
from clip_hba_behavior.report.history import perturbed_span
from clip_hba_behavior.report.sources import RunRecord

_NAMES = {"m": "magnitudes (m)", "delta_D_A": "direction, factor A", "delta_D_B": "direction, factor B"}
_LAYER = re.compile(r"clip_model\.(visual\.)?transformer\.resblocks\.(\d+)\..*\.(\w+)")


def movement(record: RunRecord, checkpoints: Mapping[int, Parameters]) -> Figure:
    """Return the figure of the distance of each layer's DoRA parameters from those of the first checkpoint.

    Args:
        record: of the run.
        checkpoints: the parameters of at least one epoch, ascending.
    """
    epochs = list(checkpoints)
    start = checkpoints[epochs[0]]
    distances = {
        name: [_distance(checkpoints[epoch][name], value) for epoch in epochs] for name, value in start.items()
    }
    layers = list(dict.fromkeys(_layer_of(name) for name in distances))
    x = [float(epoch) for epoch in epochs]
    panels: list[Panel] = []
    for factor in DORA_PARAMETERS:
        marks: list[Mark] = [*perturbed_span(record)]
        for name, values in distances.items():
            if name.endswith(f".{factor}"):
                style = layers.index(_layer_of(name))
                marks.append(Series(x, values, _layer_of(name), style, "both" if len(x) <= 30 else "line"))
        panels.append(
            Panel(
                tuple(marks), "epoch", "distance from the start" if not panels else "",
                title=_NAMES[factor], x_step=epoch_step(x[0], x[-1]), height=340,
            )
        )  # fmt: skip
    return Figure(
        "movement",
        "What moved in the parameters",
        f"Euclidean distance of each adapted layer’s DoRA parameters from those of epoch {epochs[0]}, "
        f"{'before training' if epochs[0] == 0 else 'the first with a checkpoint'}. Factors have their own sizes "
        "and scales, so compare layers within a panel, not panels.",
        f"Distance of the parameters of {len(layers)} layers from their start, up to epoch {epochs[-1]}.",
        tuple(panels),
        Table(
            ("epoch", *(f"{_layer_of(name)} {name.rpartition('.')[2]}" for name in distances)),
            [(epoch, *(values[row] for values in distances.values())) for row, epoch in enumerate(epochs)],
        ),
    )


def _layer_of(name: str) -> str:
    """Return a layer's tower and number, from a parameter's name."""
    match = _LAYER.fullmatch(name)
    return name.rpartition(".")[0] if match is None else f"{'visual' if match[1] else 'text'} {match[2]}"


def _distance(now: torch.Tensor, then: torch.Tensor) -> float:
    return float((now.double() - then.double()).norm())
