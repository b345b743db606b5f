"""The digest of a user's data: tensors, arrays, values, files and directories."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.tree import SCALARS, copy_tree, key_of, plain_scalar, tree_digest


def data_digest(*values: Any) -> str:
    """Return one SHA-256 over all values, as 64 hexadecimal digits.

    Args:
        values: tensors, NumPy arrays, numbers, texts, and nested lists and dicts of them; of a `pathlib.Path` the
            file's content, or the names and contents of all files below a directory.

    Raises:
        BadInputError: a value of another kind, or a path where nothing is.
    """
    return tree_digest([_as_tree(value, f"value {index}") for index, value in enumerate(values)])


def _as_tree(value: Any, name: str) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.hasobject or value.dtype.kind not in "biufc":
            raise BadInputError(f"{name} is an array of {value.dtype}; expected numbers")
        array = np.ascontiguousarray(value)
        # kinds that torch lacks keep their name
        return [str(array.dtype), list(array.shape), array.astype(array.dtype.newbyteorder("<")).tobytes()]
    if isinstance(value, Path):
        return _of_path(value)
    if isinstance(value, dict):
        return {key_of(key, name): _as_tree(item, f"{name}/{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_as_tree(item, f"{name}/{index}") for index, item in enumerate(value)]
    if isinstance(value, torch.Tensor):
        return value
    if value is None or isinstance(value, SCALARS):
        return plain_scalar(value)  # nothing of it is written, so it may be of any length
    return copy_tree(value, name)


def _of_path(path: Path) -> dict[str, str]:
    if path.is_file():
        return {"": _of_file(path)}
    if not path.is_dir():
        raise BadInputError(f"there is no file and no directory {path}")
    # by their parts: Windows sorts paths themselves without regard to case
    files = sorted((each for each in path.rglob("*") if each.is_file()), key=lambda each: each.parts)
    return {each.relative_to(path).as_posix(): _of_file(each) for each in files}


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
