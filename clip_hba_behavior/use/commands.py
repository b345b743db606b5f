"""What the commands on a trained model print, and their exit codes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.log import session, silent
from clip_hba_behavior.run.results import RESULTS_NAME
from clip_hba_behavior.use.load import load_model
from clip_hba_behavior.use.predict import find_images, predict_images, refuse_bad_output, write_predictions
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
    if out is not None:
        refuse_bad_output(out)
    images, notes = find_images(asked)
    for note in notes:
        print(note, file=sys.stderr)
    with session() as here:
        model = load_model(source, config=keys, device=device)
        report = here.interruptible().report
        found = predict_images(model, images, lambda done, total: report("predicting images", done, total))
        if top is not None or out is None:
            for line in found.top(_TOP if top is None else top):
                print(line)
        if out is not None:
            written = " and ".join(map(str, write_predictions(out, found)))
            here.logger.info("Predictions of %d images are in %s", len(found.images), written)
    for reason in found.unreadable:
        print(f"left out: {reason}", file=sys.stderr)
    if found.unreadable:
        print(f"{len(found.unreadable)} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if found.unreadable else 0
