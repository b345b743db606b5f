"""What the commands on a trained model print, and their exit codes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint import read_named
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import session, silent
from clip_hba_behavior.run.results import RESULTS_NAME
from clip_hba_behavior.use.export import export_model
from clip_hba_behavior.use.held_out import held_out_of
from clip_hba_behavior.use.load import load_model
from clip_hba_behavior.use.odd_one_out import (
    LEVEL,
    RESAMPLES,
    SIMILARITIES,
    list_images,
    odd_one_out_accuracy,
    read_triplets,
)
from clip_hba_behavior.use.predict import (
    find_images,
    predict_images,
    refuse_columns_of_one_name,
    write_predictions,
)
from clip_hba_behavior.use.rdm import write_rdm
from clip_hba_behavior.use.request import CHANCE
from clip_hba_behavior.use.run_alignment import align_run

_TOP = 5


def alignment(
    run: Path,
    epoch: int | None,
    permutations: int,
    split_half: Path | None,
    as_json: bool,
    keys: Mapping[str, Any] | None,
) -> int:
    """Print how well a run's model agrees with people; return the exit code: 1 if the run recorded another rho.

    Raises:
        BadInputError: the run, its data, the checkpoint or the split halves cannot be used.
    """
    if as_json:
        silent()
    with session() as here:
        found = align_run(run, epoch, split_half, keys or {}, here, permutations)
    print(found.to_json() if as_json else "\n".join(found.lines()))
    if not found.agrees_with_record():
        print(
            f"rho is not what {found.run / RESULTS_NAME} records of epoch {found.epoch}\n"
            f"  recorded: {found.recorded_rho!r}\n  found:    {found.alignment.rho!r}\n"
            f"  compare: {command_line('verify', 'checkpoints', found.run, '--epochs', found.epoch)}",
            file=sys.stderr,
        )
    return 0 if found.agrees_with_record() else 1


def predict(
    source: Path,
    asked: Sequence[Path],
    out: Path | None,
    top: int | None,
    keys: Mapping[str, Any] | None,
    device: str,
) -> int:
    """Predict images, print or write what was predicted; return the exit code: 1 if any could not be read.

    Raises:
        BadInputError: the model cannot be loaded, there are no images, or nothing can be written to `out`.
    """
    images, notes = find_images(asked)
    for note in notes:
        print(note, file=sys.stderr)
    with session() as here:
        model = load_model(source, config=keys, device=device)
        if out is not None:
            refuse_columns_of_one_name(out, model.prompts)
        report = here.interruptible().report
        found = predict_images(model, images, lambda done, total: report("predicting images", done, total))
        if top is not None or out is None:
            for line in found.top(_TOP if top is None else top):
                print(line)
        if out is not None:
            written = " and ".join(map(str, write_predictions(out, found)))
            images_found = "1 image" if len(found.images) == 1 else f"{len(found.images)} images"
            here.logger.info("Predictions of %s are in %s", images_found, written)
    for reason in found.unreadable:
        print(f"left out: {reason}", file=sys.stderr)
    if found.unreadable:
        print(f"{len(found.unreadable)} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if found.unreadable else 0


def export(
    checkpoint: Path, format: str, out: Path, certificate: Path | None, keys: Mapping[str, Any] | None
) -> int:
    """Export a model, and say how it was checked; return the exit code.

    Raises:
        BadInputError: the model cannot be loaded, or the certificate is not of this state.
        StoppedError: what was exported predicts otherwise; nothing is left of it.
    """
    with session() as here:
        comparison = export_model(checkpoint, format, out, certificate, keys, here.interruptible())
        here.logger.info("%s", comparison)
        here.logger.info("The %s model is in %s", format, out)
    return 0


def rdm(checkpoint: Path, out: Path, keys: Mapping[str, Any] | None, device: str) -> int:
    """Write a model's predictions of the held-out images, and their RDM; return the exit code.

    Raises:
        BadInputError: the model cannot be loaded, or the held-out images are not those of the run.
    """
    run = RunDirectory(checkpoint.parent.parent)
    with session() as here:
        model = load_model(checkpoint, config=keys, device=device)
        held_out = held_out_of(model.config, run)
        report = here.interruptible().report
        predictions = model.predict(held_out.paths, lambda done, total: report("predicting images", done, total))
        read = read_named(checkpoint)
        about: dict[str, str | int] = {
            "run": run.path.name,
            "epoch": read.whole_state().epoch,
            "state_digest": str(read.state_digest),
        }
        write_rdm(out, model, held_out, predictions, about)
        here.logger.info("Predictions of %d held-out images and their RDM are in %s", len(predictions), out)
    return 0


def odd_one_out(
    checkpoint: Path,
    triplets: Path,
    source: Path,
    odd: str,
    ceiling: tuple[float, str] | None,
    keys: Mapping[str, Any] | None,
    device: str,
) -> int:
    """Print how often a model picks the odd one out as people did; return the exit code.

    Raises:
        BadInputError: the model cannot be loaded, or triplets or images cannot be used.
    """
    images = list_images(source)
    for note in find_images([source])[1] if source.is_dir() else []:  # what is left out has no index
        print(note, file=sys.stderr)
    found = read_triplets(triplets, odd, len(images))
    used, as_used = np.unique(found, return_inverse=True)
    with session() as here:
        model = load_model(checkpoint, config=keys, device=device)
        report = here.interruptible().report
        predictions = model.predict(
            [images[index] for index in used], lambda done, total: report("predicting images", done, total)
        )
    order = "in the order of their names" if source.is_dir() else "in the order of its lines"
    print(f"images:        {len(images)} of {source}, {order}: {_first_and_last(images)}")
    print(f"triplets:      {len(found)} of {triplets}, of {len(used)} images, the odd one out in the {odd} column")
    below_chance = False
    for similarity in SIMILARITIES:
        accuracy = odd_one_out_accuracy(predictions, as_used.reshape(found.shape), similarity)
        low, high = accuracy.interval
        below_chance |= high < CHANCE
        line = f"{similarity + ':':<14} {accuracy.share:.4f}, {LEVEL:.0%} interval {low:.4f} to {high:.4f}"
        if accuracy.num_ties:
            line += f"; {accuracy.num_ties} ties count as guesses"
        if ceiling is not None:
            line += f"; {accuracy.relative_to(ceiling[0]):.1%} of the way from chance to the noise ceiling"
        print(line)
    print(f"chance:        {CHANCE:.4f}")
    print(
        "noise ceiling: " + (f"{ceiling[0]:.4f}, {ceiling[1]}" if ceiling else "none given; name one: --ceiling")
    )
    if below_chance:
        other = "first" if odd == "last" else "last"
        print(
            "An interval that lies below chance as a whole mostly means that the odd one out is in another column "
            f"(--odd {other}), or that the indices mean other images (--images)."
        )
    print(f"Intervals are of {RESAMPLES} resamples of the triplets, the images as they are.")
    return 0


def _first_and_last(images: Sequence[Path]) -> str:
    return f"0 is {images[0].name}, {len(images) - 1} is {images[-1].name}"
