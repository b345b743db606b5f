"""Reports in a real Chromium: nothing from a network, no error, every figure drawn, usable by everyone."""

import itertools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import fresh_process
from browser import Visit, axe_problems, find_axe, visited
from fresh_process import Outcome

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]
SIZES = [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")]


@pytest.fixture(scope="module")
def pages(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a run, of it beside a copy with other results, and of a results table."""
    directory = tmp_path_factory.mktemp("pages")
    shutil.copytree(run, directory / "copy")
    table = run / "training_res.csv"
    asked = {"run": [run], "runs": [run, directory / "copy"], "table": [table]}
    for name, paths in asked.items():
        words = ["report", *map(str, paths), "--out", str(directory / name)]
        outcome = fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt")
        assert outcome.code == 0, outcome.output
    return {name: directory / name / "index.html" for name in asked}


@pytest.mark.parametrize(("width", "theme"), SIZES)
@pytest.mark.parametrize("name", ["run", "runs", "table"])
def test_a_page_draws_everything_from_disk_without_an_error(
    pages: dict[str, Path], name: str, width: int, theme: str
) -> None:
    with visited(pages[name], width, theme) as visit:
        assert visit.outside() == []
        assert len(visit.requests) > 3
        assert visit.errors == []
        plots = visit.page.locator(".plot").count()
        assert plots == visit.num_drawn() > 0
        assert (
            visit.page.evaluate("document.documentElement.scrollWidth") <= width
        )  # no page wider than its window
        is_dark = "rgb(20, 20, 20)" in visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert is_dark == (theme == "dark")
        paper = visit.page.locator(".plot .main-svg").first.evaluate("each => each.style.background")
        assert paper.replace(" ", "") == ("rgb(20,20,20)" if is_dark else "rgb(255,255,255)")


def test_a_page_that_reaches_out_is_noticed_and_stopped(pages: dict[str, Path], tmp_path: Path) -> None:
    """The check can fail: what a page asks of a network is refused by its policy, and is seen here."""
    shutil.copytree(pages["run"].parent, tmp_path / "report")
    page = tmp_path / "report/index.html"
    outside = '<img src="http://example.invalid/a.png" alt=""><script>window.ran = true</script>'
    page.write_text(page.read_text(encoding="utf-8").replace("<main", f"{outside}<main", 1), encoding="utf-8")
    with visited(page, 1400) as visit:
        said = "\n".join(visit.errors)
        assert re.search(r"http://example.invalid/a.png.*Content Security Policy", said)
        assert "inline script" in said
        assert visit.page.evaluate("window.ran === undefined")


def test_a_figure_follows_the_reader_s_theme(pages: dict[str, Path]) -> None:
    def paper(visit: Visit) -> str:
        return str(visit.page.locator(".plot .main-svg").first.evaluate("each => each.style.background"))

    with visited(pages["table"], 1400, "light") as visit:
        before = paper(visit)
        visit.page.emulate_media(color_scheme="dark")
        for _ in range(300):  # the page's policy forbids the evaluation that waiting for a function needs
            if paper(visit) != before:
                break
            visit.page.wait_for_timeout(100)
        assert "20, 20, 20" in paper(visit)


def test_without_scripts_the_figures_are_pictures(pages: dict[str, Path]) -> None:
    with visited(pages["run"], 1400, with_script=False) as visit:
        pictures = visit.page.locator("noscript img")
        assert pictures.count() == visit.page.locator("figure").count() == 8
        assert visit.page.evaluate(
            "[...document.querySelectorAll('noscript img')].every(each => each.naturalWidth > 0)"
        )


def test_everything_can_be_reached_by_keyboard_in_the_order_of_the_page(pages: dict[str, Path]) -> None:
    with visited(pages["run"], 1400) as visit:
        page = visit.page
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        expected = page.evaluate(
            "[...document.querySelectorAll('a[href], summary, button, [tabindex]')]"
            ".filter(each => each.tabIndex >= 0 && each.checkVisibility()).length"
        )
        places = []
        for _ in range(expected - 1):
            page.keyboard.press("Tab")
            top = "const box = document.activeElement.getBoundingClientRect(); return box.top + window.scrollY"
            places.append(page.evaluate(f"(() => {{ {top} }})()"))
        assert page.evaluate("document.activeElement.closest('footer') !== null")
        assert all(later >= earlier - 2 for earlier, later in itertools.pairwise(places))
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details").first.evaluate("each => each.open")


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return find_axe(tmp_path_factory.mktemp("axe"))


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (400, "dark")])
@pytest.mark.parametrize("name", ["run", "runs"])
def test_axe_finds_nothing(pages: dict[str, Path], name: str, width: int, theme: str, axe: str) -> None:
    with visited(pages[name], width, theme) as visit:
        visit.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
        assert axe_problems(visit, axe) == []


def test_axe_finds_what_is_wrong(pages: dict[str, Path], axe: str) -> None:
    with visited(pages["table"], 1400) as visit:
        visit.page.evaluate("document.querySelector('h1').style.color = '#eeeeee'")
        assert any(each.startswith("color-contrast") for each in axe_problems(visit, axe))


def test_a_report_takes_no_more_than_a_few_imports_of_torch(
    run: Path, clip_hba: Callable[..., Outcome], tmp_path: Path
) -> None:
    """Torch is imported once, and matplotlib draws meanwhile: three to four times as long on a free machine."""
    import subprocess
    import sys
    import time

    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import torch._inductor.config"], check=True)
    of_torch = time.monotonic() - started
    started = time.monotonic()
    command = [sys.executable, "-m", "clip_hba_behavior", "report", str(run), "--out", str(tmp_path / "report")]
    subprocess.run(command, check=True)
    took = time.monotonic() - started
    print(f"torch {of_torch:.1f} s, report {took:.1f} s, {took / of_torch:.1f} times")
    assert took < max(20.0, 8 * of_torch)
