"""Shows that two source trees of this package compute the same bytes on this machine.

`python scripts/compare_commits.py OLD_TREE NEW_TREE [--cases plain,forks] [--jobs 2] [--work DIR]`

Both trees do the same work through the command line alone, in fresh processes of this interpreter whose PYTHONPATH
is the tree; then every state, ledger, results file and sweep table is compared. In the cases called `cross_...`
the new tree goes on with what the old tree made. The exit code is 1 at any difference, and the first one is named.

Both trees work under one path, one after the other: paths stand in sweep tables, whose bytes are compared too.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from commit_cases import CASES, CROSS_CASES, Case, CaseError, Tree, make_data

COMPARED_FILES = ("training_res.csv", "steps.jsonl", "best.json", "sweep.csv", "sweep.parquet")
STATE_FOLDERS = ("dora_params", "step_checkpoints", "kept")
NO_STATE_KEYS = {"provenance", "format_version"}


# --- comparing --------------------------------------------------------------------------------------------


def compare(old: Path, new: Path) -> tuple[int, int, str | None]:
    """Compare what two trees left of a case.

    Returns:
        The numbers of files and of states compared, and the first difference; None if there is none.
    """
    found = [set(compared_files(each)) for each in (old, new)]
    num_files = num_states = 0
    for path in sorted(found[0] | found[1]):
        for side, paths in zip(("OLD", "NEW"), found, strict=True):
            if path not in paths:
                return num_files, num_states, f"{path}: not there with {side}_TREE"
        is_state = path.suffix == ".pth"
        difference = (difference_of_states if is_state else difference_of_bytes)(old / path, new / path)
        if difference is not None:
            return num_files, num_states, f"{path}: {difference}"
        num_states, num_files = num_states + is_state, num_files + (not is_state)
    if num_states == 0:
        return num_files, num_states, "there is no state to compare"
    return num_files, num_states, None


def compared_files(directory: Path) -> Iterator[Path]:
    """List the states, ledgers, results and tables below a directory, relative to it."""
    for path in directory.rglob("*"):
        if path.name in COMPARED_FILES or (path.suffix == ".pth" and path.parent.name in STATE_FOLDERS):
            yield path.relative_to(directory)


def difference_of_bytes(old: Path, new: Path) -> str | None:
    """Say in which line two files first differ."""
    contents = old.read_bytes(), new.read_bytes()
    if contents[0] == contents[1]:
        return None
    lines = [content.splitlines(keepends=True) for content in contents]
    pairs = enumerate(zip(*lines, strict=False))
    number = next((index for index, (a, b) in pairs if a != b), min(map(len, lines)))
    shown = [repr(each[number][:300]) if number < len(each) else "no such line" for each in lines]
    return f"line {number + 1} differs\n    old: {shown[0]}\n    new: {shown[1]}"


def difference_of_states(old: Path, new: Path) -> str | None:
    """Say in which digest or value two states first differ; neither tree's modules are needed to read them."""
    contents = [torch.load(path, weights_only=True) for path in (old, new)]
    digests = [content["state_digest"] for content in contents]
    if digests[0] != digests[1]:
        return f"state digests differ\n    old: {digests[0]}\n    new: {digests[1]}"
    leaves = [dict(leaves_of({k: v for k, v in each.items() if k not in NO_STATE_KEYS})) for each in contents]
    for name in sorted(leaves[0].keys() | leaves[1].keys()):
        if leaves[0].get(name) != leaves[1].get(name):
            return f"{name} differs under one state digest"
    return None


def leaves_of(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a state: the name and the exact value of each of its leaves."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves_of(each, f"{name}/{key}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from leaves_of(each, f"{name}/{index}")
    elif isinstance(value, torch.Tensor):
        yield name, (str(value.dtype), tuple(value.shape), value.numpy().tobytes())
    else:
        yield name, repr(value)  # repr tells -0.0 from 0.0, and equals itself where the value is NaN


# --- running ----------------------------------------------------------------------------------------------


def run_case(tree: Tree, name: str, case: Case, results: Path, begun_from: Path | None = None) -> str | None:
    """Let a tree do a case in its turn under the path that all share, then put it where it stays.

    Args:
        tree: at work.
        name: of the case's directory.
        case: what to do.
        results: where this tree's cases stay.
        begun_from: what another tree left, to go on with.

    Returns:
        What went wrong; None if all went well.
    """
    began = time.monotonic()
    here = results.parent / "side" / name
    if begun_from is None:
        here.mkdir(parents=True)
    else:
        shutil.copytree(begun_from, here)
    try:
        case(tree, here)
    except CaseError as error:
        return str(error)
    finally:
        results.mkdir(exist_ok=True)
        here.rename(results / name)
        print(f"  {results.name}: {name}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return None


def refuse_another_package(tree: Tree, place: Path) -> None:
    """Make sure that PYTHONPATH decides which package runs, whatever is installed."""
    output = place / "package.output"
    code = "import clip_hba_behavior; print(clip_hba_behavior.__file__)"
    found = Path(tree.finish(tree.start(["-c", code], output), output).strip())
    if found.parent.parent != tree.path:
        raise SystemExit(f"{tree.path} holds no package of its own: {found} would run")


@contextmanager
def working_directory(given: Path | None) -> Iterator[Path]:
    """Hand out a directory: the one that is given, which stays, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True)
        yield given.absolute()
    else:
        with tempfile.TemporaryDirectory(prefix="compare_commits_") as name:
            yield Path(name)


def main() -> int:
    """Run the cases with both trees and compare; return the exit code."""
    every = [*CASES, *CROSS_CASES]
    parser = argparse.ArgumentParser(description="Show that two source trees of this package give equal bytes.")
    parser.add_argument("old_tree", type=Path)
    parser.add_argument("new_tree", type=Path)
    parser.add_argument("--cases", default=",".join(every), help=f"some of {', '.join(every)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--work", type=Path, help="a new directory that keeps the runs; default: a temporary one")
    given = parser.parse_args()
    chosen = given.cases.split(",")
    if unknown := [name for name in chosen if name not in every]:
        parser.error(f"no such case: {', '.join(unknown)}; there are {', '.join(every)}")
    with working_directory(given.work) as work:
        return compare_trees(given.old_tree.absolute(), given.new_tree.absolute(), chosen, given.jobs, work)


def compare_trees(old_path: Path, new_path: Path, chosen: Sequence[str], jobs: int, work: Path) -> int:
    """Let both trees do the cases, print a line per case, and return the exit code."""
    old, new = (
        Tree(path, work / "data", work / f"cache_{side}", jobs)
        for side, path in (("old", old_path), ("new", new_path))
    )
    for tree in (old, new):
        refuse_another_package(tree, work)
    make_data(old, work)
    done: dict[tuple[str, str], str | None] = {}

    def do(side: str, tree: Tree, name: str) -> str | None:
        if (side, name) not in done:
            done[side, name] = run_case(tree, name, CASES[name], work / side)
        return done[side, name]

    first: str | None = None
    for name in chosen:
        if name in CASES:
            expected, found = work / "old" / name, work / "new" / name
            error = do("old", old, name) or do("new", new, name)
        else:
            source, equal_to, case = CROSS_CASES[name]
            expected, found = work / "old" / equal_to, work / name / source
            error = do("old", old, source) or do("old", old, equal_to)
            error = error or run_case(new, source, case, work / name, begun_from=work / "old" / source)
        num_files, num_states, difference = (0, 0, error) if error else compare(expected, found)
        equal = f"equal: {num_files} files, {num_states} states"
        print(f"{name}: {equal if difference is None else f'DIFFERENT: {difference}'}", flush=True)
        if first is None and difference is not None:
            first = f"{name}: {difference}"
    print(f"equal in all of {len(chosen)} cases" if first is None else f"different; first in {first}")
    return 0 if first is None else 1


if __name__ == "__main__":
    sys.exit(main())
