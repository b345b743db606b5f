"""The digest of a small portable run is this one on every machine, and whatever the machine is told."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent.parent / "scripts"
GOLDEN = "40a3b405edf48581df85897542197370cb01965c7beb5cb402e739b2d8b5b3ec"


def test_the_digest_is_this_one_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = str(SCRIPTS / "portable_anywhere.py")
    trained = subprocess.run(
        [sys.executable, "-W", "error", script, "--small", "--keep", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (trained.returncode, trained.stdout.splitlines()[-1]) == (0, GOLDEN), trained.stderr

    ledger = tmp_path / "run" / "steps.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-1])
    monkeypatch.setattr(sys, "argv", [script, "--small", "--digest", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr()
    found = printed.out.strip()
    assert ended.value.code == 1
    assert printed.err == f"the run's digest differs\n  found:    {found}\n  expected: {GOLDEN}\n"


@pytest.mark.system
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("varied", ["=", "thread", "engine", "chunks", "evaluation", "processes"])
def test_no_variation_changes_it(varied: str) -> None:
    table = subprocess.run(
        [sys.executable, str(SCRIPTS / "portable_table.py"), "--small", "--only", varied],
        capture_output=True,
        text=True,
        check=False,
    )
    assert table.returncode == 0, table.stdout + table.stderr
    assert len(table.stdout.splitlines()) > 2
