"""A figure for a paper, drawn by matplotlib as SVG, PDF and PNG; the same description gives the same bytes."""

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator
from PIL import Image

from clip_hba_behavior.report.colours import (
    INK,
    PAPER_DASHES,
    PAPER_MARKERS,
    colour_map,
    colour_name,
    dash_number,
    themes,
)
from clip_hba_behavior.report.figure import Figure, Heat, Level, Mark, Panel, Series, Span, shown_names

_COLOURS = themes()["light"]
_PANEL_WIDTH = {1: 6.3, 2: 4.2}  # inches by the number of panels; 3.4 of three and more
# No date, and nothing drawn at random. Text stays text that can be edited.
_SETTINGS: Any = {
    "svg.hashsalt": "clip-hba",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.5,
    "lines.markersize": 3.5,
    "legend.frameon": False,
}
_DOTS_PER_INCH = 200
_BESIDE_A_SQUARE = 0.9  # inches for its labels and colour bar
_LETTERS_PER_INCH = 15
_SHIELD = "\u200b"  # before a label that begins with `_`, which matplotlib would leave out


def paper_files(figure: Figure) -> dict[str, bytes]:
    """Return a figure's files for a paper by the ending of their names: svg, pdf, png."""
    with context(_SETTINGS, after_reset=True):  # without what a matplotlibrc says
        across = 2 if len(figure.panels) == 4 else min(len(figure.panels), 3)
        down = -(-len(figure.panels) // across)
        width = across * _PANEL_WIDTH.get(across, 3.4)
        height = down * max(panel.height for panel in figure.panels) / 100
        marks = figure.panels[0].marks if len(figure.panels) == 1 else ()
        if any(isinstance(mark, Heat) and _is_square(mark) for mark in marks):
            width = min(width, height + _BESIDE_A_SQUARE)
        canvas = Canvas(figsize=(width, height), layout="constrained")
        several = list(canvas.subplots(down, across, squeeze=False).flat)
        for unused in several[len(figure.panels) :]:
            canvas.delaxes(unused)
        entries: dict[str, Any] = {}
        for axes, panel in zip(several, figure.panels, strict=False):
            _draw(canvas, axes, panel)
            handles, names = axes.get_legend_handles_labels()
            # one legend for all panels
            entries = {
                name.removeprefix(_SHIELD): handle for name, handle in zip(names, handles, strict=True)
            } | entries
        if entries:
            room = int(_LETTERS_PER_INCH * canvas.get_figwidth())
            columns = max(1, min(len(entries), room // (max(map(len, entries)) + 7)))
            canvas.legend([*entries.values()], [*entries], loc="outside upper left", ncols=columns)
        svg, pdf = io.BytesIO(), io.BytesIO()
        # not by `savefig`, which draws everything twice
        FigureCanvasSVG(canvas).print_svg(svg, metadata={"Date": None, "Creator": None})
        canvas.set_layout_engine("none")  # by now all has its place
        FigureCanvasPdf(canvas).print_pdf(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
        return {"svg": svg.getvalue(), "pdf": pdf.getvalue(), "png": _png(canvas)}


def _png(canvas: Canvas) -> bytes:
    canvas.set_dpi(_DOTS_PER_INCH)
    agg = FigureCanvasAgg(canvas)
    agg.draw()
    image = Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")
    content = io.BytesIO()
    # 256 colours are enough, and a third of the bytes; chosen so that none is far from the one that it stands for
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(content, "PNG", dpi=(_DOTS_PER_INCH, _DOTS_PER_INCH))
    return content.getvalue()


def _draw(canvas: Canvas, axes: Axes, panel: Panel) -> None:
    for mark in panel.marks:
        _draw_mark(canvas, axes, mark)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.set_title(panel.title, loc="left", fontsize=9)
    if panel.is_y_log:
        axes.set_yscale("log")
    if panel.x_step is not None:
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1))
    if panel.x_range is not None:
        axes.set_xlim(*panel.x_range)
    if panel.y_range is not None:
        axes.set_ylim(*panel.y_range)
    if panel.y_names:
        axes.set_yticks(range(len(panel.y_names)), panel.y_names, fontsize=6)
        axes.set_ylim(len(panel.y_names) - 0.5, -0.5)


def _draw_mark(canvas: Canvas, axes: Axes, mark: Mark) -> None:
    if isinstance(mark, Series):
        _draw_series(axes, mark)
    elif isinstance(mark, Heat):
        _draw_heat(canvas, axes, mark)
    elif isinstance(mark, Level):
        line = axes.axvline if mark.is_upright else axes.axhline
        colour = _COLOURS[colour_name(mark.style)]
        line(mark.at, color=colour, linewidth=0.9, linestyle=(0, (5, 3)), label=_label(mark.name))
    elif isinstance(mark, Span):
        span = axes.axvspan if mark.is_upright else axes.axhspan
        span(
            mark.first,
            mark.last,
            color=_COLOURS["faint"],
            alpha=0.22,
            linewidth=0,
            zorder=0.5,
            label=_label(mark.name),
        )


def _label(name: str) -> str | None:
    return f"{_SHIELD}{name}" if name.startswith("_") else name or None


def _draw_series(axes: Axes, mark: Series) -> None:
    x, y = np.asarray(mark.x, dtype=float), np.asarray(mark.y, dtype=float)
    colour = _COLOURS[colour_name(mark.style)]
    style: dict[str, Any] = {"color": colour, "label": _label(mark.name), "alpha": 0.6 if mark.is_faint else 1.0}
    has_line, has_points = mark.kind in ("line", "both"), mark.kind in ("points", "both")
    style["linestyle"] = PAPER_DASHES[dash_number(mark.style)] if has_line else "none"
    style["marker"] = (
        PAPER_MARKERS[0 if mark.style == INK else mark.style % len(PAPER_MARKERS)] if has_points else ""
    )
    style["markersize"] = 3.5 if len(mark.x) <= 300 else 2
    style["linewidth"] = 0.7 if mark.is_faint else 1.3
    if mark.low is not None and mark.high is not None:
        low, high = np.asarray(mark.low, dtype=float), np.asarray(mark.high, dtype=float)
        if mark.kind == "line":
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        else:
            ends = np.stack([x - low, high - x] if mark.is_across else [y - low, high - y])
            along_x, along_y = (ends, None) if mark.is_across else (None, ends)
            axes.errorbar(x, y, xerr=along_x, yerr=along_y, fmt="none", ecolor=colour, elinewidth=0.7)
    axes.plot(x, y, **style)
    for each_x, each_y, label in zip(mark.x, mark.y, mark.labels, strict=False):
        if label:
            axes.annotate(label, (each_x, each_y), xytext=(3, 3), textcoords="offset points", fontsize=7)


def _is_square(mark: Heat) -> bool:
    return len(mark.x_names) == len(mark.y_names)


def _draw_heat(canvas: Canvas, axes: Axes, mark: Heat) -> None:
    values = np.ma.masked_invalid(np.asarray(mark.values, dtype=float))
    image = axes.imshow(values, cmap=colour_map(mark.scale), vmin=mark.low, vmax=mark.high, interpolation="none")
    axes.set_aspect("equal" if _is_square(mark) else "auto")
    axes.grid(visible=False)
    canvas.colorbar(image, ax=axes, label=mark.label, shrink=0.8)
    for names, set_ticks in ((mark.x_names, axes.set_xticks), (mark.y_names, axes.set_yticks)):
        shown = shown_names(names)
        set_ticks(shown, [names[place] for place in shown])
    if mark.marked is not None:
        rows, columns = np.nonzero(np.asarray(mark.marked))
        about: dict[str, Any] = {"c": "white", "edgecolors": "black", "linewidths": 0.5, "marker": "X"}
        about["s"] = max(1.2, min(5, 110 / len(mark.x_names))) ** 2
        axes.scatter(columns, rows, **about, label=_label(mark.mark_name))
