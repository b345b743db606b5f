"""A panel as plotly takes it: data and layout, with the names of colours in place of colours."""

import html
import math
from collections.abc import Sequence
from typing import Any

from clip_hba_behavior.report.colours import DASHES, MARKERS, colour_name, dash_number, scale_steps
from clip_hba_behavior.report.figure import Heat, Level, Panel, Series, Span, shown_names

_FAINT = {"line": 0.7, "points": 0.45, "both": 0.7}  # lines are thin then, points are many
_LEAST_TOP = 16  # pixels above a panel
_TOOLBAR = 20  # more above a matrix: the toolbar would lie on its cells and its colour bar
_LEGEND = 24  # and more where a legend is beside the toolbar
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'


def plot_of(panel: Panel) -> dict[str, Any]:
    """Return plotly's `data` and `layout` of a panel.

    A text `@name` stands for a colour of the page's theme, `@name/0.2` for the same, transparent.
    """
    data: list[dict[str, Any]] = []
    shapes: list[dict[str, Any]] = []
    for mark in panel.marks:
        if isinstance(mark, Series):
            data += _series(mark)
        elif isinstance(mark, Heat):
            data += _heat(mark)
        elif isinstance(mark, Level):
            shapes.append(_level(mark))
        else:
            shapes.append(_span(mark))
        if isinstance(mark, Level | Span) and mark.name:
            data.append(_legend_of(mark))
    return {"data": data, "layout": _layout(panel) | {"shapes": shapes}}


def _series(mark: Series) -> list[dict[str, Any]]:
    colour = f"@{colour_name(mark.style)}"
    modes = {"line": ["lines"], "points": ["markers"], "both": ["lines", "markers"]}[mark.kind]
    trace: dict[str, Any] = {
        "type": "scatter",
        "x": numbers(mark.x),
        "y": numbers(mark.y),
        "mode": "+".join([*modes, *(["text"] if any(mark.labels) else [])]),
        "name": _plain(mark.name),
        "showlegend": bool(mark.name),
        "opacity": _FAINT[mark.kind] if mark.is_faint else 1,
        "line": {"color": colour, "dash": DASHES[dash_number(mark.style)], "width": 1.2 if mark.is_faint else 2},
        "marker": {
            "color": colour,
            "symbol": MARKERS[max(mark.style, 0) % len(MARKERS)],
            "size": 7 if len(mark.x) <= 300 else 5,
        },
        "hovertemplate": ("%{text}<br>" if mark.hover else "") + "%{x:.5~g}, %{y:.5~g}",
    }
    if any(mark.labels):
        trace |= {
            "text": [_plain(each) for each in mark.labels],
            "textposition": "top right",
            "textfont": {"size": 11},
        }
        trace["hovertemplate"] = "%{x:.5~g}, %{y:.5~g}"
    elif mark.hover:
        trace["text"] = [_plain(each) for each in mark.hover]
    if mark.low is None or mark.high is None:
        return [trace]
    if mark.kind == "line":
        band = {"type": "scatter", "mode": "lines", "line": {"width": 0, "color": colour}, "showlegend": False}
        band |= {"x": numbers(mark.x), "hoverinfo": "skip"}
        upper = band | {"y": numbers(mark.high), "fill": "tonexty", "fillcolor": f"{colour}/0.2"}
        return [band | {"y": numbers(mark.low)}, upper, trace]
    along, values = ("x", mark.x) if mark.is_across else ("y", mark.y)
    trace[f"error_{along}"] = {
        "type": "data",
        "symmetric": False,
        "array": numbers([high - value for high, value in zip(mark.high, values, strict=True)]),
        "arrayminus": numbers([value - low for low, value in zip(mark.low, values, strict=True)]),
        "color": colour,
        "thickness": 1,
        "width": 2,
    }
    return [trace]


def _heat(mark: Heat) -> list[dict[str, Any]]:
    trace = {
        "type": "heatmap",
        "z": [numbers(row) for row in mark.values],
        "x": [_plain(each) for each in mark.x_names],
        "y": [_plain(each) for each in mark.y_names],
        "hovertemplate": "%{y}, %{x}<br>%{z:.4~g}<extra></extra>",
        "zmin": mark.low,
        "zmax": mark.high,
        "colorscale": scale_steps(mark.scale),
        "colorbar": _colour_bar(mark),
        "hoverongaps": False,
    }
    if mark.marked is None:
        return [trace]
    cells = [
        (column, row)
        for row, marks in zip(mark.y_names, mark.marked, strict=True)
        for column, is_marked in zip(mark.x_names, marks, strict=True)
        if is_marked
    ]
    crosses = {
        "type": "scatter",
        "mode": "markers",
        "x": [_plain(column) for column, _ in cells],
        "y": [_plain(row) for _, row in cells],
        "name": _plain(mark.mark_name),
        "showlegend": bool(mark.mark_name),
        "hoverinfo": "skip",
        # a light cross with a dark rim is seen on every colour of a scale
        "marker": {
            "symbol": "x",
            "size": max(2, min(9, 200 // len(mark.x_names))),
            "color": "#FFFFFF",
            "line": {"color": "#000000", "width": 1},
        },
    }
    return [trace, crosses]


def _colour_bar(mark: Heat) -> dict[str, Any]:
    """Return a bar to the right, or below where no names of columns are: more is left for the matrix."""
    if shown_names(mark.x_names):
        return {"title": {"text": mark.label, "side": "right"}, "thickness": 12, "outlinewidth": 0, "xpad": 16}
    title = {"text": mark.label, "side": "bottom"}
    place = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.02, "yanchor": "top", "len": 1, "xpad": 0}
    return {"title": title, "thickness": 10, "outlinewidth": 0, **place}


def _level(mark: Level) -> dict[str, Any]:
    across, along = ("y", "x") if mark.is_upright else ("x", "y")
    return {
        "type": "line",
        f"{across}ref": f"{across} domain",
        f"{across}0": 0,
        f"{across}1": 1,
        f"{along}0": mark.at,
        f"{along}1": mark.at,
        "line": {"color": f"@{colour_name(mark.style)}", "width": 1.2, "dash": "dash"},
    }


def _span(mark: Span) -> dict[str, Any]:
    across, along = ("y", "x") if mark.is_upright else ("x", "y")
    return {
        "type": "rect",
        f"{across}ref": f"{across} domain",
        f"{across}0": 0,
        f"{across}1": 1,
        f"{along}0": mark.first,
        f"{along}1": mark.last,
        "line": {"width": 0},
        "fillcolor": "@faint/0.22",
        "layer": "below",
    }


def _legend_of(mark: Level | Span) -> dict[str, Any]:
    """Return a trace without points: shapes have no legend that a narrow page can wrap."""
    entry: dict[str, Any] = {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "name": _plain(mark.name),
        "hoverinfo": "skip",
    }
    if isinstance(mark, Level):
        line = {"color": f"@{colour_name(mark.style)}", "width": 1.2, "dash": "dash"}
        return entry | {"mode": "lines", "line": line}
    return entry | {"mode": "markers", "marker": {"symbol": "square", "size": 12, "color": "@faint/0.22"}}


def _layout(panel: Panel) -> dict[str, Any]:
    heats = [mark for mark in panel.marks if isinstance(mark, Heat)]
    axis = {"gridcolor": "@grid", "zerolinecolor": "@grid", "linecolor": "@faint", "automargin": True}
    x_axis: dict[str, Any] = axis | {"title": {"text": panel.x_label, "standoff": 8}}
    y_axis: dict[str, Any] = axis | {"title": {"text": panel.y_label, "standoff": 8}}
    if panel.x_step is not None:
        x_axis |= {"tick0": 0, "dtick": panel.x_step}
    if panel.x_range is not None:
        x_axis["range"] = list(panel.x_range)
    if panel.is_y_log:
        y_axis["type"] = "log"
    if panel.y_range is not None:
        ends = panel.y_range
        y_axis["range"] = [math.log10(end) for end in ends] if panel.is_y_log else list(ends)
    if panel.y_names:
        y_axis |= _names(panel.y_names) | {"range": [len(panel.y_names) - 0.5, -0.5], "zeroline": False}
        y_axis["tickfont"] = {"size": 10}
    for heat in heats:
        for names, of in ((heat.x_names, x_axis), (heat.y_names, y_axis)):
            of |= {"type": "category", "showgrid": False, "constrain": "domain", "constraintoward": "top"}
            shown = [_plain(names[place]) for place in shown_names(names)]
            of |= {"tickvals": shown} if shown else {"showticklabels": False, "ticks": ""}
        x_axis["constraintoward"] = "left"
        y_axis |= {"range": [len(heat.y_names) - 0.5, -0.5]}
        if len(heat.x_names) == len(heat.y_names):
            y_axis |= {"scaleanchor": "x"}
    top = _LEAST_TOP
    if heats:
        top += _TOOLBAR + (_LEGEND if any(heat.mark_name for heat in heats) else 0)
    return {
        "height": panel.height + top - _LEAST_TOP,
        "margin": {"l": 48, "r": 12, "t": top, "b": 56 if panel.x_label else 24},
        "font": {"family": _FONT, "size": 12, "color": "@ink"},
        "paper_bgcolor": "@page",
        "plot_bgcolor": "@page",
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "@page", "bordercolor": "@faint", "font": {"color": "@ink"}},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "modebar": {"bgcolor": "@page/0", "color": "@faint", "activecolor": "@ink"},
        "xaxis": x_axis,
        "yaxis": y_axis,
    }


def _names(names: Sequence[str]) -> dict[str, Any]:
    return {"tickvals": list(range(len(names))), "ticktext": [_plain(each) for each in names]}


def _plain(text: str) -> str:
    """Return a text that plotly shows as it stands: it would take `<` for the beginning of a tag."""
    return html.escape(text, quote=False)


def numbers(values: Sequence[float]) -> list[float | None]:
    """Return numbers as JSON has them, to six digits, which is finer than a pixel; nan becomes null."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
