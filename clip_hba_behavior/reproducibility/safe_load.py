"""Open a file made by `torch.save` that a stranger may have written.

`torch.load` in its safe mode runs no code, but it does take a file at its word: a few bytes can claim
a tensor of 2^40 elements, and its allow-list holds constructors that reserve memory. So before it is
called, the archive's records must add up to the file and their checksums must hold, and the pickle
may name only what a checkpoint needs. Tensors come from a memory map and are copied once their sizes
and strides are known to lie within the file.
"""

import math
import pickle
import pickletools
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.reproducibility.errors import BadInputError

_MAX_PICKLE_BYTES = 64 * 2**20
_MAX_ITEMS = 1_000_000
_ALLOWED_GLOBALS = (
    {
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "collections OrderedDict",
        # NumPy's random state as the earlier pipeline stored it, a pickled uint32 array
        "numpy._core.multiarray _reconstruct",
        "numpy.core.multiarray _reconstruct",
        "numpy ndarray",
        "numpy dtype",
        "_codecs encode",
    }
    | {
        f"torch {kind}Storage"
        for kind in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    }
    | {"torch.storage UntypedStorage", "torch._utils _rebuild_tensor_v3", "torch uint32"}
)


# What a damaged or forged archive makes torch.load and its unpickler raise.
_LOADING_ERRORS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


class _NumpyDtype:
    """Stands for `numpy.dtype` while reading; only `uint32` is let through."""

    def __init__(self, kind: str, align: bool, copy: bool) -> None:
        if kind != "u4":
            raise pickle.UnpicklingError(f"a NumPy array of dtype {kind!r}; only uint32 belongs here")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError("a NumPy array that is not little-endian")


class _NumpyArray:
    """Stands for `numpy.ndarray` while reading: one dimension of uint32, nothing else."""

    tensor: torch.Tensor | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, _, _, data = state
        if not isinstance(data, bytes) or shape != (len(data) // 4,) or len(data) % 4:
            raise pickle.UnpicklingError(f"a NumPy array of shape {shape!r} that is no random state")
        self.tensor = torch.frombuffer(bytearray(data), dtype=torch.uint32)


def _reconstruct(array_type: type, shape: tuple[int, ...], kind: bytes) -> _NumpyArray:
    if array_type is not _NumpyArray:
        raise pickle.UnpicklingError("a NumPy array of another type")
    return _NumpyArray()


_NUMPY_STAND_INS: list[Any] = [
    (_reconstruct, "numpy._core.multiarray._reconstruct"),
    (_reconstruct, "numpy.core.multiarray._reconstruct"),
    (_NumpyArray, "numpy.ndarray"),
    (_NumpyDtype, "numpy.dtype"),
    # BUILD looks a value's type up among the allowed ones
    (_NumpyArray, "clip_hba_behavior._NumpyArray"),
    (_NumpyDtype, "clip_hba_behavior._NumpyDtype"),
]


def load(path: Path, what: str = "checkpoint") -> dict[str, Any]:
    """Load a flat dict of builtins and tensors, each tensor in memory of its own.

    Args:
        path: a file made by `torch.save`.
        what: what the file should be, for the messages.

    Raises:
        BadInputError: no such file, no such archive, a damaged one, or one that holds anything else.
    """
    if not path.is_file():
        raise BadInputError(f"there is no {what} {path}")
    _check_archive(path, what)
    try:
        with torch.serialization.safe_globals(_NUMPY_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about deprecated storages; the content is checked below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _LOADING_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInputError(f"{path} is no {what}: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInputError(f"{path} is no {what}: it holds a {type(content).__name__}, not a dict by name")
    budget = _Budget(path, what, num_bytes=path.stat().st_size)
    return {key: budget.copy(value) for key, value in content.items()}


def _check_archive(path: Path, what: str) -> None:
    """Refuse an archive whose records are compressed, overlong or torn, or name anything unexpected."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            if any(record.compress_type != zipfile.ZIP_STORED for record in records):
                raise BadInputError(f"{path} is no {what}: it holds compressed records")
            if sum(record.file_size for record in records) > size:
                raise BadInputError(f"{path} is no {what}: its records claim more bytes than the file has")
            torn = archive.testzip()
            if torn is not None:
                raise BadInputError(f"{path} is damaged: the checksum of its record {torn} does not hold")
            pickles = [record for record in records if record.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
                raise BadInputError(f"{path} is no {what}: it was not made by torch.save")
            _check_globals(path, what, archive.read(pickles[0]))
    except BadInputError:
        raise
    except (zipfile.BadZipFile, struct.error, *_LOADING_ERRORS) as error:
        raise BadInputError(f"{path} is no {what}, or a torn one ({size} bytes): {error}") from error


def _check_globals(path: Path, what: str, data: bytes) -> None:
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STACK_GLOBAL" or (opcode.name == "GLOBAL" and argument not in _ALLOWED_GLOBALS):
            raise BadInputError(
                f"{path} is refused: it names {argument or 'something computed'}, which no {what} needs\n"
                "  nothing in it was run; do not open it with other tools unless you trust its source"
            )


class _Budget:
    """Copies loaded values; their sizes together may not exceed what the file can hold."""

    def __init__(self, path: Path, what: str, num_bytes: int) -> None:
        self.path = path
        self.what = what
        self.num_bytes = num_bytes
        self.num_items = _MAX_ITEMS

    def copy(self, value: Any) -> Any:
        self.num_items -= 1
        if isinstance(value, _NumpyArray):
            value = value.tensor
        if isinstance(value, torch.Tensor):
            self.num_bytes -= math.prod(value.shape) * value.element_size()
        if self.num_bytes < 0 or self.num_items < 0:
            raise BadInputError(f"{self.path} is no {self.what}: its content claims more than the file holds")
        if isinstance(value, torch.Tensor):
            return value.detach().clone(memory_format=torch.contiguous_format)
        if isinstance(value, dict):
            return {key: self.copy(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(item) for item in value)
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise BadInputError(f"{self.path} is no {self.what}: it holds a {type(value).__name__}")
