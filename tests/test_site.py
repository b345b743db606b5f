"""The documentation site: built without a warning, and read in a real Chromium from disk without a network."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from browser import Visit, axe_problems, find_axe, visited

REPOSITORY = Path(__file__).parent.parent
SIZES = [(1400, "light"), (1400, "dark"), (400, "light"), (400, "dark")]
PAGES = ["index", "QUICK_START", "configuration", "api/exact", "STATISTICS"]


def test_every_public_name_is_in_the_reference() -> None:
    for name in ("clip_hba_behavior", "clip_hba_behavior.reproducibility", "clip_hba_behavior.exact"):
        page = (REPOSITORY / f"docs/api/{name.rpartition('.')[2]}.rst").read_text(encoding="utf-8")
        described = re.findall(r"^\.\. auto\w+:: ([\w.]+)", page, flags=re.MULTILINE)
        assert len(described) == len(set(described))
        assert [
            each for each in import_module(name).__all__ if each not in described and f"``{each}``" not in page
        ] == []


def build(sources: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make docs` does."""
    words = ["sphinx", "--quiet", "--fail-on-warning", sources / "docs", site]
    return subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sphinx", reason="Sphinx is not installed: pip install '.[docs]'")
    copy = tmp_path_factory.mktemp("repository")
    for name in ("docs", "examples", "benchmarks/peers"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("_build", ".venv"))
    for name in ("README.md", "CHANGELOG.md", "LICENSE", "CITATION.cff"):
        shutil.copy2(REPOSITORY / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def site(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("site")
    done = build(sources, directory)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return directory


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return find_axe(tmp_path_factory.mktemp("axe"))


def search(visit: Visit, word: str) -> list[str]:
    """Ask the site's own search, and return the titles that it finds."""
    visit.page.locator("input.sidebar-search").fill(word)
    visit.page.locator("input.sidebar-search").press("Enter")
    visit.page.wait_for_url("**/search.html?q=*")
    visit.page.locator("#search-results p.search-summary", has_text="found").wait_for()
    return [str(each) for each in visit.page.locator("#search-results li a").all_text_contents()]


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_link_that_leads_nowhere_is_an_error(sources: Path, site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site")
    page = sources / "docs/LINKS.md"
    for target in ("EXACT.md#no-such-heading", "NO_SUCH_PAGE.md", "EXACT.md#accuracy"):
        page.write_text(f"---\norphan: true\n---\n# Links\n\n[somewhere]({target})\n")
        done = build(sources, tmp_path / "site")
        is_broken = target != "EXACT.md#accuracy"
        assert (done.returncode == 1) == is_broken == ("LINKS.md" in done.stderr), done.stderr
        assert ("xref_missing" in done.stderr) == is_broken
    page.unlink()


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("width", "theme"), SIZES)
def test_pages_are_read_from_disk_without_an_error(site: Path, width: int, theme: str) -> None:
    with visited(site / "index.html", width, theme) as visit:
        for name in PAGES:
            visit.page.goto((site / f"{name}.html").as_uri())
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width, name
            lightness = visit.page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
            assert (int(lightness) < 60) == (theme == "dark")
        pictures = "[...document.images].every(each => each.naturalWidth > 0)"
        assert visit.page.evaluate(pictures)
        assert visit.outside() == []
        assert visit.errors == []
        assert len(visit.requests) > len(PAGES)


@pytest.mark.system
@pytest.mark.timeout(900)
def test_the_search_finds_a_word_without_a_network(site: Path) -> None:
    with visited(site / "index.html", 1400) as visit:
        assert "Reproducibility guide" in search(visit, "quarantine")
        assert any("track" in each for each in search(visit, "track"))
        assert visit.outside() == []
        assert visit.errors == []


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (400, "dark")])
def test_axe_finds_nothing_serious(site: Path, width: int, theme: str, axe: str) -> None:
    with visited(site / "index.html", width, theme) as visit:
        for name in [*PAGES, "search"]:
            visit.page.goto((site / f"{name}.html").as_uri())
            assert axe_problems(visit, axe, ["serious", "critical"]) == [], name
