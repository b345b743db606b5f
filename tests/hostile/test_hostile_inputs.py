"""Files that mean harm are refused: no code is run, no memory filled, no time lost, no traceback shown."""

import contextlib
import io
import json
from pathlib import Path

import pytest

import fresh_process
from hostile.corpus import ACCEPTED, CORPUS
from hostile.files import CANARY, PLACES, Build
from hostile.readers import READERS, attempt

MIB = 2**20


def read(reader: str, build: Build, tmp_path: Path) -> dict[str, object]:
    """Let a fresh process read a file within limits of memory and time; return how it went."""
    (tmp_path / "files").mkdir()
    path = build(tmp_path / "files")
    report = tmp_path / "report.json"
    (tmp_path / "work").mkdir()
    outcome = fresh_process.call(
        attempt, reader, str(path), str(tmp_path / "work"), str(report), output=tmp_path / "output.txt", timeout=30
    )
    assert "Traceback" not in outcome.output, outcome.output
    assert outcome.code == 2, outcome
    assert not list((tmp_path / "work").iterdir()), CANARY
    found: dict[str, object] = json.loads(report.read_text()) | {"path": str(path)}
    return found


def check(found: dict[str, object], message: str) -> None:
    said = str(found["message"])
    assert found["end"] == "refused"
    assert message in said
    assert "steps.jsonl" in said or str(found["path"]) in said or said.startswith("the configuration is wrong")
    assert len(said) < 12_000
    assert float(str(found["seconds"])) < 10
    assert int(str(found["grown"])) < 300 * MIB, found


@pytest.mark.system
@pytest.mark.parametrize(
    ("reader", "message", "build"),
    [
        pytest.param(reader, message, build, id=f"{reader}-{build.__name__}")
        for reader, cases in CORPUS.items()
        for message, build in cases
    ],
)
def test_a_hostile_file_is_refused(reader: str, message: str, build: Build, tmp_path: Path) -> None:
    check(read(reader, build, tmp_path), message)


@pytest.mark.parametrize(
    ("reader", "build"),
    [
        pytest.param(reader, build, id=f"{reader}-{build.__name__}")
        for reader in READERS
        for build in PLACES
        if (reader, build.__name__) not in ACCEPTED
    ],
)
def test_what_is_no_regular_file_of_the_kind_is_refused(reader: str, build: Build, tmp_path: Path) -> None:
    check(read(reader, build, tmp_path), "")


def inspect_each(paths: list[Path], report: Path) -> None:
    """Run `clip-hba inspect` on one file after the other, and write down how each ended."""
    from clip_hba_behavior.cli import main

    with report.open("w") as ends:
        for path in paths:
            output = io.StringIO()
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                code = main(["inspect", str(path)])
            print(json.dumps([str(path), code, output.getvalue()]), file=ends, flush=True)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.system), 7])
def test_inspect_refuses_hostile_checkpoints(every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command reads them by the reader above, which the quick tests give them all to."""
    paths = []
    for number, build in enumerate([*(build for _, build in CORPUS["checkpoint"][::every]), *PLACES]):
        (tmp_path / str(number)).mkdir()
        paths.append(build(tmp_path / str(number)))
    monkeypatch.chdir(tmp_path)
    report = tmp_path / "report.jsonl"
    outcome = fresh_process.call(inspect_each, paths, report, output=tmp_path / "output.txt")
    ends = [json.loads(line) for line in report.read_text().splitlines()]
    assert outcome.code == 0, (ends[-1:], outcome.output)
    assert [path for path, _, _ in ends] == [str(path) for path in paths]
    for path, code, said in ends:
        assert code == 2, (path, said)
        assert said.startswith("error: "), (path, said)
        assert "Traceback" not in said, (path, said)
    assert not (tmp_path / CANARY).exists()
