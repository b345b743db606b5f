"""The promise in a minute: train, resume in a new process, compare the bits."""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from clip_hba_behavior.reproducibility.state.compare import compare
from clip_hba_behavior.run.advice import command_line, free_directory
from clip_hba_behavior.run.checkpoint import parameters_digest, read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path

EPOCHS = 6
MIDDLE = 3
# one thread: as quick at this size, and on a busy machine far quicker than two that wait for each other
SETTINGS = {
    "arithmetic": "portable",
    "epochs": EPOCHS,
    "batch_size": 32,
    "lr": 1e-3,
    "random_seed": 1,
    "num_threads": 1,
}
# Of the last state, on every machine; another definition of portable arithmetic, or of the data, changes it.
EXPECTED = "761dd8dc1e59206a42c9a35b72c41d442704109351de4d2aca6ec5a5e88fb57a"


def run_demo(directory: Path) -> bool:
    """Train on the synthetic data set, resume it from the middle, and print whether a single bit differs.

    Args:
        directory: gets `baseline` and `resumed`. If it holds a demo already, a number is added.

    Returns:
        Whether both runs ended in the same state, which is that of every machine, and wrote the same ledger and
        results, and the model learned: test loss down, RSA up by at least 0.2.
    """
    directory = free_directory(directory.absolute())
    directory.mkdir(parents=True)
    config = directory / "demo.yaml"
    config.write_bytes("".join(f"{key}: {value}\n" for key, value in SETTINGS.items()).encode())
    baseline, resumed = directory / "baseline", directory / "resumed"

    began = time.monotonic()
    _clip_hba("train", str(config), "--run-dir", str(baseline))
    print(f"\nNow epochs {MIDDLE + 1} to {EPOCHS} once more, in a new process:", flush=True)
    _clip_hba("resume", str(baseline), "--from-epoch", str(MIDDLE), "--run-dir", str(resumed))

    initial, final, again = (
        read_checkpoint(checkpoint_path(run / "dora_params", epoch))
        for run, epoch in ((baseline, 0), (baseline, EPOCHS), (resumed, EPOCHS))
    )
    comparison = compare(final.whole_state().as_dict(), again.whole_state().as_dict())
    same_files = all(
        (baseline / name).read_bytes() == (resumed / name).read_bytes()
        for name in ("training_res.csv", "steps.jsonl")
    )
    table = Table(title="SHA-256 of the parameters", show_header=False)
    table.add_row("initial", parameters_digest(initial.parameters))
    table.add_row("final", parameters_digest(final.parameters))
    table.add_row("final, resumed", parameters_digest(again.parameters))
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print()
    console.print(table)
    before, after = initial.whole_state().metrics, final.whole_state().metrics
    print(
        f"test loss {before['test_loss']:.2f} -> {after['test_loss']:.2f}, "
        f"behavioral RSA {before['behavioral_rsa_rho']:.3f} -> {after['behavioral_rsa_rho']:.3f} "
        f"on images that were never trained on"
    )
    print(
        f"resumed from epoch {MIDDLE} of {EPOCHS} in a new process: "
        f"{comparison.num_differing_tensors} of {comparison.num_tensors} tensors differ; "
        f"ledger and results {'the same bytes' if same_files else 'DIFFER'}"
    )
    print(f"the same bits on every machine: expected {EXPECTED}, found {final.state_digest}")
    print(f"{time.monotonic() - began:.0f} s; both runs are in {directory}")
    rise = after["behavioral_rsa_rho"] - before["behavioral_rsa_rho"]
    learned = after["test_loss"] < before["test_loss"] and rise >= 0.2
    return comparison.equal() and same_files and final.state_digest == EXPECTED and learned


def _clip_hba(*arguments: str) -> None:
    """Run one command in a process of its own, its output passed on."""
    code = subprocess.run([sys.executable, "-m", "clip_hba_behavior", *arguments], check=False).returncode
    if code:
        print(f"`{command_line(*arguments)}` ended with exit code {code}", file=sys.stderr)
        sys.exit(code)
