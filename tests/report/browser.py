"""A real Chromium over a report: what it loaded, what went wrong, what it drew."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


def chromium() -> str:
    """The path of this machine's Chromium; without one the test is skipped."""
    found = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
    )
    if not found:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    return found


@dataclass
class Visit:
    """What one visit of a page showed."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def visited(file: Path, width: int, theme: str, with_script: bool = True) -> Iterator[Visit]:
    """Open a page from disk, in a window of this width; wait until its figures are drawn."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, java_script_enabled=with_script
        )
        page = context.new_page()
        visit = Visit(page)
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on(
            "console",
            lambda message: visit.errors.append(message.text) if message.type in ("error", "warning") else None,
        )
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.on("requestfailed", lambda request: visit.errors.append(f"failed: {request.url}"))
        page.goto(file.absolute().as_uri())
        page.wait_for_load_state("load")
        if with_script:
            page.wait_for_timeout(500)
        yield visit
        browser.close()
