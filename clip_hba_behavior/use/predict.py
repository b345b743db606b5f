"""`clip-hba predict`: the embedding of any images, by the model of a run or a checkpoint."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clip_hba_behavior.data.image_files import images_below
from clip_hba_behavior.data.images import load_pixels
from clip_hba_behavior.data.things import DataError
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.untrusted import quote
from clip_hba_behavior.use.request import names_file, refuse_bad_table
from clip_hba_behavior.use.trained_model import TrainedModel

_AT_ONCE = 32


@dataclass(frozen=True)
class Predictions:
    """What a model says of some images.

    Attributes:
        images: the files that could be read.
        values: `[len(images), 66] float32`.
        prompts: the columns' names.
        unreadable: why each other file could not be read.
    """

    images: tuple[Path, ...]
    values: NDArray[np.float32]
    prompts: tuple[str, ...]
    unreadable: tuple[str, ...]

    def top(self, number: int) -> Iterator[str]:
        """Yield a line for each image, with its largest dimensions."""
        for image, row in zip(self.images, self.values, strict=True):
            largest = np.argsort(-row, kind="stable")[:number]
            named = ", ".join(f"{self.prompts[index]} {row[index]:.2f}" for index in largest)
            yield f"{image}: {named}"


def find_images(asked: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Find the image files that are meant.

    Args:
        asked: files, and directories, whose folders are looked into too.

    Returns:
        The files, each once, those of a directory sorted; and a line for each directory with other files.

    Raises:
        BadInputError: a path is not there, or there are no images.
    """
    found: dict[Path, None] = {}
    notes = []
    for path in asked:
        if not path.exists():
            raise BadInputError(f"there is no image or directory {path}\n  give files, or directories of images")
        if path.is_dir():
            images, others = images_below(path)
            found |= dict.fromkeys(images)
            if others:
                files = "1 other file" if len(others) == 1 else f"{len(others)} other files"
                notes.append(f"{path}: {files} left out, such as {others[0].name}")
        else:
            found[path] = None
    if not found:
        raise BadInputError(
            f"there are no images in {', '.join(map(str, asked))}\n  give files, or their directory"
        )
    return list(found), notes


def predict_images(
    model: TrainedModel, images: Sequence[Path], progress: Callable[[int, int], None] = lambda done, total: None
) -> Predictions:
    """Predict image by image; those that cannot be read are named and left out."""
    readable: list[Path] = []
    unreadable: list[str] = []
    parts = [np.empty((0, len(model.prompts)), dtype=np.float32)]
    waiting: list[torch.Tensor] = []
    for done, path in enumerate(images, start=1):
        try:
            _refuse_no_text(path)
            waiting.append(load_pixels([path], model.preprocessing))
        except DataError as error:
            unreadable.append(str(error))
        else:
            readable.append(path)
        if waiting and (len(waiting) == _AT_ONCE or done == len(images)):
            parts.append(model.embed(torch.cat(waiting)).numpy())
            waiting = []
        progress(done, len(images))
    return Predictions(tuple(readable), np.concatenate(parts), model.prompts, tuple(unreadable))


def _refuse_no_text(path: Path) -> None:
    """Return if a path can be a line of UTF-8 text, as what is written of it must be; raises DataError."""
    name = str(path)
    if "\n" in name or "\r" in name or name != name.encode(errors="replace").decode():
        raise DataError(f"{quote(name)}: its name has a line break, or is no UTF-8\n  rename the file")


def refuse_columns_of_one_name(path: Path, prompts: Sequence[str]) -> None:
    """Return if a Parquet file can have these columns, and one `image`: readers refuse two of one name.

    Raises:
        BadInputError: it cannot.
    """
    names = ["image", *prompts]
    if path.suffix == ".parquet" and (twice := sorted({name for name in names if names.count(name) > 1})):
        raise BadInputError(
            f"--out {path}: several columns would have one name: {quote(twice)}\n"
            "  give a .csv or a .npy, whose readers go by place"
        )


def write_predictions(path: Path, predictions: Predictions) -> list[Path]:
    """Write predictions as CSV, Parquet or NPY, by the file's ending; the same predictions give the same bytes.

    CSV and Parquet have a column `image` and one for each prompt. A `.npy` has `[images, 66] float32`, and beside
    it `<name>_file_names.txt` the images, one a line.

    Returns:
        The files written.

    Raises:
        BadInputError: as `refuse_bad_table` and `refuse_columns_of_one_name`.
    """
    refuse_bad_table(path)
    refuse_columns_of_one_name(path, predictions.prompts)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [str(image) for image in predictions.images]
    if path.suffix == ".csv":
        publish(path, _csv(names, predictions))
        return [path]
    if path.suffix == ".parquet":
        publish(path, _parquet(names, predictions))
        return [path]
    content = io.BytesIO()
    np.save(content, predictions.values.astype("<f4", copy=False), allow_pickle=False)
    publish(path, content.getvalue())
    publish(names_file(path), "".join(f"{name}\n" for name in names).encode())
    return [path, names_file(path)]


def _csv(names: Sequence[str], predictions: Predictions) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", *predictions.prompts])
    for name, row in zip(names, predictions.values, strict=True):
        writer.writerow([name, *(str(value) for value in row)])  # the shortest text that gives this float32 again
    return text.getvalue().encode()


def _parquet(names: Sequence[str], predictions: Predictions) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(names, type=pa.string())]
    columns += [pa.array(column, type=pa.float32()) for column in predictions.values.T]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, names=["image", *predictions.prompts]), sink)
    return sink.getvalue()
