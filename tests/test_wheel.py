"""The package as a wheel: all of it is there, and it works without the source tree and without make."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGE = "clip_hba_behavior"


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


@pytest.mark.system
@pytest.mark.timeout(900)
def test_an_installed_wheel_holds_the_whole_package_and_trains_without_the_sources(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call(*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, REPOSITORY, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith(f"{PACKAGE}/")}
    tracked = call("git", "ls-files", PACKAGE, cwd=REPOSITORY).splitlines()
    assert sorted(set(tracked) - held) == []
    assert sorted(held - set(tracked)) == []

    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv/bin/python"
    # what the package needs comes from this environment; the package does not: a path file's own are not read
    own = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (Path(own) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(*pip, "--python", python, "install", "--no-deps", "--no-index", "--force-reinstall", wheel, cwd=tmp_path)
    where = call(python, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)", cwd=tmp_path).strip()
    assert Path(where) == Path(own) / PACKAGE / "__init__.py"

    said = call(tmp_path / "venv/bin/clip-hba", "demo", "--run-dir", "demo", cwd=tmp_path)
    assert "0 of 29 tensors differ; ledger and results the same bytes" in said

    # a bundle of that run, made by the sources, checked and trained again by the wheel under another path
    (tmp_path / "elsewhere").mkdir()
    bundle = tmp_path / "elsewhere" / "demo.zip"
    call(sys.executable, "-m", PACKAGE, "bundle", tmp_path / "demo" / "baseline", "--out", bundle, cwd=REPOSITORY)
    shutil.rmtree(tmp_path / "demo")
    verify = (tmp_path / "venv/bin/clip-hba", "verify", "bundle", "demo.zip")
    said = call(*verify, "--epochs", "all", cwd=tmp_path / "elsewhere")
    assert "complete: " in said
    assert "claim level L3" in said
    assert "reproducible: 6 of 6 epochs repeat to the last bit, every state, step and result" in said
