"""The files of a report: pages that open from disk without a network, and their figures."""

import csv
import io
import json
import math
from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from clip_hba_behavior.report.blocks import Page
from clip_hba_behavior.report.colours import themes
from clip_hba_behavior.report.drawing import Drawer
from clip_hba_behavior.report.figure import Cell, Table
from clip_hba_behavior.report.plotly_json import plot_of
from clip_hba_behavior.reproducibility.record.session import Report
from clip_hba_behavior.version import __version__

PLOTLY = "plotly-cartesian-3.7.0.min.js"
PLOTLY_LICENSE = "LICENSE-plotly.txt"
_ASSETS = "assets"
_FIGURES = "figures"


def render_site(
    pages: Sequence[Page], drawer: Drawer | None = None, report: Report = lambda what, done, total: None
) -> dict[str, bytes]:
    """Return every file of a report by its name below the report's directory.

    They depend on the pages and on the versions of this package, matplotlib and plotly alone: no date, no path.

    Args:
        pages: figures and tables have each a name of its own among all pages.
        drawer: of figures for a paper, which may have begun with some; by default a new one.
        report: told of the progress.

    Raises:
        ValueError: two figures or tables have the same name.
    """
    drawer = drawer or Drawer()
    found: dict[str, bytes] = {
        f"{_ASSETS}/{name}": _packaged(f"vendor/{name}") for name in (PLOTLY, PLOTLY_LICENSE)
    }
    found |= {f"{_ASSETS}/{name}": _packaged(f"templates/{name}") for name in ("report.js", "report.css")}
    for page in pages:  # first: meanwhile figures are drawn
        for titled in page.tables():
            _add(found, {f"{_FIGURES}/{titled.name}.csv": to_csv(titled.table)})
        _add(found, {page.file: render_page(page).encode(errors="replace")})  # a path may hold other bytes
    figures = [figure for page in pages for figure in page.figures()]
    for done, figure in enumerate(figures, start=1):
        made = {f"{_FIGURES}/{figure.name}.{ending}": content for ending, content in drawer.files(figure).items()}
        if figure.table is not None:
            made[f"{_FIGURES}/{figure.name}.csv"] = to_csv(figure.table)
        _add(found, made)
        report("drawing figures", done, len(figures))
    return dict(sorted(found.items()))


def _add(found: dict[str, bytes], made: dict[str, bytes]) -> None:
    if twice := found.keys() & made.keys():
        raise ValueError(f"two parts of the report have the file {min(twice)}")
    found |= made


def render_page(page: Page) -> str:
    """Return a page as HTML; its figures' numbers stand in it, what draws them beside it."""
    plots = {
        f"{figure.name}-{number}": plot_of(panel)
        for figure in page.figures()
        for number, panel in enumerate(figure.panels)
    }
    # within a script element, `<` could end it
    data = json.dumps({"themes": themes(), "plots": plots}, separators=(",", ":")).replace("<", "\\u003c")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(page=page, data=Markup(data), version=__version__, assets=_ASSETS, figures=_FIGURES, plotly=PLOTLY)
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__ or "", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": shown_cell, "jpeg": _data_uri, "kind": lambda block: type(block).__name__}
    return environment


def shown_cell(value: Cell) -> str:
    """Return a value as a page shows it: numbers to five digits."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def to_csv(table: Table) -> bytes:
    """Return a table as CSV; floats are written exactly, what is not there is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([repr(float(cell)) if isinstance(cell, float) else cell for cell in row])
    return text.getvalue().encode()


def _data_uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"


@cache
def _packaged(name: str) -> bytes:
    return files(__package__ or "").joinpath(name).read_bytes()
