"""What each command imports: who only made a mistake, or only looks, does not wait for torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clip_hba_behavior.config import make_config
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.resolution import resolve_config
from run_tools import write_config

OLD_RUN = Path(__file__).parent / "old_runs" / "plain"
SLOW = {
    *("torch", "numpy", "scipy", "scipy.io", "scipy.special", "scipy.stats", "pyarrow", "PIL"),
    *("transformers", "tokenizers", "safetensors", "huggingface_hub", "rich"),
}

# Command lines that are wrong, and what is said of each. `run` is a run of 3 epochs.
WRONG = {
    "train none.yaml": "there is no configuration file none.yaml",
    "train text.yaml": "text.yaml is no configuration",
    "train torn.yaml": "torn.yaml is no YAML file",
    "train good.yaml --set epoch=3": "epoch: no such key; did you mean epochs?",
    "train good.yaml --set epochs=-3": "epochs: found -3",
    "train good.yaml --set device=tpu": "expected auto, cpu, cuda or cuda:N",
    "train good.yaml --set backbone=ViT-L/41": "there is no backbone ViT-L/41; did you mean ViT-L/14?",
    "train good.yaml --set backbone=./no": "there is no backbone ./no: neither a directory nor a .pt file",
    "train good.yaml --set tokenizer=ViT-L/14": "or a name on the hub such as openai/clip-vit-large-patch14",
    "resume run --set backbone=ViT-B-32": "there is no backbone ViT-B-32; did you mean ViT-B/32?",
    "train good.yaml --set epochs": "--set epochs: expected key=value",
    "train good.yaml --run-dir run": "is not empty: it holds a run",
    "train good.yaml --set fork_reseed=1": "fork_reseed: only for a fork",
    "train good.yaml --set perturb_type=label_shuffle --set perturb_epoch=99": "perturb nothing",
    "train good.yaml --set training_run=3 --set baseline_dora_directory=none": "training_run 3 needs",
    "train none.yaml --dry-run": "there is no configuration file none.yaml",
    "resume none": "there is no run in",
    "resume run --set epoch=3": "epoch: no such key; did you mean epochs?",
    "resume run --set lr=0.5": "a run cannot go on under another configuration",
    "resume run --from-epoch 1": "--from-epoch needs a new --run-dir",
    "resume run --from-epoch 9 --run-dir new": "has no checkpoint of epoch 9",
    "resume run --from-epoch 1 --run-dir run": "is not empty: it holds a run",
    "fork none --at-epoch 2 --perturb none --run-dir new": "there is no run in",
    "fork run --at-epoch 9 --perturb none --run-dir new": "--at-epoch 9 needs",
    "fork run --at-epoch 3 --perturb image_noise --perturb-length 2 --run-dir new": "--epochs 4",
    "fork run --at-epoch 2 --perturb noise --run-dir new": "perturb_type: found 'noise'",
    "fork run --at-epoch 2 --perturb none --run-dir run": "is not empty: it holds a run",
    "fork run --at-epoch 2 --perturb none --run-dir new --config none.yaml": "there is no configuration file",
    "state none --epoch 2": "there is no run in",
    "state run --epoch 9": "--epoch 9: there is no state of",
    "state run --epoch 2 --config none.yaml": "there is no configuration file none.yaml",
    "inspect none.pth": "there is no checkpoint none.pth",
    "inspect good.yaml": "good.yaml is no checkpoint, or a torn one",
    "data check none.yaml": "there is no configuration file none.yaml",
    "verify quick --json good.yaml": "good.yaml exists; a certificate is never replaced",
    "verify checkpoints none": "holds no checkpoints",
    "verify checkpoints run --epochs two": "--epochs two: found 'two'",
    "verify checkpoints run --epochs 9": "has no checkpoint of epoch 9",
    "verify checkpoints run --config none.yaml": "there is no configuration file none.yaml",
    "verify checkpoints run --set epoch=3": "epoch: no such key; did you mean epochs?",
    "verify results none.csv --checkpoints run": "there is no results CSV none.csv",
    "verify results good.yaml --checkpoints run": "good.yaml is no results CSV",
    "diff run none": "holds no checkpoints",
    "diff run other": "the two runs have no epoch in common",
    "reconstruct none --config good.yaml": "holds no checkpoints",
    "reconstruct run --config none.yaml": "there is no configuration file none.yaml",
    "reconstruct run --config good.yaml --order new": "--order new: expected auto",
    "reconstruct run --config good.yaml --set epoch=3": "epoch: no such key; did you mean epochs?",
    "verify checkpoints run --loop none.py": "is not the run of a training loop of your own",
    "runs none": "there is no directory none",
    "alignment none": "none: there is no such directory",
    "alignment run --epoch 9": "has no checkpoint of epoch 9",
    "alignment run --epoch 3 --split-half none.mat": "--split-half none.mat: there is no such file",
    "alignment run --epoch 3 --config none.yaml": "there is no configuration file none.yaml",
    "cache list --cache-dir none": "there is no directory of caches",
    "report none": "there is nothing at the path none\n  expected: the directory of a run or of a sweep, ",
    "report run": "run has no results of any epoch",
    "report run --out good.yaml": "--out good.yaml: good.yaml is a file",
    "report run --split-half none.mat": "there is no file none.mat",
    "report good.yaml": "the sweep file is wrong",
    "report lost_sweep.yaml": "the sweep's baseline has no config.yaml",
    "report run other": "say where it goes: clip-hba report run other --out report",
    "slurm none.yaml": "there is no configuration file none.yaml",
    "predict none.pth one.png": "there is no checkpoint none.pth",
    "predict runs/none one.png": "there is no run runs/none, and no checkpoint",
    "predict . one.png": "there is no run in",
    "predict run one.png --out one.xlsx": "its ending names no format",
    "rdm none --out new": "there is no run in",
    "rdm run --out other": "is there already, and is not replaced",
    "rdm run --out new --epoch 9": "give --epoch one of those",
    "rdm run --out good.yaml/new": "good.yaml is no directory",
    "export run --format peft --out broken": "broken is there already, and is not replaced",
    "predict run one.png --out good.yaml/new.csv": "good.yaml is no directory",
    "export none --format peft --out new": "there is no run in",
    "export run --format onnx --out new": "--format onnx: expected peft or merged",
    "export run --format peft --out other": "is there already, and is not replaced",
    "export run --format peft --out new --certificate no.json": "--certificate no.json: there is no such file",
    "bundle none --out new.zip": "there is no run in",
    "bundle run --out good.yaml": "is there already, and is not replaced",
    "bundle run --out new.zip --certificate no.json": "--certificate no.json: there is no such file",
    "bundle run --out new.zip": "lacks environment.json, steps.jsonl, training_res.csv, best.json",
    "bundle sweep.yaml --out new.zip": "make a bundle of each run of a sweep",
    "verify bundle none.zip": "there is no bundle none.zip",
    "verify bundle good.yaml": "good.yaml is no bundle, or a torn one",
    "verify bundle good.yaml --epochs two": "--epochs two: found 'two'",
    "verify bundle good.yaml --config none.yaml": "there is no configuration file none.yaml",
    "odd-one-out run none.txt --images run": "there is no file of triplets none.txt",
    "odd-one-out run good.yaml --images none": "there is nothing at --images none",
    "odd-one-out run good.yaml --images run --odd middle": "--odd middle: expected first or last",
    "odd-one-out run good.yaml --images run --ceiling 0.1": "expected brain-score, or a number above 1/3",
    "publish none --to tensorboard": "there is no run in",
    "publish run --to tensorboard": "run has recorded nothing yet",
    "publish run --to wandb": "--to wandb: expected tensorboard",
    "publish run --to tensorboard --out other": "is there already, and is not replaced",
    "publish sweep.yaml --to tensorboard": "the sweep has not begun",
    "sweep plan none.yaml": "there is no YAML file of a sweep at the path none.yaml",
    "sweep plan good.yaml": "the sweep file is wrong",
    "sweep plan run": "run is a directory: expected the YAML file of a sweep",
    "sweep status begun": "give the copy of it that is there: begun/sweep.yaml",
    "sweep run sweep.yaml --engine cloud": "--engine cloud: expected local or slurm",
    "sweep verify sweep.yaml --engine cloud": "--engine cloud: expected local or slurm",
    "sweep run lost_sweep.yaml": "the sweep's baseline has no config.yaml",
    "sweep status none.yaml": "there is no YAML file of a sweep at the path none.yaml",
    "sweep table none.yaml": "there is no YAML file of a sweep at the path none.yaml",
    "sweep verify none.yaml": "there is no YAML file of a sweep at the path none.yaml",
    "sweep cancel none.yaml": "there is no YAML file of a sweep at the path none.yaml",
    "sweep task none --index 0": "none has no task 0",
}
# Commands that only print, and a word of what they print.
LOOKING = {
    "train good.yaml --dry-run": "num_threads: 1",
    "--version": "clip-hba ",
    "slurm good.yaml": "#SBATCH",
    "sweep plan sweep.yaml": "s per epoch on the baseline",
    "sweep status sweep.yaml": "3 missing",
    "sweep cancel sweep.yaml": "no process of this machine executes the sweep",
    **{
        f"{command} --help".strip(): "Usage: "
        for command in (
            *("predict", "rdm", "odd-one-out", "export", "publish"),
            *("runs", "alignment", "slurm", "cache", "cache list", "cache clean"),
            *("", "train", "resume", "fork", "inspect", "demo", "diff", "reconstruct", "data", "data check"),
            *("bundle", "verify bundle", "state"),
            *("report", "verify", "verify quick", "verify checkpoints", "verify results", "sweep", "sweep plan"),
            *("sweep run", "sweep resume", "sweep status", "sweep table", "sweep cancel", "sweep verify"),
        )
    },
}

_ONE_AFTER_THE_OTHER = """
import contextlib, io, json, sys
from clip_hba_behavior.cli import main
for line in sys.stdin.read().splitlines():
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main(line.split())
    print(json.dumps([line, code, said.getvalue(), list(sys.modules)]))
"""


class Outcome(NamedTuple):
    line: str
    code: int
    output: str
    slow: set[str]  # what of SLOW the process had imported by then


def in_one_new_process(lines: list[str], directory: Path) -> list[Outcome]:
    done = subprocess.run(
        [sys.executable, "-c", _ONE_AFTER_THE_OTHER],
        input="\n".join(lines),
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(each) for each in done.stdout.splitlines()]
    return [Outcome(line, code, output, SLOW.intersection(names)) for line, code, output, names in results]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with configurations, and with what looks like runs as long as no checkpoint is read."""
    for name, epochs in (("run", range(4)), ("other", range(7, 9))):
        run = RunDirectory(tmp_path / name)
        run.checkpoints.mkdir(parents=True)
        keys = {"device": "cpu", "num_threads": 1, "epochs": 3, "run_dir": str(run.path)}
        run.write_config(resolve_config(make_config(keys)))
        run.log_file.write_text("Epoch 3/3: train loss 1.0, 2.5 s\n")
        for epoch in epochs:
            checkpoint_path(run.checkpoints, epoch).touch()
    (tmp_path / "text.yaml").write_text("only a text")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "torn.yaml").write_text("epochs: [1, 2")
    write_config(tmp_path / "good.yaml", {"device": "cpu", "num_threads": 1, "epochs": 3})
    sweep = {"baseline": "run", "directory": "sweep", "kinds": [], "controls": True}
    write_config(tmp_path / "sweep.yaml", sweep)
    write_config(tmp_path / "lost_sweep.yaml", sweep, baseline="nowhere")
    (tmp_path / "begun").mkdir()
    write_config(tmp_path / "begun" / "sweep.yaml", sweep)
    return tmp_path


def test_a_wrong_path_key_or_value_is_told_without_torch(place: Path) -> None:
    before = sorted(place.rglob("*"))
    for outcome in in_one_new_process(list(WRONG), place):
        assert outcome.code == 2, outcome
        assert WRONG[outcome.line] in outcome.output, outcome
        assert outcome.slow == set(), outcome.line
    assert sorted(place.rglob("*")) == before


def test_what_only_prints_does_without_torch(place: Path) -> None:
    for outcome in in_one_new_process(list(LOOKING), place):
        assert outcome.code == (1 if outcome.line == "sweep status sweep.yaml" else 0), outcome
        assert LOOKING[outcome.line] in outcome.output, outcome
        assert outcome.slow <= {"rich"}, outcome.line  # typer draws its help with it


def test_runs_are_listed_without_torch() -> None:
    (outcome,) = in_one_new_process(["runs ."], OLD_RUN.parent)
    assert outcome.code == 0, outcome.output
    assert "plain" in outcome.output
    assert outcome.slow <= {"rich"}


def test_inspect_imports_torch_and_nothing_that_trains() -> None:
    (outcome,) = in_one_new_process(["inspect dora_params/epoch1_dora_params.pth"], OLD_RUN)
    assert outcome.code == 0, outcome.output
    assert outcome.slow <= {"torch", "numpy"}


def test_what_reads_states_does_without_what_trains_and_that_without_what_writes_tables() -> None:
    readers = ("run.states", "verification.files", "sweep.table")
    trainers = ("run.life", "verification.quick")
    script = "import json, sys\nfrom importlib import import_module\n" + "\n".join(
        f"for name in {names}: import_module(f'clip_hba_behavior.{{name}}')\nprint(json.dumps(list(sys.modules)))"
        for names in (readers, trainers)
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    to_read, to_train = (SLOW.intersection(json.loads(line)) for line in done.stdout.splitlines())
    assert to_read <= {"torch", "numpy"}
    assert to_train <= {"torch", "numpy", "PIL"}


def test_a_run_imports_neither_scipy_stats_nor_pyarrow(small_config: dict[str, Any], tmp_path: Path) -> None:
    write_config(tmp_path / "config.yaml", small_config, epochs=1)
    (outcome,) = in_one_new_process(["train config.yaml --run-dir run"], tmp_path)
    assert outcome.code == 0, outcome.output
    assert not outcome.slow & {"scipy.stats", "pyarrow", "transformers"}
