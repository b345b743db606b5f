"""The documentation site: Sphinx over the pages of this directory, `make docs`."""

import os
import re
from pathlib import Path
from typing import Any

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

from clip_hba_behavior import __version__

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent
ELSEWHERE = {"index": "README.md", "CHANGELOG": "CHANGELOG.md", "peers": "benchmarks/peers/README.md"}
"""Pages whose text is a file outside this directory; on GitHub they hold a link to it."""

project = "clip_hba_behavior"
author = "The clip_hba_behavior authors"
copyright = author
release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # docstrings mark code as Markdown does

myst_heading_anchors = 4  # links to headings, as GitHub makes them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
add_module_names = False
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"clip_hba_behavior {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_search_summary = False  # a summary is fetched, which browsers refuse to pages opened from disk
highlight_language = "none"  # a block that names no language is output or a command, not Python


def on_the_site(text: str, directory: Path) -> str:
    """Let relative links of a text in this directory lead to pages of the site, and a file's name be its title."""
    pages = {REPOSITORY / file: f"/{page}.md" for page, file in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        target = (directory / found["target"]).resolve()
        words = "" if re.fullmatch(r"[\w/]+\.md", found["words"]) else found["words"]
        return f"[{words}]({pages.get(target, '/' + os.path.relpath(target, DOCS))}"

    return re.sub(r"\[(?P<words>[^\[\]]*)\]\((?![a-z]+:|#)(?P<target>[^)#]+)", link, text)


def read_page(app: Sphinx, name: str, content: list[str]) -> None:
    """Take the text of a page from where it is, with links that hold on the site."""
    file = Path(app.env.doc2path(name))
    if name in ELSEWHERE:
        navigation = content[0] if name == "index" else ""
        file = REPOSITORY / ELSEWHERE[name]
        app.env.note_dependency(str(file))
        content[0] = f"{file.read_text(encoding='utf-8')}\n{navigation}"
    if file.suffix == ".md":
        content[0] = on_the_site(content[0], file.parent)


def make_accessible(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Let boxes that scroll be reached by keyboard, and headings of the navigation have a level."""
    body = context.get("body", "").replace("<pre>", '<pre tabindex="0">')
    context["body"] = body.replace('<div class="table-wrapper', '<div tabindex="0" class="table-wrapper')
    navigation = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = navigation.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_lexer("csv", TextLexer)
    app.connect("source-read", read_page)
    app.connect("html-page-context", make_accessible, priority=900)  # after the theme has made the navigation
