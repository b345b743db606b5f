"""What the commands on a trained model print, and their exit codes."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip_hba_behavior.run.log import session
from clip_hba_behavior.use.export import export_model
from clip_hba_behavior.use.load import load_model
from clip_hba_behavior.use.predict import find_images, predict_images, refuse_bad_output, write_predictions

_TOP = 5


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


def export(checkpoint: Path, format: str, out: Path, certificate: Path | None, keys: Mapping[str, Any] | None) -> int:
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
