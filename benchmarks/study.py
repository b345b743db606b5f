"""A whole study on the synthetic data: what sweeps find where something is, where little is, and where nothing is.

    python benchmarks/study.py DIRECTORY [--images 160] [--epochs 12] [--baselines 3] [--starts 3 6 9 12]
        [--lengths 1 2] [--null-seeds 19] [--reseeds 9] [--changes 1 2 5 10 20]

With the real commands: data, baselines that differ in their seed, of each a sweep with all kinds, one report over
all of them in DIRECTORY/report, and forks whose learning rate is larger by some percent from their first epoch on,
the known weak effect. What is there already stays; so a study that was stopped goes on.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from clip_hba_behavior.cli import main as run_command
from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.report.sources import Source, read_records
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.sweep.columns import read_table
from clip_hba_behavior.sweep.effect import MEASURES
from clip_hba_behavior.sweep.plan import KINDS
from study_tables import print_changes, print_kinds, print_nothing

TRAINING = {"batch_size": 16, "rank": 8, "lr": 1e-3, "num_threads": 1, "device": "cpu"}


def clip_hba(*words: object) -> None:
    """Run one command in this process, which has imported torch; end where it does not exit with 0."""
    typed = [str(each) for each in words]
    print(command_line(*typed), flush=True)
    if code := run_command(["--quiet", *typed]):
        sys.exit(code)


def write_once(path: Path, keys: dict[str, Any]) -> Path:
    """Write a YAML file if it is not there."""
    if not path.exists():
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
    return path


def train_baselines(folder: Path, number: int, images: int, epochs: int) -> list[Path]:
    """Train runs that differ in their seed alone; return their directories."""
    write_standin_dataset(folder / "data", num_images=images)
    training = {**TRAINING, "epochs": epochs, "early_stopping_patience": max(100, epochs)}
    base = write_once(folder / "base.yaml", data_keys(folder / "data") | training)
    baselines = [folder / f"baseline{seed}" for seed in range(1, number + 1)]
    for seed, baseline in enumerate(baselines, start=1):
        if not baseline.exists():
            clip_hba("train", base, "--set", f"random_seed={seed}", "--run-dir", baseline)
    return baselines


def run_sweep(folder: Path, number: int, baseline: Path, keys: dict[str, Any]) -> Path:
    """Do what is missing of a baseline's sweep; return its file."""
    own = {"baseline": str(baseline), "directory": str(folder / f"sweep{number}")}
    file = write_once(folder / f"sweep{number}.yaml", own | keys)
    clip_hba("sweep", "run", file)
    return file


def changed_forks(
    folder: Path, baseline: Path, starts: Sequence[int], percents: Sequence[float]
) -> list[dict[str, Any]]:
    """Train one epoch with a larger learning rate from each start; return rows as a sweep's table has them."""
    (record,) = read_records([Source("run", baseline)])
    assert record.config is not None
    rows = []
    for percent in percents:
        for start in starts:
            run = folder / "changes" / f"{baseline.name}_e{start:03}_{percent:g}"
            if not run.exists():
                rate = record.config.lr * (1 + percent / 100)
                options = ["--perturb", "none", "--epochs", start, "--set", f"lr={rate!r}", "--run-dir", run]
                clip_hba("fork", baseline, "--at-epoch", start, *options)
            (fork,) = read_records([Source("run", run)])
            rows.append(
                {
                    "run": run.name,
                    "parent": str(baseline),
                    "kind": f"learning rate +{percent:g} %",
                    "perturb_epoch": start,
                    "perturb_length": 1,
                    "seed": 0,
                    "epoch": start,
                    "baseline_state_digest": record.digests[start],
                    **{
                        f"{measure}_minus_baseline": fork.rows[start][measure] - record.rows[start][measure]
                        for measure in MEASURES
                    },
                }
            )
    return rows


def main() -> None:
    """Make the study, and print what it finds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--baselines", type=int, default=3)
    parser.add_argument("--starts", type=int, nargs="+", default=[3, 6, 9, 12], help="first perturbed epochs")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--null-seeds", type=int, default=19)
    parser.add_argument("--reseeds", type=int, default=9)
    parser.add_argument("--changes", type=float, nargs="*", default=[1, 2, 5, 10, 20], help="of lr, in percent")
    asked = parser.parse_args()
    folder = asked.directory.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    baselines = train_baselines(folder, asked.baselines, asked.images, asked.epochs)
    keys = {"epochs": asked.starts, "kinds": list(KINDS), "lengths": asked.lengths}
    keys |= {"null_seeds": asked.null_seeds, "reseeds": asked.reseeds}
    files = [run_sweep(folder, number, each, keys) for number, each in enumerate(baselines, start=1)]
    clip_hba("report", *files, "--out", folder / "report")
    rows = [row for file in files for row in read_table(file.with_suffix("") / "sweep.csv")]
    changed = []
    for baseline in baselines:
        there = {row["perturb_epoch"] for row in rows if row["parent"] == str(baseline)}
        changed += changed_forks(folder, baseline, sorted(there), asked.changes)
    print_kinds(rows)
    print_nothing(rows)
    print_changes(rows, changed)


if __name__ == "__main__":
    main()
