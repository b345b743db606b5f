import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def dependencies() -> list[str]:
    """Name every package that pyproject.toml asks for: to build, to run, to develop."""
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = content["build-system"]["requires"] + content["project"]["dependencies"]
    for extra in content["project"]["optional-dependencies"].values():
        wanted += extra
    names = [re.split(r"[^A-Za-z0-9._-]", each, maxsplit=1)[0] for each in wanted]
    return [each for each in names if each != content["project"]["name"]]  # an extra within another


def test_every_dependency_is_explained() -> None:
    page = (REPOSITORY / "docs/dependencies.md").read_text(encoding="utf-8")
    explained = {canonical(name) for name in re.findall(r"^\| `([^`]+)` \|", page, flags=re.MULTILINE)}
    assert {canonical(name) for name in dependencies()} == explained


def test_every_dependency_has_an_exact_pin() -> None:
    pins = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonical(name)] = version
    for name in dependencies():
        assert re.fullmatch(r"[0-9][0-9a-z.+]*", pins.get(canonical(name), "")), name
