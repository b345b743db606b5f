"""A real Chromium over pages on this disk: what they load, what goes wrong, what is drawn."""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
AXE = "axe-core@4.14.1"


def find_chromium() -> str:
    """The path of Chromium, which apt-get installs where it is missing; skips where it cannot."""
    if found := next(filter(None, map(shutil.which, _NAMES)), None):
        return found
    if not shutil.which("apt-get"):
        pytest.skip("there is no Chromium, and no apt-get to install it")
    with (Path(tempfile.gettempdir()) / "clip_hba_tests_apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another worker of pytest may be at it
        if found := next(filter(None, map(shutil.which, _NAMES)), None):
            return found
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for words in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
            done = subprocess.run(
                ["apt-get", *words], env=environment, capture_output=True, text=True, timeout=600
            )
            if done.returncode:
                pytest.skip(f"apt-get {' '.join(words)} exited with {done.returncode}: {done.stderr[-300:]}")
        return str(shutil.which("chromium"))


def find_axe(directory: Path) -> str:
    """The accessibility checker's script, from npm; skips where that cannot be reached."""
    if not shutil.which("npm"):
        pytest.skip("axe-core comes by npm, which is not installed")
    command = ["npm", "pack", AXE, "--silent", "--cache", str(directory / "cache")]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm pack {AXE} did not end within 120 s")
    if done.returncode:
        pytest.skip(f"npm pack {AXE} exited with {done.returncode}: {done.stderr[-300:]}")
    archive = done.stdout.split()[-1]
    shutil.unpack_archive(directory / archive, directory, filter="data")
    return (directory / "package/axe.min.js").read_text(encoding="utf-8")


@dataclass
class Visit:
    """What one visit of a page showed.

    Attributes:
        page: playwright's.
        requests: every address that was asked for.
        errors: what the console and the scripts complained of.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def outside(self) -> list[str]:
        """The addresses that are not on this disk or in the page itself."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]

    def num_drawn(self) -> int:
        """How many of the page's plots hold a drawing."""
        drawn = "[...document.querySelectorAll('.plot')].filter(each => each.querySelector('.main-svg')).length"
        return int(self.page.evaluate(drawn))


def axe_problems(visit: Visit, axe: str, impacts: Collection[str] = ()) -> list[str]:
    """What the accessibility checker finds on a page: everything, or what has one of these impacts."""
    visit.page.evaluate(axe)
    found: dict[str, Any] = visit.page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for each in found["violations"]
        if not impacts or each["impact"] in impacts
        for node in each["nodes"]
    ]


@contextmanager
def visited(file: Path, width: int, theme: str = "light", with_script: bool = True) -> Iterator[Visit]:
    """Open a page from disk in a window of this width, and wait until its figures are drawn."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            java_script_enabled=with_script,
            bypass_csp=False,
        )
        context.set_default_timeout(120_000)
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.requests.append(request.url))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda message: _note(visit, message))
        visit.page.goto(file.absolute().as_uri(), wait_until="load")
        deadline = time.monotonic() + 30
        plots = visit.page.locator(".plot").count() if with_script else 0
        while plots and visit.num_drawn() < plots and time.monotonic() < deadline:
            visit.page.wait_for_timeout(50)
        yield visit
        browser.close()


def _note(visit: Visit, message: Any) -> None:
    if message.type in ("error", "warning"):
        visit.errors.append(message.text)
