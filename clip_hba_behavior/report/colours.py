"""The colours of reports: told apart by colour-blind readers and in grey, on white and on black.

The eight colours are those of Okabe and Ito (2008), https://jfly.uni-koeln.de/color/, darker or lighter where they
would be too near to the background; viridis and RdBu are matplotlib's. A series has also a dash and a marker of
its own, so that no figure depends on colour alone.
"""

from typing import Literal

Scale = Literal["sequential", "diverging"]

# In the order of use: each theme begins with those that stand out most from its background.
LIGHT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A7F00")
DARK = ("#56B4E9", "#E69F00", "#00C08B", "#CC79A7", "#F0E442", "#D55E00", "#FFFFFF", "#8FA8FF")
# By plotly's names, and the same as matplotlib's offset and on-off lengths, in line widths.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PAPER_DASHES = ((0, ()), (0, (4, 2)), (0, (1, 1.5)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2)), (0, (8, 2, 1, 2)))
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down", "star")
PAPER_MARKERS = ("o", "s", "D", "^", "x", "+", "v", "*")
INK = -1  # the style of what belongs to no series: text's colour

# Names in a figure's description, resolved on the page by its theme.
_LIGHT_NAMES = {"ink": "#1B1B1B", "faint": "#6B6B6B", "grid": "#DEDEDE", "page": "#FFFFFF"}
_DARK_NAMES = {"ink": "#ECECEC", "faint": "#A8A8A8", "grid": "#3A3A3A", "page": "#141414"}


def themes() -> dict[str, dict[str, str]]:
    """Return each theme's colours by the names that figures use: `0` to `7`, `ink`, `faint`, `grid`, `page`."""
    return {
        "light": {str(number): colour for number, colour in enumerate(LIGHT)} | _LIGHT_NAMES,
        "dark": {str(number): colour for number, colour in enumerate(DARK)} | _DARK_NAMES,
    }


def colour_name(style: int) -> str:
    """Return the name of a style's colour."""
    return "ink" if style == INK else str(style % len(LIGHT))


def dash_number(style: int) -> int:
    """Return which of the dashes a style has; the first eight styles differ in colour, and the later ones also."""
    return 0 if style == INK else style % len(DASHES)


def colour_map(scale: Scale) -> str:
    """Return matplotlib's name of a scale: high is light in viridis, and red in the diverging one."""
    return {"sequential": "viridis", "diverging": "RdBu_r"}[scale]


def scale_steps(scale: Scale, number: int = 17) -> list[list[float | str]]:
    """Return a scale as plotly takes it: places from 0 to 1, and their colours."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    chosen = colormaps[colour_map(scale)]
    places = [step / (number - 1) for step in range(number)]
    return [[place, to_hex(chosen(place))] for place in places]
