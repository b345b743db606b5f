"""Makes the run directories of an old commit that `tests/end_to_end/test_old_runs.py` goes on with.

`python scripts/make_old_runs.py OLD_TREE`, with a worktree of the old commit. It writes `tests/old_runs/`: small
runs as the old code leaves them, and in `expected.json` what the old code itself makes of them. Paths of this
machine become placeholders, which `tests/old_run_tools.py` puts back. Bits belong to a machine: where processor
or versions are others, the test skips; this script makes the runs again there. `--portable` makes, beside them,
the one run in portable arithmetic, whose bits are those of every machine; its commit must know that arithmetic.
"""

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from commit_cases import CaseError, Tree, copy_run, make_data

PLACE = Path(__file__).parent.parent / "tests" / "old_runs"
COMMAND = "-m", "clip_hba_behavior"
LAST_EPOCH = 5  # to which every run is resumed


def stopped(tree: Tree, arguments: list[object], run: Path, line: str, number: signal.Signals) -> int:
    """Start a command, send it a signal as soon as the run's ledger has a line, and return its exit code."""
    output = run.with_suffix(".output")
    process = tree.start([*COMMAND, *arguments], output)
    ledger = run / "steps.jsonl"
    while process.poll() is None:
        if ledger.exists() and line in ledger.read_text():
            process.send_signal(number)
            break
        time.sleep(0.001)
    return process.wait()


def until(attempt: Callable[[], bool], what: str) -> None:
    """Repeat an attempt that depends on when a signal arrives."""
    for _ in range(20):
        if attempt():
            return
    raise CaseError(f"no attempt of 20 gave {what}")


def make_interrupted(tree: Tree, runs: Path) -> None:
    """A run that a signal ended within its second epoch."""
    run = runs / "interrupted"
    config = tree.config(runs / "interrupted.yaml", checkpoint_every_steps=1, dora_dropout=0.1)

    def attempt() -> bool:
        shutil.rmtree(run, ignore_errors=True)
        arguments: list[object] = ["train", config, "--run-dir", run]
        code = stopped(tree, arguments, run, '{"epoch": 2, "step": 1,', signal.SIGTERM)
        return code == 75 and any((run / "step_checkpoints").glob("epoch2_step*.pth"))

    until(attempt, "an interruption within epoch 2")


def make_crashed(tree: Tree, runs: Path) -> None:
    """A run with damaged checkpoints, which was killed while it repeated what it had recorded."""
    whole, run = tree.train(runs, "whole", dora_dropout=0.1), runs / "crashed"
    for epoch in (2, 3):
        damage(whole / "dora_params" / f"epoch{epoch}_dora_params.pth")

    def attempt() -> bool:
        shutil.rmtree(run, ignore_errors=True)
        copy_run(whole, run)
        ledger = run / "steps.jsonl"
        before = ledger.stat().st_mtime_ns
        process = tree.start([*COMMAND, "resume", run], run.with_suffix(".output"))
        # the repetition begins with a ledger that ends with epoch 1; then comes its first line
        while process.poll() is None and (
            ledger.stat().st_mtime_ns == before or '{"epoch": 2, "step": 1,' not in ledger.read_text()
        ):
            time.sleep(0.001)
        process.kill()
        process.wait()
        refused = sorted((run / "dora_params").glob("*.refused1"))
        names = ("steps.jsonl.aside", "training_res.csv.aside")
        return len(refused) == 2 and all((run / name).exists() for name in names)

    until(attempt, "a kill before the repetition had caught up")
    shutil.rmtree(whole)


def damage(path: Path) -> None:
    """Cut a file in its middle, as a disk that was full."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def make_portable(tree: Tree, runs: Path) -> None:
    """A run in portable arithmetic."""
    tree.train(runs, "portable", arithmetic="portable", dora_dropout=0.1)


def make_native(tree: Tree, runs: Path) -> None:
    """Every run in native arithmetic."""
    plain = tree.train(runs, "plain")
    fork = ("fork", plain, "--at-epoch", 2, "--perturb", "label_shuffle", "--run-dir", runs / "fork")
    tree.call(runs, "fork", *fork)
    make_interrupted(tree, runs)
    make_crashed(tree, runs)


def what_the_old_code_makes_of(tree: Tree, run: Path, copy: Path) -> dict[str, Any]:
    """Resume a copy of a run with the old tree, and describe its end."""
    copy_run(run, copy)
    tree.call(copy.parent, copy.name, "resume", copy, "--set", f"epochs={LAST_EPOCH}")
    states = {
        int(path.name.removeprefix("epoch").partition("_")[0]): torch.load(path, weights_only=True)["state_digest"]
        for path in (copy / "dora_params").glob("epoch*.pth")
    }
    return {
        "states": {str(epoch): states[epoch] for epoch in sorted(states)},
        "files": {
            name: sha256((copy / name).read_bytes()).hexdigest() for name in ("training_res.csv", "steps.jsonl")
        },
    }


def without_paths(path: Path, placeholders: dict[str, str]) -> None:
    """Put placeholders where a file names paths of this machine."""
    content = path.read_bytes()
    if path.suffix == ".pth":
        state = torch.load(path, weights_only=True)
        replaced = replace_texts(state["provenance"], placeholders)
        if replaced != state["provenance"]:
            # a state's digest does not cover its provenance
            buffer = io.BytesIO()
            torch.save(state | {"provenance": replaced}, buffer)
            content = buffer.getvalue()
    else:
        for found, placeholder in placeholders.items():
            content = content.replace(found.encode(), placeholder.encode())
    left = [found for found in placeholders if found.encode() in content]
    if left:
        raise CaseError(f"{path} still names {', '.join(left)}")
    path.unlink()
    path.write_bytes(content)


def replace_texts(value: Any, placeholders: dict[str, str]) -> Any:
    """Replace within every text of a nested value."""
    if isinstance(value, dict):
        return {key: replace_texts(each, placeholders) for key, each in value.items()}
    if isinstance(value, list):
        return [replace_texts(each, placeholders) for each in value]
    if isinstance(value, str):
        for found, placeholder in placeholders.items():
            value = value.replace(found, placeholder)
    return value


def main() -> int:
    """Make the runs, and write them without this machine's paths."""
    parser = argparse.ArgumentParser(description="Make the run directories of an old commit that the tests use.")
    parser.add_argument("old_tree", type=Path)
    parser.add_argument("--into", type=Path, default=PLACE, help="where they go; what is there is replaced")
    parser.add_argument("--portable", action="store_true", help="make that run alone, and keep the others")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="old_runs_") as name:
        work = Path(name)
        tree = Tree(given.old_tree.absolute(), work / "data", work / "cache", jobs=1)
        make_data(tree, work)
        runs = work / "runs"
        runs.mkdir()
        (make_portable if given.portable else make_native)(tree, runs)
        for path in runs.iterdir():
            if path.is_file():
                path.unlink()
        commit = subprocess.run(
            ["git", "-C", str(tree.path), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        expected: dict[str, Any] = {"last_epoch": LAST_EPOCH, "runs": {}}
        if given.portable:
            expected = json.loads((given.into / "expected.json").read_text())
        for run in sorted(runs.iterdir()):
            print(run.name, flush=True)
            expected["runs"][run.name] = {"commit": commit.stdout.strip()} | what_the_old_code_makes_of(
                tree, run, work / f"copy_of_{run.name}"
            )
        placeholders = {
            str(runs): "{RUNS}",
            str(work / "data"): "{DATA}",
            str(work / "cache"): "{CACHE}",
            sys.executable: "{PYTHON}",
        }
        for path in runs.rglob("*"):
            if path.name == "run.lock":
                path.write_bytes(b"")  # a killed process's names that process, the host and its boot
            elif path.is_file():
                without_paths(path, placeholders)
        replaced = given.into / "portable" if given.portable else given.into
        shutil.rmtree(replaced, ignore_errors=True)
        shutil.copytree(runs, given.into, dirs_exist_ok=True)
        (given.into / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
