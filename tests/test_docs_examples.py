"""Every example of the documentation is run by a test, or is in a list here with the reason why not."""

import os
import re

import pytest
import typer

from clip_hba_behavior.cli import app
from test_docs_commands import DOCS, DOCUMENTS, REPOSITORY, TUTORIALS, Block, blocks

RUN = {*DOCUMENTS, *(f"tutorials/{name}" for name in TUTORIALS), "own_data", "REPORTS", "STATISTICS", "SWEEPS"}
"""Pages of which all is run, by `test_docs_commands.py` and `test_docs_given.py`."""
PYTHON_RUN = {"ANY_LOOP", "EXACT"}
"""Pages whose Python is run by `test_docs_given.py`."""

TORCHRUN = "starts torchrun, as tests/end_to_end/test_several_processes.py does"
OTHER_MACHINE = "compares with another machine's digest; tests/exact, tests/data and CI hold this one's"
OTHER_TRAINER = "needs a framework of benchmarks/peers/.venv; `make peers` runs the scripts that it is taken from"
NOT_RUN = {
    ("SWEEPS", "clip-hba sweep run sweep.yaml --engine slurm"): "needs SLURM: tests/slurm has one",
    ("SEVERAL_PROCESSES", "torchrun --nproc-per-node 4 "): TORCHRUN,
    ("PORTABLE", "arithmetic: portable"): "a key; tests/end_to_end/test_portable.py trains with it",
    ("PRECISION", "precision: bfloat16"): "a key; tests/end_to_end/test_precision.py trains with it",
    ("PORTABLE", "python scripts/portable_anywhere.py"): "tests/end_to_end/test_portable_digest.py calls it",
    ("EXACT", "python scripts/exact_anywhere.py "): OTHER_MACHINE,
    ("EXACT", "python scripts/images_anywhere.py "): OTHER_MACHINE,
    ("OTHER_SYSTEMS", "python3 -m venv .venv"): "installs PyTorch; CI installs in the same way by make",
    ("OTHER_SYSTEMS", "py -m venv .venv"): "needs Windows",
    ("OTHER_TRAINERS", "model, optimizer, schedule = accelerator.prepare("): OTHER_TRAINER,
    ("OTHER_TRAINERS", "module = Network("): OTHER_TRAINER,
    ("OTHER_TRAINERS", "trainer = Trainer("): OTHER_TRAINER,
    ("../benchmarks/peers/README", "make peers "): OTHER_TRAINER,
}
"""Blocks that are not run, by page and beginning of their first line, or lines of a page that is run; and why."""


def is_listed(name: str, line: str) -> bool:
    return any(page == name and line.startswith(start) for page, start in NOT_RUN)


def pages() -> dict[str, str]:
    files = [*DOCS.rglob("*.md"), *(REPOSITORY / each for each in ("README.md", "CHANGELOG.md"))]
    files += [REPOSITORY / "benchmarks/peers/README.md"]
    names = {each: os.path.relpath(each.with_suffix(""), DOCS) for each in files}
    others = ("index", "_build")  # navigation; what the site's builder writes
    return {name: file.read_text(encoding="utf-8") for file, name in names.items() if not name.startswith(others)}


def is_run(name: str, block: Block) -> bool:
    return name in RUN or (name in PYTHON_RUN and block.language == "python")


@pytest.mark.parametrize("name", pages())
def test_every_example_is_run_or_in_the_list_of_those_that_are_not(name: str) -> None:
    page = pages()[name]
    assert len(re.findall("^ *```", page, flags=re.MULTILINE)) == 2 * len(blocks(page))
    for block in blocks(page):
        if block.language:
            assert is_run(name, block) or is_listed(name, block.lines[0]), (
                f"{name}: nothing runs {block.lines[0]!r}"
            )
        else:  # it lays out files or their content, or quotes output of another machine
            commands = [
                line for line in block.lines if re.match(r"(clip-hba|python|make|torchrun|import|from) ", line)
            ]
            assert not commands or is_listed(name, commands[0]), f"{name}: name the language of {commands[0]!r}"
        if block.language == "python":
            compile("\n".join(block.lines), name, "exec")


def test_the_list_of_what_is_not_run_holds_nothing_else() -> None:
    found = pages()
    stale = [(name, start) for name, start in NOT_RUN if f"\n{start}" not in found[name]]
    assert stale == []


def test_the_page_of_commands_has_each_command_once() -> None:
    rows = re.findall(
        r"^\| `clip-hba ([^`]+)`", (DOCS / "COMMANDS.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    top = typer.main.get_command(app)
    names = []
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        below = getattr(command, "commands", {"": command})
        names += [f"{name} {each}".strip() for each, one in below.items() if not one.hidden]
    assert sorted(names) == sorted(name for row in rows for name in names if f"{row} ".startswith(f"{name} "))
