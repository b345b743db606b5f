"""What `make dist` builds: all that belongs is there, and it works without the source tree and without make."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.metadata import Metadata

from clip_hba_behavior.version import __version__
from conftest import REPOSITORY

PACKAGE = "clip_hba_behavior"
OF_CI_ALONE = {".ci/run"}

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]


def call(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@dataclass(frozen=True)
class Distribution:
    """A wheel and an sdist."""

    wheel: Path
    sdist: Path


def build(sources: Path, directory: Path) -> Distribution:
    """Build as `make dist` does, into a directory of its own."""
    call(sys.executable, "-m", "hatchling", "build", "--directory", directory, cwd=sources)
    (wheel,), (sdist,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return Distribution(wheel, sdist)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("these are the files of an sdist: what belongs into one is known in a clone")
    return call("git", "ls-files", cwd=REPOSITORY).splitlines()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    return build(REPOSITORY, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def unpacked(built: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's files, under another path."""
    directory = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(built.sdist) as archive:
        archive.extractall(directory, filter="data")
    return directory / f"{PACKAGE}-{__version__}"


@pytest.fixture(scope="module")
def installed(built: Distribution, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel in it, not the repository."""
    directory = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", directory, cwd=directory)
    python = directory / "bin/python"
    # what the package needs comes from this environment; the package does not: a path file's own are not read
    own = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory).strip())
    others = [each for each in sys.path if Path(each).name == "site-packages"]
    (own / "others.pth").write_text("".join(f"{each}\n" for each in others))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    call(*pip, "install", "--no-deps", "--no-index", "--force-reinstall", built.wheel, cwd=directory)
    where = call(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=directory).strip()
    assert Path(where) == own / PACKAGE / "__init__.py"
    return directory


def test_the_wheel_holds_the_whole_package_and_nothing_else(built: Distribution, tracked: list[str]) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        held = archive.namelist()
    about = f"{PACKAGE}-{__version__}.dist-info/"
    assert {name for name in held if not name.startswith(about)} == {
        name for name in tracked if name.startswith(f"{PACKAGE}/")
    }
    licences = {name.removeprefix(f"{about}licenses/") for name in held if name.startswith(f"{about}licenses/")}
    assert licences == {"LICENSE", f"{PACKAGE}/report/vendor/LICENSE-plotly.txt"}


def test_the_sdist_holds_what_builds_and_tests_the_package(unpacked: Path, tracked: list[str]) -> None:
    held = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert held - {"PKG-INFO"} == set(tracked) - OF_CI_ALONE
    assert set(tracked) >= OF_CI_ALONE


def test_the_same_files_give_the_same_bytes_under_another_path_and_of_another_time(
    built: Distribution, unpacked: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(unpacked, moved, copy_function=shutil.copyfile)  # with the times of now
    again = build(moved, tmp_path / "dist")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()

    with (moved / PACKAGE / "version.py").open("a") as file:
        file.write("# another byte\n")
    other = build(moved, tmp_path / "other")
    assert other.wheel.read_bytes() != built.wheel.read_bytes()
    assert other.sdist.read_bytes() != built.sdist.read_bytes()


def test_an_index_can_read_the_metadata(built: Distribution) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        content = archive.read(f"{PACKAGE}-{__version__}.dist-info/METADATA")
    metadata = Metadata.from_email(content, validate=True)
    assert (metadata.name, str(metadata.version)) == ("clip-hba-behavior", __version__)
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (REPOSITORY / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ExceptionGroup, match="invalid or unparsed"):
        Metadata.from_email(content.replace(b"Requires-Python: ", b"Requires-Python: about "), validate=True)


def test_what_is_installed_trains_and_verifies_without_the_sources(installed: Path, tmp_path: Path) -> None:
    clip_hba = installed / "bin/clip-hba"
    assert call(clip_hba, "--version", cwd=tmp_path) == f"clip-hba {__version__}\n"
    demo = call(clip_hba, "demo", "--run-dir", "demo", cwd=tmp_path)
    assert "0 of 29 tensors differ; ledger and results the same bytes" in demo
    said = call(clip_hba, "verify", "quick", cwd=tmp_path)
    assert "reproducible" in said
    call(clip_hba, "report", "demo/baseline", "--out", "report", cwd=tmp_path)
    assert (tmp_path / "report/index.html").stat().st_size > 0


def test_a_bundle_is_checked_and_trained_again_by_another_installation_under_another_path(
    installed: Path, tmp_path: Path
) -> None:
    call(sys.executable, "-m", PACKAGE, "demo", "--run-dir", tmp_path / "demo", cwd=REPOSITORY)
    (tmp_path / "elsewhere").mkdir()
    bundle = tmp_path / "elsewhere" / "demo.zip"
    call(sys.executable, "-m", PACKAGE, "bundle", tmp_path / "demo" / "baseline", "--out", bundle, cwd=REPOSITORY)
    shutil.rmtree(tmp_path / "demo")
    verify = (installed / "bin/clip-hba", "verify", "bundle", "demo.zip")
    said = call(*verify, "--epochs", "all", cwd=tmp_path / "elsewhere")
    assert "complete: " in said
    assert "claim level L3" in said
    assert "reproducible: 6 of 6 epochs repeat to the last bit, every state, step and result" in said
