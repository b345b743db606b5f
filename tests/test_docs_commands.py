"""What these documents show is done: commands, snippets, exit codes, quoted output.

Fenced blocks, by language: `yaml` is written to the file that its first line names; each line of `bash` is run,
and ends with exit code 0 or what `# exits N` says; `python` is run, or written to the file that its first line
names; each line of `text` must be in the output of the document's commands, numbers apart; `csv` holds headers of
results tables; `py` needs a package that is not installed, and is only compiled; a block without a language
lays out files or their content. Every document has a directory of its own, which stands for the clone. The quick
tests train on a smaller data set. A tutorial begins in an empty directory, and each of its blocks is done where it
stands.
"""

import json
import os
import re
import runpy
import shlex
import shutil
import sys
import textwrap
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer

import fresh_process
from clip_hba_behavior.cli import app
from clip_hba_behavior.config import DATA_KEYS
from clip_hba_behavior.run.checkpoint_files import list_checkpoints

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
SCRIPTS = Path("clip_hba_behavior/training_scripts")
QUICK_SCRIPT = "test_checkpoint_quick.py"  # only looked up here: tests/verification/test_quick.py runs it
DOCUMENTS = [
    "../README",
    *("QUICK_START", "TEST_README", "TEST_YOUR_CHECKPOINTS", "REPRODUCIBILITY_GUIDE", "PERTURBATIONS", "USE"),
    "BUNDLES",
    "TRACKING",
    "FROM_THE_EARLIER_PIPELINE",
]
TUTORIALS = {"any_loop": [], "own_data": [pytest.mark.system], "perturbation_study": [pytest.mark.system]}
SECONDS = re.compile(r"[0-9.]+ s\b")
NUMBER = re.compile(r"\b[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?\b|\b[0-9a-f]{12,64}\b")


@dataclass(frozen=True)
class Block:
    language: str
    lines: list[str]


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^( *)```(\w*)\n(.*?)^\1```$", page, flags=re.MULTILINE | re.DOTALL)
    return [Block(language, textwrap.dedent(content).splitlines()) for _, language, content in found]


@dataclass
class Reader:
    """Does what a document says, in a directory that stands for the clone."""

    directory: Path
    scratch: Path
    outputs: list[str] = field(default_factory=list)

    def do(self, block: Block) -> None:
        if block.language == "bash":
            here = self.directory
            for line in block.lines:
                words = shlex.split(line, comments=True)
                if words[:1] == ["cd"]:
                    here = here / words[1]
                    assert here.is_dir(), line
                elif words:
                    self.run_line(here, line, words)
        elif block.language == "yaml" or file_of(block):
            (self.directory / file_of(block)).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
        elif block.language == "python":
            self.call(0, "\n".join(block.lines), run_snippet, self.directory, "\n".join(block.lines))
        elif block.language == "py":
            compile("\n".join(block.lines), "snippet", "exec")

    def run_line(self, here: Path, line: str, words: list[str]) -> None:
        said = re.search(r"# exits (\d+)", line)
        code = int(said[1]) if said else 0
        if words[0] == "clip-hba":
            self.call(code, line, run_clip_hba, here, words[1:])
        elif words == ["python", QUICK_SCRIPT]:
            assert (here / words[1]).is_file(), line
        elif words[0] == "python":
            self.call(code, line, run_script, here, words[1:])
        elif words[0] == "make":  # it installs and trains: only looked up here; `make demo` is CI's
            assert re.search(rf"^{words[1]}:", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE), line
        else:
            assert line.split("#")[0].strip() == "source .venv/bin/activate", f"the test cannot run: {line}"
            assert "VENV := .venv" in (REPOSITORY / "Makefile").read_text()

    def call(self, code: int, what: str, work: object, *arguments: object) -> None:
        output = self.scratch / f"{len(self.outputs)}.txt"
        outcome = fresh_process.call(work, *arguments, output=output, timeout=600)  # type: ignore[arg-type]
        self.outputs.append(outcome.output.replace(f"{self.directory}/", ""))
        assert outcome.code == code, f"{what}\nexit code {outcome.code}, expected {code}\n{outcome.output}"


def file_of(block: Block) -> str:
    """Name the file that a block is to be saved as; empty if it is none."""
    found = re.fullmatch(r"# (\w+\.(?:py|yaml))", block.lines[0])
    return found[1] if found else ""


def run_clip_hba(directory: Path, arguments: list[str]) -> None:
    os.chdir(directory)
    fresh_process.clip_hba(arguments)


def run_script(directory: Path, arguments: list[str]) -> None:
    os.chdir(directory)
    sys.argv = arguments
    runpy.run_path(str(directory / arguments[0]), run_name="__main__")


def run_snippet(directory: Path, code: str) -> None:
    os.chdir(directory)
    exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})


def without_numbers(line: str) -> str:
    return NUMBER.sub("#", line.strip())


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    clone = tmp_path / "clone"
    shutil.copytree(REPOSITORY / SCRIPTS, clone / SCRIPTS)
    return Reader(clone, tmp_path)


def make_old_checkpoints(reader: Reader) -> None:
    """Train a run and leave of it what the earlier pipeline left behind."""
    page = (DOCS / "TEST_YOUR_CHECKPOINTS.md").read_text(encoding="utf-8")
    headers = [line for block in blocks(page) if block.language == "csv" for line in block.lines]
    reader.run_line(reader.directory, "", shlex.split("clip-hba train old.yaml --set epochs=3 --run-dir gone"))
    gone = reader.directory / "gone"
    for epoch, path in list_checkpoints(gone / "dora_params").items():
        if epoch == 0:
            continue
        new = torch.load(path)
        old = {key: value for key, value in new.items() if key.startswith("clip_model.")}
        algorithm, key, *rest = new["rng_state"]["numpy_rng_state"]
        random_states = new["rng_state"] | {"numpy_rng_state": (algorithm, np.asarray(key), *rest)}
        for name, content in (("old_checkpoints", old), ("old_with_rng", old | {"rng_state": random_states})):
            (reader.directory / name).mkdir(exist_ok=True)
            torch.save(content, reader.directory / name / path.name)
    rows = [line.split(",")[1:5] for line in (gone / "training_res.csv").read_text().splitlines()[1:]]
    for name, header, first in zip(("old_results.csv", "later_results.csv"), headers, (1, 0), strict=True):
        lines = [header, *(",".join([str(first + number), *row]) for number, row in enumerate(rows))]
        (reader.directory / name).write_text("\n".join(lines) + "\n")
    shutil.rmtree(gone)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("../README", "small data"),
        *(pytest.param(name, "as it stands", marks=pytest.mark.system) for name in DOCUMENTS),
    ],
)
def test_every_command_of_the_document_does_what_it_says(
    name: str, data: str, reader: Reader, small_config: dict[str, Any]
) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    found = blocks(page)
    assert page.count("```") == 2 * len(found)
    assert {block.language for block in found} <= {"", "bash", "python", "py", "yaml", "text", "csv"}
    for block in found:
        if block.language == "yaml":
            keys = [f"{key}: {small_config[key]}" for key in DATA_KEYS] if data == "small data" else []
            reader.do(Block("yaml", [*block.lines, *keys]))
    if name in ("TEST_YOUR_CHECKPOINTS", "FROM_THE_EARLIER_PIPELINE"):
        make_old_checkpoints(reader)
    for block in found:
        if block.language != "yaml":
            reader.do(block)

    said = {without_numbers(line) for output in reader.outputs for line in output.splitlines()}
    quoted = [line for block in found if block.language == "text" for line in block.lines]
    assert [line for line in quoted if without_numbers(line) not in said] == []
    assert str(REPOSITORY) not in page
    if name == "TEST_README":
        certificates = [json.loads(path.read_text()) for path in reader.directory.glob("*.json")]
        assert len(certificates) == 3
        fields = set().union(
            *certificates, *(each["epochs"][0] for each in certificates if each["certificate"] == "verification")
        )
        assert {each for each in fields if f"`{each}`" not in page} == set()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in TUTORIALS.items()])
def test_a_tutorial_is_done_from_its_top_to_its_end(name: str, tmp_path: Path) -> None:
    page = (DOCS / f"tutorials/{name}.md").read_text(encoding="utf-8")
    found = blocks(page)
    assert page.count("```") == 2 * len(found)
    assert {block.language for block in found} <= {"bash", "python", "yaml", "text"}
    directory = tmp_path / "new"
    directory.mkdir()
    reader = Reader(directory, tmp_path)
    # portable arithmetic has the page's numbers on every machine, but for the seconds
    comparable = partial(SECONDS.sub, "# s") if "\narithmetic: portable\n" in page else without_numbers
    for block in found:
        if block.language == "text":
            said = {comparable(line.strip()) for output in reader.outputs for line in output.splitlines()}
            assert [line for line in block.lines if comparable(line.strip()) not in said] == []
        else:
            reader.do(block)


def test_every_tutorial_is_tested() -> None:
    assert {path.stem for path in (DOCS / "tutorials").glob("*.md")} == set(TUTORIALS)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("verify quick", "TEST_README"),
        ("verify checkpoints", "TEST_README"),
        ("verify results", "TEST_README"),
        ("diff", "TEST_README"),
        ("reconstruct", "TEST_YOUR_CHECKPOINTS"),
        ("fork", "PERTURBATIONS"),
        ("predict", "USE"),
        ("rdm", "USE"),
        ("odd-one-out", "USE"),
        ("export", "USE"),
        ("bundle", "BUNDLES"),
        ("verify bundle", "BUNDLES"),
        ("publish", "TRACKING"),
    ],
)
def test_every_option_is_explained(command: str, name: str) -> None:
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    found = typer.main.get_command(app)
    for word in command.split():
        found = found.commands[word]  # type: ignore[attr-defined]
    options = {each for parameter in found.params for each in (*parameter.opts, *parameter.secondary_opts)}
    missing = {each for each in options if each.startswith("--") and each != "--help" and each not in page}
    assert missing <= {"--replay"}  # the default


def test_every_script_and_every_target_of_make_is_there() -> None:
    targets = set(re.findall(r"^(\w[-\w]*):", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))
    missing = []
    for page in (*DOCS.rglob("*.md"), REPOSITORY / "README.md"):
        text = page.read_text(encoding="utf-8")
        scripts = re.findall(r"\b((?:benchmarks|scripts|examples)/\w+\.py)", text)
        missing += [f"{page.name}: {each}" for each in scripts if not (REPOSITORY / each).is_file()]
        missing += [
            f"{page.name}: make {each}" for each in re.findall(r"`make ([-\w]+)`", text) if each not in targets
        ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """Name the places of a page that a link can lead to, as GitHub does."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^-\w ]", "", each.lower()).replace(" ", "-") for each in headings}


def test_links_lead_somewhere() -> None:
    broken = []
    for page in (*DOCS.rglob("*.md"), REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
            target, _, anchor = link.partition("#")
            path = page.parent / target if target else page
            if "://" not in link and (not path.exists() or (anchor and anchor not in anchors(path))):
                broken.append(f"{page.name}: {link}")
    assert broken == []
