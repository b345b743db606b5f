"""Open a file made by `torch.save` that a stranger may have written.

`torch.load` in its safe mode runs no code, but it does take a file at its word: a few bytes can claim
a tensor of 2^40 elements, and its allow-list holds constructors that reserve memory. So what `archive`
opened is read here. Its records must add up to the file and their checksums must hold; its pickle may use
only the opcodes and names that a checkpoint needs, and each name stands for a function of this module.
Tensors are views of a memory map, made once their sizes and strides are known to lie within their
record, and copied at the end.
"""

import io
import math
import mmap
import pickle
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from clip_hba_behavior.reproducibility.state.archive import (
    LOADING_ERRORS,
    MAX_FILE_BYTES,
    check_directory,
    open_archive,
    reason,
    unreadable,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError, UnreadableError
from clip_hba_behavior.reproducibility.state.system import private_content
from clip_hba_behavior.reproducibility.state.untrusted import MIB

_MAX_PICKLE_BYTES = 32 * MIB
_MAX_OPCODES = 1_500_000  # 35 for a tensor: a state of 40,000
_MAX_ITEMS = 1_500_000
MAX_DEPTH = 50
MAX_LENGTH_OF_BYTES = 4 * 624  # of a random state
MAX_DIMENSIONS = 25
_MAX_REPEATED_TEXT = 256 * MIB  # whoever digests a state encodes each
_STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch DoubleStorage": torch.float64,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch ComplexFloatStorage": torch.complex64,
    "torch ComplexDoubleStorage": torch.complex128,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
    "torch.storage UntypedStorage": torch.uint8,
}
# what torch.save writes, in pickle's protocol 2
_OPCODES = (
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"),
)
# What has these names in the guide's layout; under any other name stands a parameter, or what is not used.
_KINDS: dict[str, tuple[type, ...]] = {
    "rng_state": (dict, type(None)),
    "optimizer_state": (dict,),
    "early_stopping_state": (dict,),
    "epoch_start_rng_state": (dict, type(None)),
    "metrics": (dict,),
    "provenance": (dict,),
    "state_digest": (str,),
    "epoch": (int,),
    "step_in_epoch": (int,),
    "num_samples": (int,),
    "loss_sum": (int, float),
}


def load(path: Path, what: str = "checkpoint", max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any]:
    """Load a flat dict of builtins and tensors, each tensor in memory of its own.

    Args:
        path: a file made by `torch.save`.
        what: what the file should be, for the messages.
        max_bytes: that such a file can have.

    Raises:
        BadInputError: no such file, no such archive, a damaged one, or one that holds anything else.
        UnreadableError: it cannot be read just now.
    """
    with open_archive(path, what, max_bytes) as (file, archive):
        pickled = _check_records(path, what, file, archive)
        try:
            # not closed here: it goes with the last view of it
            mapped = private_content(file)
            content = _Reader(pickled, archive, mapped).load()
            if not isinstance(content, dict) or not all(type(key) is str for key in content):
                kind = type(content).__name__
                raise BadInputError(f"{path} is no {what}: it holds a {kind}, not a dict by name")
            copied: dict[str, Any] = _Budget(path, what, num_bytes=len(mapped)).copy(content)
        except BadInputError:
            raise
        except LOADING_ERRORS as error:
            raise unreadable(path, what, error) or BadInputError(
                f"{path} is no {what}: {reason(error)}"
            ) from error
    _check_kinds(path, what, copied)
    return copied


def _check_records(path: Path, what: str, file: io.BufferedReader, archive: zipfile.ZipFile) -> bytes:
    """Refuse records that are compressed, overlong or torn, and return the pickle, if it is harmless."""
    size = file.seek(0, io.SEEK_END)
    records = archive.infolist()
    try:
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise BadInputError(f"{path} is no {what}: it holds compressed records")
        if sum(max(record.file_size, record.compress_size) for record in records) > size:
            raise BadInputError(f"{path} is no {what}: its records claim more bytes than the file has")
        if len({record.orig_filename.lower() for record in records}) < len(records):
            raise BadInputError(f"{path} is no {what}: two of its records have the same name")
        torn = archive.testzip()
        if torn is not None:
            raise BadInputError(f"{path} is damaged: the checksum of its record {torn} does not hold")
        pickles = [record for record in records if record.filename.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].file_size > _MAX_PICKLE_BYTES:
            raise BadInputError(f"{path} is no {what}: it was not made by torch.save")
        pickled = archive.read(pickles[0])
        _check_pickle(path, what, pickled)
        return pickled
    except BadInputError:
        raise
    except LOADING_ERRORS as error:
        raise unreadable(path, what, error) or BadInputError(
            f"{path} is no {what}, or a torn one ({size} bytes): {reason(error)}"
        ) from error


def refuse_unreadable(content: bytes, path: Path, what: str) -> None:
    """Return if `load` will take what is about to be written: nothing that can be saved may be refused later.

    Args:
        content: of the file, as `torch.save` made it.
        path: where it is to be written.
        what: what it is, for the message.

    Raises:
        BadInputError: it has too many parts.
    """
    file = io.BytesIO(content)
    try:
        check_directory(file, len(content))
        with zipfile.ZipFile(file) as archive:
            pickled = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
        if len(pickled) > _MAX_PICKLE_BYTES:
            raise pickle.UnpicklingError(f"its pickle has {len(pickled)} bytes")
        _check_pickle(path, what, pickled)
    except (zipfile.BadZipFile, pickle.UnpicklingError) as error:
        raise BadInputError(
            f"{path} was not written, since it could not be read again: {error}\n"
            "  keep fewer and larger values in it: a tensor for a long list"
        ) from error


def _check_pickle(path: Path, what: str, pickled: bytes) -> None:
    """Refuse a pickle that uses anything but what torch.save writes for tensors and builtins."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes in a text, whose opcode is refused
        for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if opcode.name == "STACK_GLOBAL" or (opcode.name == "GLOBAL" and argument not in _STAND_INS):
                raise BadInputError(
                    f"{path} is refused: it names {argument or 'something computed'}, which no {what} needs\n"
                    "  nothing in it was run; do not open it with other tools unless you trust its source"
                )
            if opcode.name not in _OPCODES:
                raise pickle.UnpicklingError(f"its pickle uses {opcode.name}, which torch.save does not write")
            # the unpickler makes room for as many objects as the highest number that it is told to keep one under
            kept_under = int(argument or 0) if opcode.name == "LONG_BINPUT" else 0
            if max(number, kept_under) > _MAX_OPCODES:
                raise pickle.UnpicklingError(f"its pickle has more than {_MAX_OPCODES} parts")


def _check_kinds(path: Path, what: str, content: dict[str, Any]) -> None:
    is_complete = "state_digest" in content
    if is_complete:
        content.setdefault("provenance", {})  # no part of the state
    for name, kinds in _KINDS.items():
        if (is_complete or name in ("rng_state", "provenance")) and not isinstance(
            content.get(name, kinds[0]()), kinds
        ):
            raise BadInputError(
                f"{path} is no {what}: {name} is of the wrong kind\n"
                f"  found:    {type(content[name]).__name__}\n"
                f"  expected: {' or '.join(kind.__name__ for kind in kinds)}"
            )


class _StandIn:
    """What a name in the pickle becomes: it can be called, and nothing can be written into it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("its pickle writes into a function")


class _StorageKind:
    """The element type of a storage, and `torch.uint32`, which stands in the pickle as itself."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("its pickle writes into a type")


class _Tensor:
    """A tensor, kept where the pickle cannot reach its methods."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("its pickle writes into a tensor")


class _Dict(dict[Any, Any]):
    """An OrderedDict; the attributes that a module's state dict carries are left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _NumpyDtype:
    """Stands for `numpy.dtype`; only `uint32` is let through."""

    __slots__ = ()

    def __init__(self, kind: str, align: bool, copy: bool) -> None:
        if kind != "u4":
            raise pickle.UnpicklingError(f"a NumPy array of dtype {kind!r:.50}; only uint32 belongs here")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError("a NumPy array that is not little-endian")


class _NumpyArray(_Tensor):
    """Stands for `numpy.ndarray`: the 624 words of a random state, nothing else."""

    __slots__ = ()

    def __init__(self, kind: object, shape: object, typecode: object) -> None:
        super().__init__(torch.empty(0, dtype=torch.uint32))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, _, data = state
        if not isinstance(data, bytes) or not isinstance(dtype, _NumpyDtype) or len(data) > MAX_LENGTH_OF_BYTES:
            raise pickle.UnpicklingError("a NumPy array that is no random state")
        if shape != (len(data) // 4,) or not data or len(data) % 4:
            raise pickle.UnpicklingError(f"a NumPy array of shape {shape!r:.50} that is no random state")
        self.tensor = torch.frombuffer(bytearray(data), dtype=torch.uint32)


def _encode(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, with which pickle's protocol 2 writes bytes."""
    if encoding != "latin1" or len(text) > MAX_LENGTH_OF_BYTES:
        raise pickle.UnpicklingError("bytes that are no random state")
    return text.encode("latin1")


def _rebuild(dtype: torch.dtype, storage: torch.Tensor, offset: int, size: Any, stride: Any) -> _Tensor:
    """Return a view of a storage, if it lies within."""
    counts = [offset, *size, *stride]
    if not all(type(count) is int and 0 <= count < 2**62 for count in counts):
        raise pickle.UnpicklingError("a tensor whose sizes are no sizes")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise pickle.UnpicklingError("a tensor whose sizes and strides are not as many")
    if math.prod(size) >= 2**62:
        raise pickle.UnpicklingError("a tensor of too many elements")
    elements = storage.view(dtype)
    last = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True))
    if math.prod(size) > 0 and last >= elements.numel():
        raise pickle.UnpicklingError(
            f"a tensor reaches element {last} of {elements.numel()}; its content claims more than the file holds"
        )
    return _Tensor(elements.as_strided(tuple(size), tuple(stride), offset if math.prod(size) else 0))


def _rebuild_tensor(
    storage: "_Storage", offset: int, size: Any, stride: Any, requires_grad: Any, hooks: Any, *_: Any
) -> _Tensor:
    return _rebuild(storage.dtype, storage.bytes, offset, size, stride)


def _rebuild_tensor_of_kind(
    storage: "_Storage",
    offset: int,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    kind: _StorageKind,
    *_: Any,
) -> _Tensor:
    return _rebuild(kind.dtype, storage.bytes, offset, size, stride)


class _Storage:
    """A record that holds a tensor's elements."""

    __slots__ = ("bytes", "dtype")

    def __init__(self, dtype: torch.dtype, content: torch.Tensor) -> None:
        self.dtype = dtype
        self.bytes = content

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("its pickle writes into a storage")


_STAND_INS: dict[str, object] = {
    "collections OrderedDict": _StandIn(_Dict),
    "torch._utils _rebuild_tensor_v2": _StandIn(_rebuild_tensor),
    "torch._utils _rebuild_tensor_v3": _StandIn(_rebuild_tensor_of_kind),
    "torch._utils _rebuild_parameter": _StandIn(lambda data, requires_grad, hooks: data),
    "torch uint32": _StorageKind(torch.uint32),
    # NumPy's random state as the earlier pipeline stored it, a pickled uint32 array
    "numpy._core.multiarray _reconstruct": _StandIn(_NumpyArray),
    "numpy.core.multiarray _reconstruct": _StandIn(_NumpyArray),
    "numpy ndarray": None,
    "numpy dtype": _StandIn(_NumpyDtype),
    "_codecs encode": _StandIn(_encode),
    "__builtin__ bytes": _StandIn(lambda: b""),  # how pickle writes no bytes at all
    **{name: _StorageKind(dtype) for name, dtype in _STORAGES.items()},
}


class _Reader(pickle.Unpickler):
    """Unpickles what `_check_pickle` let through; the pickle reaches nothing but stand-ins and builtins."""

    def __init__(self, pickled: bytes, archive: zipfile.ZipFile, mapped: mmap.mmap | bytearray) -> None:
        super().__init__(io.BytesIO(pickled), encoding="utf-8")
        self._records = {record.filename.partition("/")[2]: record for record in archive.infolist()}
        self._mapped = mapped
        order = self._records.get("byteorder")
        if order is not None and archive.read(order) != b"little":
            raise pickle.UnpicklingError("its numbers are not little-endian")

    def find_class(self, module: str, name: str) -> Any:
        return _STAND_INS[f"{module} {name}"]

    def persistent_load(self, reference: Any) -> _Storage:
        tag, kind, key, _, count = reference
        if tag != "storage" or not isinstance(kind, _StorageKind) or (type(key), type(count)) != (str, int):
            raise pickle.UnpicklingError("its pickle refers to something that is no tensor's storage")
        record = self._records[f"data/{key}"]
        if count * kind.dtype.itemsize != record.file_size or record.file_size != record.compress_size:
            raise pickle.UnpicklingError(
                f"a storage claims {count} elements, its record has {record.file_size} bytes; "
                "its content claims more than the file holds"
            )
        name_length, extra_length = struct.unpack_from("<HH", self._mapped, record.header_offset + 26)
        start = record.header_offset + 30 + name_length + extra_length
        if count == 0:
            return _Storage(kind.dtype, torch.empty(0, dtype=torch.uint8))
        return _Storage(
            kind.dtype, torch.frombuffer(self._mapped, dtype=torch.uint8, count=record.file_size, offset=start)
        )


class _Budget:
    """Copies loaded values; their sizes together may not exceed what the file can hold."""

    def __init__(self, path: Path, what: str, num_bytes: int) -> None:
        self.path = path
        self.what = what
        self.num_bytes = num_bytes
        self.num_items = _MAX_ITEMS
        self.num_text = num_bytes + _MAX_REPEATED_TEXT  # the file holds a text that stands in many places once

    def copy(self, value: Any, depth: int = 0) -> Any:
        self.num_items -= 1
        if isinstance(value, _Tensor):
            value = value.tensor
            self.num_bytes -= value.numel() * value.element_size()
        elif isinstance(value, str | bytes):
            self.num_text -= len(value)
        if min(self.num_bytes, self.num_text, self.num_items) < 0:
            raise BadInputError(f"{self.path} is no {self.what}: its content claims more than the file holds")
        if depth > MAX_DEPTH:
            raise BadInputError(f"{self.path} is no {self.what}: it is nested more than {MAX_DEPTH} deep")
        if isinstance(value, torch.Tensor):
            try:
                # with its strides where it is dense: a fused optimizer's bits depend on them
                return value.clone(memory_format=torch.preserve_format)
            except RuntimeError as error:  # torch's way to say that there is no memory
                raise UnreadableError(
                    f"{self.what} {self.path} cannot be read just now: {reason(error)}\n  try again"
                ) from error
        if isinstance(value, dict):
            return {self._key(key): self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.copy(item, depth + 1) for item in value)
        if isinstance(value, str):
            value.encode()  # refuses half of a surrogate pair, which has no digest
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        raise BadInputError(f"{self.path} is no {self.what}: it holds a {type(value).__name__}")

    def _key(self, key: Any) -> Any:
        if type(key) not in (str, int):
            raise BadInputError(f"{self.path} is no {self.what}: a dict's key is a {type(key).__name__}")
        return self.copy(key)
