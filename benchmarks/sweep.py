"""A whole sweep beside its epochs alone, and beside the naive way: each run from the baseline with its own cache.

    python benchmarks/sweep.py [--size synthetic] [--epochs 12] [--runs N] [--kill]

First each run of the sweep is made as a worker makes it, and then its own epochs are trained again, with nothing
written: in turn, in one process. Then the sweep is run by its command. The naive way is measured on some runs,
drawn at random, and scaled to all. With --kill the sweep is run a second time, killed in its middle and
resumed; both tables must be the same bytes.
"""

import argparse
import logging
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))

from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.log import silent
from clip_hba_behavior.run.states import read_epoch
from clip_hba_behavior.sweep.plan import Plan, Run, make_plan, read_sweep_file
from clip_hba_behavior.sweep.work import execute
from clip_hba_behavior.training.advance import advance
from clip_hba_behavior.training.inputs import Inputs
from sizes import SIZES
from step_time import write_backbone

KINDS = ["random_target", "label_shuffle", "image_noise", "uniform_images"]


def clip_hba(*arguments: object) -> float:
    """Run one command in a process of its own; return its seconds.

    Raises:
        CalledProcessError: it did not end with exit code 0.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "clip_hba_behavior", *(str(each) for each in arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def size(*directories: Path) -> int:
    """Return the bytes of all files in some directories."""
    return sum(path.stat().st_size for each in directories for path in each.rglob("*") if path.is_file())


def write_sweep(folder: Path, name: str, lengths: list[int]) -> Path:
    """Write a sweep's file."""
    path = folder / f"{name}.yaml"
    keys = {
        "baseline": str(folder / "baseline"),
        "directory": str(folder / name),
        "kinds": KINDS,
        "lengths": lengths,
    }
    path.write_text(yaml.safe_dump(keys))
    return path


def beside_epochs_alone(plan: Plan, runs: list[Run]) -> tuple[float, float]:
    """Make runs as a worker does, and train the epochs of each again, in turn; return the seconds of either."""
    silent()
    kept: Kept[Inputs] = Kept()
    of_sweep = of_epochs = 0.0
    for run in runs:
        began = time.perf_counter()
        status = execute(plan, run)
        of_sweep += time.perf_counter() - began
        if status.state != "done":
            raise SystemExit(f"{run.name}: {status.state}\n{status.detail}")
        directory = RunDirectory(plan.path(run.name))
        trainer, _ = build_trainer(directory.read_config(), Session(logging.getLogger("bench")), kept)
        trainer.restore(read_epoch(directory, plan.first_own_epoch(run) - 1).whole_state())
        began = time.perf_counter()
        for _ in advance(trainer, plan.last_epoch):
            pass
        of_epochs += time.perf_counter() - began
    return of_sweep, of_epochs


def keys_of(folder: Path, size: str) -> dict[str, str]:
    """Return the keys of a data set and a backbone of a size, which are written; of `synthetic` none."""
    if size == "synthetic":
        return {}
    write_backbone(folder / "backbone", size)
    write_standin_dataset(folder / "data", num_images=160)
    return data_keys(folder / "data") | {"backbone": str(folder / "backbone")}


def alone(folder: Path, plan: Plan, run: Run) -> tuple[float, int]:
    """Do one run the naive way; return its seconds, and its bytes with those of its cache."""
    cache, directory = folder / f"cache_{run.name}", folder / f"alone_{run.name}"
    settings = [f"--set={key}={value}" for key, value in run.settings().items() if key != "perturb_type"]
    kind = run.settings()["perturb_type"]
    options = ["--at-epoch", run.epoch, "--perturb", kind, "--run-dir", directory, "--set", f"cache_dir={cache}"]
    return clip_hba("fork", plan.baseline, *options, *settings), size(cache, directory)


def kill_in_the_middle(sweep: Path, plan: Plan) -> None:
    """Start a sweep and kill it when half of its runs are done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clip_hba_behavior", "sweep", "run", str(sweep)], stdout=subprocess.DEVNULL
    )
    last = f"epoch{plan.last_epoch}_dora_params.pth"
    while process.poll() is None and len(list(plan.directory.glob(f"runs/*/dora_params/{last}"))) < (
        len(plan.runs()) // 2
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)  # its workers end with it


def main() -> None:
    """Measure, and print a report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=("synthetic", *SIZES), default="synthetic")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--alone", type=int, default=6, help="how many runs to do the naive way")
    parser.add_argument("--runs", type=int, help="only so many, in one process, and nothing else")
    parser.add_argument("--kill", action="store_true", help="kill a second sweep in its middle and compare")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = folder / "config.yaml"
        keys = {"epochs": arguments.epochs, "batch_size": 32, "lr": 1e-3, "num_threads": 1}
        keys |= {"cache_dir": str(folder / "cache"), **keys_of(folder, arguments.size)}
        config.write_text(yaml.safe_dump(keys))
        clip_hba("train", config, "--run-dir", folder / "baseline")
        in_process = make_plan(read_sweep_file(write_sweep(folder, "in_process", arguments.lengths)))
        some = in_process.runs()[: arguments.runs]
        of_sweep, of_epochs = beside_epochs_alone(in_process, some)
        print(f"{len(some)} runs in one process: {of_sweep:.1f} s; their epochs alone, in turn: {of_epochs:.1f} s")
        print(f"sweep / epochs alone: {of_sweep / of_epochs:.2f}", flush=True)
        if arguments.runs is not None:
            return
        sweep = write_sweep(folder, "sweep", arguments.lengths)
        plan = make_plan(read_sweep_file(sweep))
        seconds = clip_hba("sweep", "run", sweep)
        held = size(plan.directory, folder / "cache")
        runs, chosen = plan.runs(), random.Random(0).sample(plan.runs(), arguments.alone)
        singles = [alone(folder, plan, run) for run in chosen]
        naive_seconds = sum(each[0] for each in singles) / len(singles) * len(runs)
        naive_bytes = sum(each[1] for each in singles) / len(singles) * len(runs)
        print(f"{len(runs)} runs: {plan.epochs_to_train()} epochs trained, {plan.epochs_alone()} without sharing")
        print(f"sweep: {seconds:.0f} s, {held / 1e6:.0f} MB; its controls are the baseline byte for byte")
        print(
            f"each alone, one after the other ({len(singles)} measured): {naive_seconds:.0f} s, "
            f"{naive_bytes / 1e6:.0f} MB: {naive_seconds / seconds:.1f}x the time, "
            f"{naive_bytes / held:.1f}x the disk",
            flush=True,
        )
        if arguments.kill:
            again = write_sweep(folder, "killed", arguments.lengths)
            kill_in_the_middle(again, make_plan(read_sweep_file(again)))
            clip_hba("sweep", "run", again)
            same = all(
                (folder / "sweep" / name).read_bytes() == (folder / "killed" / name).read_bytes()
                for name in ("sweep.csv", "sweep.parquet")
            )
            print(f"killed in its middle and resumed: the table is {'the same bytes' if same else 'ANOTHER'}")


if __name__ == "__main__":
    main()
