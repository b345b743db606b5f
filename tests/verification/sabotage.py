"""Sabotage of a run: its files changed as damage would, or forged so that all records fit again."""

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state, restore_rng_state
from clip_hba_behavior.run.checkpoint import Checkpoint, read_checkpoint, to_bytes, to_content
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints
from clip_hba_behavior.run.results import format_row
from clip_hba_behavior.training.state import TrainingState
from clip_hba_behavior.verification.files import ledger_leaves
from fresh_process import Outcome

Record = dict[str, Any]
PARAMETER = "clip_model.visual.transformer.resblocks.3.attn.out_proj.delta_D_A"


# --- one file ---------------------------------------------------------------------------------------


def read(run: Path, epoch: int) -> Checkpoint:
    return read_checkpoint(checkpoint_path(run / "dora_params", epoch))


def write(run: Path, epoch: int, state: TrainingState, origin: Record, state_digest: str | None = None) -> None:
    """Write a checkpoint, under a digest that fits it unless another is given."""
    content = to_content(state, origin)
    if state_digest is not None:
        content["state_digest"] = state_digest
    checkpoint_path(run / "dora_params", epoch).write_bytes(to_bytes(content))


def edit_json(path: Path, change: Callable[[Record], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content, indent=2) + "\n")


def edit_config(run: Path, **changes: Any) -> None:
    path = run / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def edit_origins(run: Path, change: Callable[[Record], object]) -> None:
    """Change the provenance of every checkpoint; the state's digest does not cover it."""
    for epoch in list_checkpoints(run / "dora_params"):
        checkpoint = read(run, epoch)
        origin = json.loads(json.dumps(checkpoint.provenance))
        change(origin)
        write(run, epoch, checkpoint.whole_state(), origin)


def edit_ledger(run: Path, change: Callable[[Record], Record | None]) -> None:
    """Change each entry, or drop it."""
    path = run / "steps.jsonl"
    entries = [change(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries if entry is not None))


def edit_rows(run: Path, change: Callable[[list[str]], list[str] | None]) -> None:
    """Change each row of the CSV, or drop it."""
    path = run / "training_res.csv"
    header, *rows = csv.reader(path.read_text().splitlines())
    kept = [header, *(changed for row in rows if (changed := change(row)) is not None)]
    path.write_text("".join(",".join(row) + "\n" for row in kept))


# --- a state ----------------------------------------------------------------------------------------


def damage(run: Path, epoch: int, change: Callable[[TrainingState], TrainingState]) -> None:
    """Change the state in a file; its digest no longer fits."""
    checkpoint = read(run, epoch)
    state = change(checkpoint.whole_state())
    write(run, epoch, state, checkpoint.provenance, checkpoint.state_digest)


def forge(run: Path, epoch: int, change: Callable[[TrainingState], TrainingState]) -> None:
    """Change the state in a file, and make digest, ledger and CSV fit again."""
    checkpoint = read(run, epoch)
    state = change(checkpoint.whole_state())
    write(run, epoch, state, checkpoint.provenance)
    forge_ledger_end(run, epoch, state)
    row = next(csv.reader([format_row(state.metrics)]))
    edit_rows(run, lambda each: row if int(each[0]) == epoch else each)


def change_last_digit_in_csv(run: Path, epoch: int) -> None:
    def change(row: list[str]) -> list[str]:
        return [*row[:2], repr(another_last_digit(float(row[2]))), *row[3:]] if int(row[0]) == epoch else row

    edit_rows(run, change)


def change_loss_in_ledger(run: Path, epoch: int, step: int) -> None:
    def change(entry: Record) -> Record:
        here = (entry["epoch"], entry["step"]) == (epoch, step)
        return entry | {"loss": another_last_digit(entry["loss"])} if here else entry

    edit_ledger(run, change)


def forge_ledger_end(run: Path, epoch: int, state: TrainingState) -> None:
    end = {
        "metrics": state.metrics,
        "state_digest": state.digest(),
        "state": {name: value[:16] for name, value in ledger_leaves(state).items()},
    }
    here = {"epoch": epoch, "step": END_OF_EPOCH}
    edit_ledger(run, lambda entry: entry | end if entry.items() >= here.items() else entry)


def with_one_bit_flipped(state: TrainingState, bit: int) -> TrainingState:
    changed = state.parameters[PARAMETER].clone()
    changed.view(torch.int32).view(-1)[5] ^= 1 << bit
    return dataclasses.replace(state, parameters=state.parameters | {PARAMETER: changed})


def without_optimizer_state(state: TrainingState) -> TrainingState:
    return dataclasses.replace(state, optimizer_state=state.optimizer_state | {"state": {}})


def with_one_extra_draw(state: TrainingState) -> TrainingState:
    before = capture_rng_state()
    restore_rng_state(state.rng_state)
    torch.empty((), dtype=torch.int64).random_()
    drawn = capture_rng_state()
    restore_rng_state(before)
    return dataclasses.replace(state, rng_state=drawn)


def with_another_last_digit(state: TrainingState) -> TrainingState:
    changed = {"test_loss": another_last_digit(state.metrics["test_loss"])}
    return dataclasses.replace(state, metrics=state.metrics | changed)


def with_learning_rate(state: TrainingState, lr: float) -> TrainingState:
    groups = [group | {"lr": lr} for group in state.optimizer_state["param_groups"]]
    return dataclasses.replace(state, optimizer_state=state.optimizer_state | {"param_groups": groups})


def another_last_digit(value: float) -> float:
    text = repr(value)
    return float(text[:-1] + str((int(text[-1]) + 5) % 10))


# --- epochs -----------------------------------------------------------------------------------------


def swap(run: Path, first: int, second: int) -> None:
    """Give two epochs' files each other's name."""
    paths = [checkpoint_path(run / "dora_params", epoch) for epoch in (first, second)]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)


def swap_and_renumber(run: Path, first: int, second: int, with_ledger: bool) -> None:
    """Swap two epochs' states, each under the other's number; perhaps adapt ledger and CSV too."""
    states = {epoch: read(run, epoch).whole_state() for epoch in (first, second)}
    for epoch, other in ((first, second), (second, first)):
        moved = states[other]
        state = dataclasses.replace(moved, epoch=epoch, metrics=moved.metrics | {"epoch": epoch})
        if with_ledger:
            forge(run, epoch, lambda _, state=state: state)
        else:
            write(run, epoch, state, read(run, epoch).provenance)


def train_under(clip_hba: Callable[..., Outcome], run: Path, epoch: int, **changes: Any) -> None:
    """Train one epoch of a run again under other settings, and the epochs after it under its own."""
    old = yaml.safe_load((run / "config.yaml").read_text())
    cut_back(run, epoch - 1)
    for settings, last in ((changes, epoch), ({key: old[key] for key in changes}, old["epochs"])):
        edit_config(run, **settings)
        edit_json(run / "environment.json", lambda content, s=settings: content["trajectory"].update(s))
        outcome = clip_hba("resume", run, "--set", f"epochs={last}")
        assert outcome.code == 0, outcome.output


def cut_back(run: Path, epoch: int) -> None:
    """Take a run back to the state after an epoch."""
    for each, path in list_checkpoints(run / "dora_params").items():
        if each > epoch:
            path.unlink()
    edit_ledger(run, lambda entry: entry if entry["epoch"] <= epoch else None)
    edit_rows(run, lambda row: row if int(row[0]) <= epoch else None)


def forge_config_of(run: Path, **settings: Any) -> None:
    """Let every checkpoint say that it was trained under these settings."""

    def change(origin: Record) -> None:
        origin["config"].update(settings)
        origin["config_digest"] = digest(origin["config"])

    edit_origins(run, change)


# --- data -------------------------------------------------------------------------------------------


def alter_image(data: Path, name: str) -> None:
    """Change one pixel."""
    path = data / "images" / name
    with Image.open(path) as image:
        red, green, blue = image.getpixel((3, 3))
        image.putpixel((3, 3), (red ^ 128, green, blue))
        image.save(path)


def alter_every_file(data: Path, name: str) -> None:
    """Let every image be another file with the same picture."""
    for path in (data / "images").iterdir():
        path.write_bytes(path.read_bytes() + b"\0")


def alter_target(data: Path, name: str) -> None:
    """Raise one target of an image by the smallest step that float32 knows."""
    path = data / "annotations.csv"
    header, *rows = csv.reader(path.read_text().splitlines())
    for row in rows:
        if name in row:
            value = np.nextafter(np.float32(row[header.index("7")]), np.float32(np.inf))
            row[header.index("7")] = repr(float(value))
    path.write_text("".join(",".join(row) + "\n" for row in [header, *rows]))


def data_of(config: Record, data: Path) -> Record:
    """Return the keys of a configuration that name the annotations and images in a directory."""
    return config | {"csv_file": str(data / "annotations.csv"), "img_dir": str(data / "images")}


def forge_data_of(run: Path, other: Path) -> None:
    """Let a run's records say that it was made from the data of another run."""
    theirs = json.loads((other / "environment.json").read_text())
    known = {key: theirs[key] for key in ("digests", "images", "targets")}
    edit_json(run / "environment.json", lambda content: content.update(known))
    edit_origins(run, lambda origin: origin.update(digests=theirs["digests"]))
