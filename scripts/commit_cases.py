"""The work that `compare_commits.py` has two source trees do: a tree at work, and its cases."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAKE_DATA = "import sys, pathlib; from clip_hba_behavior.data.standin import write_standin_dataset as w; "
MAKE_DATA += "w(pathlib.Path(sys.argv[1]), num_images=60)"
DATA_FILES = {
    "csv_file": "annotations.csv",
    "img_dir": "images",
    "inference_csv_file": "inference48.csv",
    "RDM48_triplet_dir": "RDM48_triplet.mat",
    "prompts_file": "prompts.txt",
}
SMALL: dict[str, Any] = {"epochs": 3, "batch_size": 16, "num_threads": 1, "rank": 2, "lr": 1e-3, "device": "cpu"}
# Every source of chance at once, and steps long enough for a state of each to be caught.
RANDOM_EVERYWHERE: dict[str, Any] = {
    "dora_dropout": 0.2,
    "augmentation": ["random_resized_crop", "horizontal_flip", "color_jitter"],
    "batch_size": 8,
}


class CaseError(Exception):
    """A case could not be brought to its end."""


@dataclass(frozen=True)
class Tree:
    """One source tree at work.

    Attributes:
        path: the tree.
        data: the synthetic data set, shared by both trees.
        cache: for frozen features, of this tree alone.
        jobs: how many processes may run at once.
    """

    path: Path
    data: Path
    cache: Path
    jobs: int

    def start(self, arguments: Sequence[object], output: Path) -> subprocess.Popen[bytes]:
        """Start `python ARGUMENTS` with this tree's package; both its streams go to a file."""
        environment = os.environ | {
            "PYTHONPATH": str(self.path),
            "XDG_CACHE_HOME": str(self.cache),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, *(str(each) for each in arguments)]
        with output.open("wb") as file:
            return subprocess.Popen(
                command, env=environment, cwd=output.parent, stdout=file, stderr=subprocess.STDOUT
            )

    def finish(self, process: subprocess.Popen[bytes], output: Path) -> str:
        """Wait for a process that must exit with 0; return what it printed."""
        code, text = process.wait(), output.read_text(errors="replace")
        if code != 0:
            raise CaseError(f"exit code {code} of {output.stem} with {self.path}:\n{text[-2000:]}")
        return text

    def call(self, here: Path, name: str, *arguments: object) -> None:
        """Run one `clip-hba` command, which must exit with 0; its output is `here`/NAME.output."""
        output = here / f"{name}.output"
        self.finish(self.start(["-m", "clip_hba_behavior", *arguments], output), output)

    def call_all(self, here: Path, commands: dict[str, Sequence[object]]) -> None:
        """Run independent commands, as many at once as allowed."""
        with ThreadPoolExecutor(self.jobs) as pool:
            list(pool.map(lambda item: self.call(here, item[0], *item[1]), commands.items()))

    def config(self, path: Path, **keys: Any) -> Path:
        """Write the configuration of a small run."""
        data = {key: str(self.data / name) for key, name in DATA_FILES.items()}
        path.write_text(yaml.safe_dump(data | SMALL | keys))
        return path

    def train(self, here: Path, name: str = "run", **keys: Any) -> Path:
        """Train a small run in `here`/NAME."""
        config = self.config(here / f"{name}.yaml", **keys)
        self.call(here, name, "train", config, "--run-dir", here / name)
        return here / name


Case = Callable[[Tree, Path], None]


def make_data(tree: Tree, work: Path) -> None:
    """Draw the synthetic data set with a tree's package."""
    output = work / "data.output"
    tree.finish(tree.start(["-c", MAKE_DATA, tree.data], output), output)


# --- cases: each tree's own work ---------------------------------------------------------------------------


def training(**keys: Any) -> Case:
    """Make the case of one run from its start to its end."""

    def case(tree: Tree, here: Path) -> None:
        tree.train(here, **keys)

    return case


def resume_from_every_epoch(tree: Tree, here: Path) -> None:
    """Resume a run from each of its epochs into a new directory."""
    run = tree.train(here, dora_dropout=0.1)
    tree.call_all(
        here,
        {
            f"from{epoch}": ("resume", run, "--from-epoch", epoch, "--run-dir", here / f"from{epoch}")
            for epoch in range(SMALL["epochs"] + 1)
        },
    )


def resume_from_every_step(tree: Tree, here: Path) -> None:
    """Resume from the state after each step of two epochs, as a run that was interrupted there."""
    steps = catch_step_states(tree, here, {"epoch1": 5, "epoch2": 5})
    for state in steps:
        interrupted_at(state, here / "run", here / state.stem)
    tree.call_all(here, {state.stem: ("resume", here / state.stem) for state in steps})


def catch_step_states(tree: Tree, here: Path, expected: dict[str, int]) -> list[Path]:
    """Train a run that saves every step's state, and keep each: the run itself keeps only the newest two."""
    kept = here / "kept"
    kept.mkdir()
    run, output = here / "run", here / "run.output"
    config = tree.config(here / "run.yaml", checkpoint_every_steps=1, **RANDOM_EVERYWHERE)
    names = [f"{epoch}_step{step}.pth" for epoch, last in expected.items() for step in range(1, last + 1)]
    for _ in range(5):  # a state that was missed is caught in another try: it is the same state
        shutil.rmtree(run, ignore_errors=True)
        process = tree.start(["-m", "clip_hba_behavior", "train", config, "--run-dir", run], output)
        while process.poll() is None:
            for name in names:
                # one that is not there yet, or no longer, or caught already
                with suppress(FileNotFoundError, FileExistsError):
                    (kept / name).hardlink_to(run / "step_checkpoints" / name)
            time.sleep(0.001)
        tree.finish(process, output)
        if all((kept / name).exists() for name in names):
            return [kept / name for name in names]
    missing = [name for name in names if not (kept / name).exists()]
    raise CaseError(f"the states within the epochs could not all be caught; missing {', '.join(missing)}")


def interrupted_at(state: Path, run: Path, copy: Path) -> None:
    """Copy a finished run as it was after one step: what it recorded later must be repeated."""
    copy_run(run, copy)
    epoch = int(state.stem.removeprefix("epoch").partition("_")[0])
    for path in (copy / "dora_params").iterdir():
        if int(path.name.removeprefix("epoch").partition("_")[0]) >= epoch:
            path.unlink()
    (copy / "step_checkpoints").mkdir(exist_ok=True)
    shutil.copy(state, copy / "step_checkpoints" / state.name)


def copy_run(run: Path, copy: Path) -> Path:
    """Copy a run; its configuration names the new place."""
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    config.write_text(config.read_text().replace(str(run), str(copy)))
    return copy


FORKS: dict[str, tuple[object, ...]] = {
    "none": ("none",),
    "normal": ("random_target", "--perturb-seed", 7),
    "target": ("random_target", "--perturb-distribution", "target", "--perturb-length", 2),
    "normal_earlier": ("random_target", "--set", "perturb_rule=earlier"),
    "shuffle": ("label_shuffle", "--perturb-seed", 3, "--perturb-length", 2),
    "shuffle_earlier": ("label_shuffle", "--set", "perturb_rule=earlier"),
    "noise": ("image_noise", "--perturb-seed", 5),
    "uniform": ("uniform_images",),
    "reseeded": ("none", "--reseed", 1),
    "fresh_counters": ("none", "--early-stopping", "fresh", "--set", "lr=0.01"),
}


def forks(tree: Tree, here: Path) -> None:
    """Fork a run in every way, and one fork again."""
    run = tree.train(here)
    tree.call_all(here, {name: fork_command(run, here, name) for name in FORKS})
    again = ("fork", here / "shuffle", "--at-epoch", 3, "--perturb", "none", "--run-dir", here / "again")
    tree.call(here, "again", *again)


def fork_command(run: Path, here: Path, name: str) -> tuple[object, ...]:
    """Return the command that makes one of FORKS."""
    return ("fork", run, "--at-epoch", 2, "--run-dir", here / name, "--perturb", *FORKS[name])


def sweep(tree: Tree, here: Path) -> None:
    """Run a small sweep on this machine, with controls and shared beginnings."""
    run = tree.train(here)
    keys = {
        "baseline": str(run),
        "directory": str(here / "sweep"),
        "epochs": [2],
        "kinds": ["random_target", "label_shuffle", "uniform_images"],
        "lengths": [1, 2],
        "reseeds": 1,
        "processes": 1,
    }
    (here / "sweep.yaml").write_text(yaml.safe_dump(keys))
    tree.call(here, "sweep", "sweep", "run", here / "sweep.yaml")


def extended(tree: Tree, here: Path) -> None:
    """Resume a finished run in its own directory, to more epochs."""
    run = tree.train(here)
    tree.call(here, "extended", "resume", run, "--set", "epochs=5")


CASES: dict[str, Case] = {
    "plain": training(),
    "dropout": training(dora_dropout=0.3),
    "augmentation": training(augmentation=RANDOM_EVERYWHERE["augmentation"], num_workers=2),
    "schedule": training(lr_schedule="warmup_cosine", lr_warmup_epochs=2, lr_min=1e-5, weight_decay=0.1),
    "layers": training(vision_layers=1, transformer_layers=2),
    "later": training(batch_order="later"),
    "later_persistent": training(batch_order="later_persistent"),
    "early_stop": training(lr=0.3, early_stopping_patience=2, epochs=20),
    "kept": training(checkpoint_every_steps=2, keep_checkpoints="last 2", epochs=5),
    "best": training(keep_checkpoints="best", epochs=4, lr=0.1),
    "resume_epochs": resume_from_every_epoch,
    "resume_steps": resume_from_every_step,
    "extended": extended,
    "forks": forks,
    "sweep": sweep,
}

# --- cases: the new tree goes on with what the old tree made ----------------------------------------------


def cross_extended(tree: Tree, here: Path) -> None:
    """Extend a run of the old tree in its own directory."""
    tree.call(here, "extended", "resume", here / "run", "--set", "epochs=5")
    tree.call(here, "verify", "verify", "checkpoints", here / "run")


def cross_steps(tree: Tree, here: Path) -> None:
    """Resume within an epoch from states that the old tree saved, and verify the ends."""
    states = sorted((here / "kept").iterdir())
    for state in states:
        shutil.rmtree(here / state.stem)
        interrupted_at(state, here / "run", here / state.stem)
    tree.call_all(here, {state.stem: ("resume", here / state.stem) for state in states})
    checked = states[:: len(states) - 1]
    tree.call_all(
        here, {f"verify_{state.stem}": ("verify", "checkpoints", here / state.stem) for state in checked}
    )


def cross_epochs(tree: Tree, here: Path) -> None:
    """Resume a run of the old tree from each of its epochs into a new directory."""
    for epoch in range(SMALL["epochs"] + 1):
        shutil.rmtree(here / f"from{epoch}")
    commands: dict[str, Sequence[object]] = {
        f"from{epoch}": ("resume", here / "run", "--from-epoch", epoch, "--run-dir", here / f"from{epoch}")
        for epoch in range(SMALL["epochs"] + 1)
    }
    tree.call_all(here, commands)


def cross_forks(tree: Tree, here: Path) -> None:
    """Verify the old tree's forks, then make each again from the old tree's baseline."""
    names = list(FORKS)
    tree.call_all(here, {f"verify_{name}": ("verify", "checkpoints", here / name) for name in [*names, "again"]})
    for name in names:
        shutil.rmtree(here / name)
    (here / "run" / "forks.txt").unlink()
    tree.call_all(here, {name: fork_command(here / "run", here, name) for name in names})


def cross_verify(tree: Tree, here: Path) -> None:
    """Verify a run of the old tree."""
    tree.call(here, "verify", "verify", "checkpoints", here / "run")


def cross_sweep(tree: Tree, here: Path) -> None:
    """Write a finished sweep's table again."""
    for name in ("sweep.csv", "sweep.parquet"):
        (here / "sweep" / name).unlink()
    tree.call(here, "sweep", "sweep", "run", here / "sweep.yaml")


# for each: the old tree's case to go on with, the one to be equal to, and what to do
CROSS_CASES: dict[str, tuple[str, str, Case]] = {
    "cross_plain": ("plain", "plain", cross_verify),
    "cross_augmentation": ("augmentation", "augmentation", cross_verify),
    "cross_schedule": ("schedule", "schedule", cross_verify),
    "cross_later_persistent": ("later_persistent", "later_persistent", cross_verify),
    "cross_kept": ("kept", "kept", cross_verify),
    "cross_extended": ("plain", "extended", cross_extended),
    "cross_epochs": ("resume_epochs", "resume_epochs", cross_epochs),
    "cross_steps": ("resume_steps", "resume_steps", cross_steps),
    "cross_forks": ("forks", "forks", cross_forks),
    "cross_sweep": ("sweep", "sweep", cross_sweep),
}
