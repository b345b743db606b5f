"""What a figure shows, described once: the page and the paper draw the same description."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from clip_hba_behavior.report.colours import INK, Scale

Cell = str | int | float | bool | None
Range = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """A line, points, or both.

    Attributes:
        x: of each point; a nan in x or y is a gap.
        y: of each point.
        name: in the legend; empty for none.
        style: number of its colour, dash and marker, or `INK`.
        kind: what is drawn.
        low: lower ends of a band around a line, or of bars at points; with `high`.
        high: upper ends.
        is_across: whether low and high are along x.
        labels: text beside each point; empty where there is none.
        hover: what a page shows of each point beside its coordinates.
        is_faint: whether it stays in the background.
    """

    x: Sequence[float]
    y: Sequence[float]
    name: str = ""
    style: int = 0
    kind: Literal["line", "points", "both"] = "line"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    is_across: bool = False
    labels: Sequence[str] = ()
    hover: Sequence[str] = ()
    is_faint: bool = False


@dataclass(frozen=True)
class Heat:
    """A matrix in colours; its first row is at the top.

    Attributes:
        values: rows of numbers; a nan is left empty.
        x_names: of the columns; `shown_names` says which stand beside the axis.
        y_names: of the rows.
        label: of the colour bar.
        scale: `diverging` for numbers of either sign, around 0.
        low: the number with the scale's first colour.
        high: with its last.
        marked: cells with a cross, of the same shape; None for no cell.
        mark_name: what the cross means.
    """

    values: Sequence[Sequence[float]]
    x_names: Sequence[str]
    y_names: Sequence[str]
    label: str
    low: float
    high: float
    scale: Scale = "sequential"
    marked: Sequence[Sequence[bool]] | None = None
    mark_name: str = ""


@dataclass(frozen=True)
class Level:
    """A straight line over the whole panel.

    Attributes:
        at: its y; of an upright one, its x.
        name: in the legend.
        style: see `Series`.
        is_upright: whether it is one of equal x.
    """

    at: float
    name: str = ""
    style: int = INK
    is_upright: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of the panel that is shaded.

    Attributes:
        first: where it begins.
        last: where it ends.
        name: in the legend.
        is_upright: whether it is a stretch of x; else of y.
    """

    first: float
    last: float
    name: str = ""
    is_upright: bool = True


Mark = Series | Heat | Level | Span


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        marks: drawn in this order.
        x_label: with the unit.
        y_label: with the unit.
        title: of this panel among several.
        x_range: None for what the marks need.
        y_range: None for what the marks need.
        x_step: distance of the ticks: 1 where x counts epochs and there are few; None for any.
        y_names: names of y = 0, 1, ..., the first at the top; y is a number without.
        is_y_log: whether y is logarithmic.
        height: on the page, in pixels.
    """

    marks: tuple[Mark, ...]
    x_label: str = ""
    y_label: str = ""
    title: str = ""
    x_range: Range | None = None
    y_range: Range | None = None
    x_step: float | None = None
    y_names: tuple[str, ...] = ()
    is_y_log: bool = False
    height: int = 380


@dataclass(frozen=True)
class Table:
    """Numbers with a head; a page rounds them, its CSV file has them exactly."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


@dataclass(frozen=True)
class Figure:
    """Panels side by side, with the numbers that they draw.

    Attributes:
        name: of its files and anchor: letters, digits and hyphens, once in a report.
        title: what it is.
        text: how it was computed and is read: sentences below it.
        alt: what it shows, for who does not see it.
        panels: one or more.
        table: the numbers drawn; None where another figure's table has them, as the text says.
    """

    name: str
    title: str
    text: str
    alt: str
    panels: tuple[Panel, ...]
    table: Table | None = None


def epoch_step(first: float, last: float) -> float:
    """Return a distance of ticks that are whole epochs, about ten of them."""
    span = max(last - first, 1)
    return next(float(step) for step in _STEPS if span / step <= 10)


def shown_names(names: Sequence[str]) -> list[int]:
    """Return which rows or columns of a matrix stand beside it: all of few, some of many numbers, else none."""
    if len(names) <= _MOST_NAMES:
        return list(range(len(names)))
    if not all(name.isdecimal() for name in names):
        return []
    step = epoch_step(0, len(names))
    return [place for place, name in enumerate(names) if int(name) % step == 0]


_MOST_NAMES = 24
_STEPS = [base * 10**power for power in range(9) for base in (1, 2, 5)]
