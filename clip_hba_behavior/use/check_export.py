"""An export loaded back by the libraries that it is for, and compared with the model that was exported."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from clip_hba_behavior.data.images import read_image, to_pixels
from clip_hba_behavior.data.standin import draw_image, draw_latents
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.use.formats import transformers_config
from clip_hba_behavior.use.trained_model import TrainedModel

TOLERANCE = 1e-5  # of the largest prediction, or of 1 where that is less
_LIBRARIES = {"peft": ("peft", "transformers"), "merged": ("transformers",)}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Comparison:
    """What the libraries predict beside what the model does.

    Attributes:
        libraries: with their versions; what is not installed is in `missing`.
        missing: names of libraries; nothing was compared where there are any.
        num_images: how many were predicted.
        largest_difference: of any prediction.
        largest_prediction: in size.
    """

    libraries: tuple[str, ...]
    missing: tuple[str, ...]
    num_images: int = 0
    largest_difference: float = 0.0
    largest_prediction: float = 0.0

    def __str__(self) -> str:
        """Return it as a sentence."""
        if self.missing:
            return f"not loaded back: {' and '.join(self.missing)} is not installed"
        return (
            f"loaded back by {' and '.join(self.libraries)}: predictions of {self.num_images} images differ by at "
            f"most {self.largest_difference:.1e}, of values up to {self.largest_prediction:.1f}"
        )


def drawn_images(model: TrainedModel, number: int = 8) -> list[Image.Image]:
    """Draw images to compare with where those of the run are not at hand; always the same."""
    side = max(32, 8 * (model.preprocessing.image_size // 8))
    return [draw_image(latent, side).resize((side + 16, side)) for latent in draw_latents(number, seed=0)]


def read_images(model: TrainedModel, paths: Sequence[Path]) -> list[Image.Image]:
    """Read images as RGB, as the model's own preprocessing does; raises as `read_image`."""
    return [read_image(path, model.preprocessing.rule) for path in paths]


def compare_export(
    model: TrainedModel, directory: Path, format: str, images: Sequence[Image.Image], progress: Progress
) -> tuple[NDArray[np.float32], Comparison]:
    """Predict images by the model, and by the libraries from what was exported of it.

    Args:
        model: on the CPU.
        directory: of the export.
        format: `peft` or `merged`.
        images: RGB.
        progress: called with the number of images done and in all.

    Returns:
        The model's predictions, `[len(images), 66] float32`, and how far the libraries' are from them.

    Raises:
        StoppedError: they are further than `TOLERANCE` allows.
    """
    missing = tuple(name for name in _LIBRARIES[format] if find_spec(name) is None)
    libraries = tuple(f"{name} {version(name)}" for name in _LIBRARIES[format] if name not in missing)
    expected, found = [], []
    with _silent_libraries(bool(missing)):
        theirs = None if missing else _load(model, directory, format)
        at_once = model.config.chunk_size
        for start in range(0, len(images), at_once):
            some = images[start : start + at_once]
            pixels = torch.stack([to_pixels(image, model.preprocessing) for image in some])
            expected.append(model.embed(pixels).numpy())
            if theirs is not None:
                found.append(theirs(some))
            progress(start + len(some), len(images))
    predictions = np.concatenate(expected)
    if missing:
        return predictions, Comparison(libraries, missing)
    comparison = Comparison(
        libraries,
        missing,
        len(images),
        float(np.abs(np.concatenate(found) - predictions).max()),
        float(np.abs(predictions).max()),
    )
    allowed = TOLERANCE * max(1.0, comparison.largest_prediction)
    if not comparison.largest_difference <= allowed:  # nor where it is no number
        raise StoppedError(
            f"what was exported predicts otherwise than the run, by {' and '.join(libraries)}\n"
            f"  found:    a difference of {comparison.largest_difference:.3g} in {len(images)} images\n"
            f"  expected: at most {allowed:.3g}, {TOLERANCE:g} of the largest prediction\n"
            "  nothing was written; try other versions of these libraries, and please report this"
        )
    return predictions, comparison


def _load(model: TrainedModel, directory: Path, format: str) -> Callable[[Sequence[Image.Image]], Any]:
    """Return what predicts images by the libraries, `[len(images), 66]`."""
    from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

    processor = CLIPImageProcessor.from_pretrained(directory)
    if format == "merged":
        clip = CLIPModel.from_pretrained(directory)
        tokens = CLIPTokenizer.from_pretrained(directory)(list(model.prompts), padding=True, return_tensors="pt")
        token_ids, mask = tokens["input_ids"], tokens["attention_mask"]
    else:
        clip, (token_ids, mask) = _with_adapter(model, directory), (model.token_ids, None)
    clip.eval()

    @torch.no_grad()
    def predict(images: Sequence[Image.Image]) -> Any:
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return clip(input_ids=token_ids, attention_mask=mask, pixel_values=pixels).logits_per_image.numpy()

    return predict


def _with_adapter(model: TrainedModel, directory: Path) -> Any:
    """Return transformers' CLIP with the backbone's weights, the adapter put onto it by PEFT."""
    from peft import PeftModel
    from transformers import CLIPConfig, CLIPModel

    with torch.random.fork_rng(devices=[]):  # it draws weights, which are replaced
        clip = CLIPModel(CLIPConfig(**transformers_config(model)))
    clip.load_state_dict(dict(model.backbone.weights))
    return PeftModel.from_pretrained(clip, directory)


@contextmanager
def _silent_libraries(are_missing: bool) -> Iterator[None]:
    """Keep the libraries' own remarks from the user: what matters of an export is compared."""
    if are_missing:
        yield
        return
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
