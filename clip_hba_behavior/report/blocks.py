"""What a page is made of."""

from collections.abc import Sequence
from dataclasses import dataclass

from clip_hba_behavior.report.figure import Cell, Figure, Table


def sentence(text: str) -> str:
    """Return a text with a full stop, and a capital unless it begins with the name of a file or setting."""
    first = text.partition(" ")[0]
    beginning = text[:1] if any(each in first for each in "/_.=") else text[:1].upper()
    return f"{beginning}{text[1:]}{'' if text.endswith((':', '.')) else '.'}"


@dataclass(frozen=True)
class Facts:
    """Names and values, under each other."""

    rows: Sequence[tuple[str, Cell]]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Command:
    """A command to copy, and what it does."""

    text: str
    command: str


@dataclass(frozen=True)
class Missing:
    """What the page could show and does not.

    Attributes:
        what: that is not shown.
        why: the reason.
        command: what makes it; None where nothing does.
    """

    what: str
    why: str
    command: str | None = None


@dataclass(frozen=True)
class Titled:
    """A table with its title; `name` is its anchor and file."""

    name: str
    title: str
    text: str
    table: Table


@dataclass(frozen=True)
class Picture:
    """One image of a gallery.

    Attributes:
        name: of the image.
        jpeg: its thumbnail; None where it could not be read.
        lines: what is said of it.
    """

    name: str
    jpeg: bytes | None
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Gallery:
    """Images side by side."""

    title: str
    pictures: Sequence[Picture]


Block = Facts | Text | Command | Missing | Titled | Gallery | Figure


@dataclass(frozen=True)
class Section:
    """A part of a page with a title; `name` is its anchor."""

    name: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        file: its name, such as `index.html`.
        title: of the page.
        lead: a sentence on what it is.
        sections: in their order.
        links: other pages of the report: file and title.
    """

    file: str
    title: str
    lead: str
    sections: Sequence[Section]
    links: Sequence[tuple[str, str]] = ()

    def figures(self) -> list[Figure]:
        """Return the figures in their order."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Figure)]

    def tables(self) -> list[Titled]:
        """Return the tables that stand by themselves."""
        return [block for section in self.sections for block in section.blocks if isinstance(block, Titled)]
