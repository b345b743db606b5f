"""One description, two drawings: the page's and the paper's show the same, and the same bytes each time."""

import io
import math
import re
from typing import Any

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from clip_hba_behavior.report.colours import DARK, DASHES, LIGHT, MARKERS, PAPER_DASHES, PAPER_MARKERS, themes
from clip_hba_behavior.report.figure import Figure, Heat, Level, Panel, Series, Span, Table, epoch_step
from clip_hba_behavior.report.paper import paper_files
from clip_hba_behavior.report.plotly_json import plot_of
from clip_hba_behavior.report.site import shown_cell, to_csv

LINES = Panel(
    (
        Span(1.5, 2.5, "perturbed"),
        Series(
            [1, 2, 3],
            [0.5, math.nan, 0.7],
            "a <b>run</b> of $5",
            low=[0.4, math.nan, 0.6],
            high=[0.6, math.nan, 0.8],
        ),
        Series([1, 2, 3], [1, 2, 3], "other", 1, "both", labels=["first", "", "last"]),
        Level(0.9, "most"),
    ),
    "epoch",
    "loss",
    x_step=1,
)
MATRIX = Panel(
    (
        Heat(
            [[0, math.nan], [1, 2]], ["5", "10"], ["one", "two"], "change", -2, 2, "diverging",
            marked=[[False, True], [False, False]], mark_name="outside",
        ),
    )
)  # fmt: skip
DOTS = Panel(
    (Series([0.1, 0.2], [0, 1], kind="points", low=[0, 0.1], high=[0.3, 0.4], is_across=True),), y_names=("a", "b")
)


def figure_of(*panels: Panel) -> Figure:
    return Figure("name", "Title", "text", "alt", panels, Table(("x",), [(1,)]))


def test_a_single_square_heat_map_fills_its_picture() -> None:
    names = ["a", "b"]
    square, wide = (Heat(values, names, names[: len(values)], "", 0, 4) for values in ([[1, 2], [3, 4]], [[1, 2]]))
    sizes = []
    for heat in (square, wide):
        with Image.open(io.BytesIO(paper_files(figure_of(Panel((heat,), height=280)))["png"])) as image:
            sizes.append(image.size)
    assert sizes == [(740, 560), (1260, 560)]


def test_a_figure_has_the_same_bytes_each_time_and_no_date() -> None:
    figure = figure_of(LINES, MATRIX, DOTS)
    files = paper_files(figure)
    assert paper_files(figure) == files
    assert set(files) == {"svg", "pdf", "png"}
    assert files["pdf"].startswith(b"%PDF-")
    assert files["png"].startswith(b"\x89PNG")
    for content in files.values():
        assert not re.search(rb"CreationDate|<dc:date>|20[23]\d-[01]\d-", content)


def test_names_are_shown_as_they_stand_on_page_and_paper() -> None:
    plot, svg = plot_of(LINES), paper_files(figure_of(LINES))["svg"].decode()
    assert "a &lt;b&gt;run&lt;/b&gt; of $5" in [trace.get("name") for trace in plot["data"]]
    for text in ("a &lt;b&gt;run&lt;/b&gt; of $5", "perturbed", "other", "most", "first", "last", "epoch", "loss"):
        assert f">{text}<" in svg


def test_page_and_paper_draw_the_same_numbers() -> None:
    from matplotlib.figure import Figure as Canvas

    from clip_hba_behavior.report.paper import _draw

    canvas = Canvas()
    axes = canvas.subplots()
    _draw(canvas, axes, LINES)
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    traces = {trace.get("name"): trace for trace in plot_of(LINES)["data"]}
    assert list(drawn["other"]) == traces["other"]["y"] == [1, 2, 3]
    assert np.isnan(drawn["a <b>run</b> of $5"][1])
    assert traces["a &lt;b&gt;run&lt;/b&gt; of $5"]["y"] == [0.5, None, 0.7]
    assert set(drawn["most"]) == {0.9}
    assert plot_of(LINES)["layout"]["shapes"][1]["y0"] == 0.9
    band = [trace["y"] for trace in plot_of(LINES)["data"] if trace.get("line", {}).get("width") == 0]
    assert band == [[0.4, None, 0.6], [0.6, None, 0.8]]


def test_a_single_epoch_has_no_fractions_of_epochs_beside_it() -> None:
    from matplotlib.figure import Figure as Canvas

    from clip_hba_behavior.report.paper import _draw

    ticks = {}
    for step in (1, None):
        canvas = Canvas()
        axes = canvas.subplots()
        _draw(canvas, axes, Panel((Series([3], [0.5]),), "epoch", "loss", x_step=step))
        low, high = axes.get_xlim()
        ticks[step] = [float(each) for each in axes.get_xticks() if low <= each <= high]
    assert ticks[1] == [3.0]
    assert any(each % 1 for each in ticks[None])  # an axis of anything else has fractions


def test_a_matrix_has_its_names_and_crosses_where_they_were_asked_for() -> None:
    heat, crosses = plot_of(MATRIX)["data"]
    assert heat["z"] == [[0.0, None], [1.0, 2.0]]
    assert (heat["x"], heat["y"]) == (["5", "10"], ["one", "two"])
    assert (crosses["x"], crosses["y"], crosses["name"]) == (["10"], ["one"], "outside")
    layout = plot_of(MATRIX)["layout"]
    assert layout["xaxis"]["type"] == layout["yaxis"]["type"] == "category"  # else "5" and "10" were numbers
    assert layout["yaxis"]["range"] == [1.5, -0.5]  # the first row at the top


def test_bars_lie_along_the_axis_that_was_asked_for() -> None:
    (trace,) = plot_of(DOTS)["data"]
    assert trace["error_x"]["array"] == pytest.approx([0.2, 0.2])
    assert trace["error_x"]["arrayminus"] == pytest.approx([0.1, 0.1])
    assert "error_y" not in trace


def relative_luminance(colour: str) -> float:
    """WCAG 2.2's definition."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((relative_luminance(first), relative_luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_stand_out_from_the_page_and_text_is_readable(theme: str) -> None:
    colours = themes()[theme]
    assert contrast(colours["ink"], colours["page"]) >= 7
    assert contrast(colours["faint"], colours["page"]) >= 4.5
    series = [colours[str(number)] for number in range(8)]
    assert len(set(series)) == 8
    assert all(contrast(colour, colours["page"]) >= 2 for colour in series)
    # the first three alone are told apart by their lightness or hue in the figures of most reports
    assert all(contrast(colour, colours["page"]) >= 3 for colour in series[:3])


def test_the_first_series_differ_in_dash_and_marker_too() -> None:
    assert len(LIGHT) == len(DARK) == len(MARKERS) == len(PAPER_MARKERS) == len(set(MARKERS))
    assert len(DASHES) == len(PAPER_DASHES) == len(set(DASHES))
    traces: list[dict[str, Any]] = []
    for style in range(6):
        traces += plot_of(Panel((Series([0, 1], [0, 1], style=style, kind="both"),)))["data"]
    assert len({(trace["line"]["dash"], trace["marker"]["symbol"]) for trace in traces}) == 6


@pytest.mark.parametrize(("last", "step"), [(3, 1), (10, 1), (11, 2), (20, 2), (100, 10), (120, 20), (500, 50)])
def test_ticks_are_whole_epochs(last: float, step: float) -> None:
    assert epoch_step(0, last) == step


def test_a_table_is_exact_as_csv_and_short_on_the_page() -> None:
    table = Table(("name", "value"), [("a,b", 0.1 + 0.2), ("c", None), ("d", 3)])
    assert to_csv(table).decode() == 'name,value\n"a,b",0.30000000000000004\nc,\nd,3\n'
    assert [shown_cell(value) for value in (0.1 + 0.2, None, math.nan, 1234567, True)] == [
        "0.3",
        "–",
        "–",
        "1234567",
        "yes",
    ]


def test_a_name_that_begins_with_an_underscore_is_in_the_legend() -> None:
    panel = Panel((Series([1, 2], [1, 2], "_run"), Level(2, "_level")))
    svg = paper_files(Figure("a", "A", "", "", (panel,)))["svg"].decode()
    assert ">_run<" in svg
    assert ">_level<" in svg


def test_the_settings_of_a_matplotlibrc_change_no_byte() -> None:
    figure = Figure("a", "A", "", "", (Panel((Series([1, 2], [1, 2], "a"),)),))
    expected = paper_files(figure)
    with rc_context({"axes.facecolor": "red"}):
        assert paper_files(figure) == expected
