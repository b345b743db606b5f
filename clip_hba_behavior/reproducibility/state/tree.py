"""Trees of tensors and scalars, such as `state_dict`s: copied, named leaf by leaf, digested.

Names are paths that tell a dict's key from a list's index and a text key from a number, so that no two trees
share a digest. (CLIP-HBA's own states keep the encoding of `digest.py`, which recorded runs were digested by.)
"""

import hashlib
import io
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch

from clip_hba_behavior.reproducibility.state.digest import encode
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.safe_load import MAX_DEPTH, MAX_DIMENSIONS, MAX_LENGTH_OF_BYTES

ENCODING = 2  # of the digests that `tree_digest` gives; 1 is `digest.digest`
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint32, torch.bool),
    *(torch.complex64, torch.complex128),
)
Tree: TypeAlias = Any  # nested dicts, lists and tuples of tensors, numbers, texts, bytes and None
_MAX_DEPTH = MAX_DEPTH - 10  # what a state's file adds around it
_MAX_BITS = 2000  # 255 bytes in a pickle
SCALARS = (bool, int, float, str, bytes)
_ESCAPES = str.maketrans({"~": "~~", "/": "~s", "[": "~l", "(": "~t", "{": "~k"})


def copy_tree(value: object, name: str = "state") -> Tree:
    """Copy a tree: every tensor detached, on the CPU and in memory of its own, every container a plain one.

    A tensor that is dense keeps its strides, such as those of channels_last: kernels of optimizers depend on them.

    Args:
        value: the tree. Subclasses of dict, list, tuple, `torch.Tensor` and of the scalars become these.
        name: of the tree, for the message.

    Raises:
        BadInputError: it holds something of another kind, or what no file could give back; names where.
    """
    return _copy(value, name, 0)


def _copy(value: object, name: str, depth: int) -> Tree:
    if depth > _MAX_DEPTH:
        raise BadInputError(f"{name} is nested more than {_MAX_DEPTH} deep, which cannot be saved")
    if isinstance(value, torch.Tensor):
        return _copy_tensor(value, name)
    if isinstance(value, Mapping):
        return {key_of(key, name): _copy(item, f"{name}/{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        copied = [_copy(item, f"{name}/{index}", depth + 1) for index, item in enumerate(value)]
        return tuple(copied) if isinstance(value, tuple) else copied
    if value is None or isinstance(value, SCALARS):
        _refuse_unwritable(value, name)
        return plain_scalar(value)
    raise BadInputError(
        f"{name} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be saved bit for bit\n"
        "  expected: tensors, numbers, texts, bytes, None, and dicts and lists of them"
    )


def _copy_tensor(value: torch.Tensor, name: str) -> torch.Tensor:
    if torch.nn.parameter.is_lazy(value):
        raise BadInputError(f"{name} has no shape yet\n  let a batch through the model first")
    is_wrapper = type(value).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__  # such as a DTensor
    is_known = value.layout == torch.strided and value.dtype in DTYPES and value.ndim <= MAX_DIMENSIONS
    if not is_known or value.is_meta or is_wrapper:
        kind = f"{type(value).__name__}, {value.layout}, {value.dtype}, {value.ndim} dimensions, on {value.device}"
        raise BadInputError(f"{name} is a tensor that cannot be saved: {kind}")
    plain = value.detach().as_subclass(torch.Tensor)
    return plain.resolve_conj().resolve_neg().to("cpu", copy=True)


def key_of(key: object, name: str) -> str | int:
    """Return a dict's key as one of Python's own.

    Raises:
        BadInputError: it is neither text nor integer; `name` is that of the dict.
    """
    if not isinstance(key, str | int) or isinstance(key, bool):
        raise BadInputError(f"{name} has a key that is neither text nor integer: {key!r}")
    plain: str | int = plain_scalar(key)
    _refuse_unwritable(plain, f"a key of {name}")
    return plain


def _refuse_unwritable(value: object, name: str) -> None:
    if isinstance(value, bytes) and len(value) > MAX_LENGTH_OF_BYTES:
        raise BadInputError(
            f"{name} cannot be saved\n  found:    {len(value)} bytes\n  expected: at most {MAX_LENGTH_OF_BYTES}\n"
            "  make a tensor of them: torch.frombuffer(bytearray(value), dtype=torch.uint8)"
        )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadInputError(f"{name} is a text that no file can hold: {error}") from error
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise BadInputError(f"{name} cannot be saved: an integer of {value.bit_length()} bits")


def plain_scalar(value: Any) -> Any:
    """Return a scalar as one of Python's own: `numpy.float64` is a float that a safe loader refuses."""
    if isinstance(value, str):
        return str.__str__(value)  # of a member of an enumeration its value
    for kind in SCALARS:
        if isinstance(value, kind):
            return kind(value)  # type: ignore[arg-type]
    return value


def tree_leaves(value: Tree, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its path: `/key` or `{key}` for a dict's text or number, `[i]` and `(i)` in a sequence.

    An empty container is a leaf too. So is a list or tuple of integers: a generator's state has 625.
    """
    if isinstance(value, dict) and value:
        for key, item in value.items():
            name = f"{{{key}}}" if isinstance(key, int) else f"/{key.translate(_ESCAPES)}"
            yield from tree_leaves(item, f"{path}{name}")
    elif isinstance(value, list | tuple) and value and not all(type(item) is int for item in value):
        for index, item in enumerate(value):
            yield from tree_leaves(item, f"{path}{f'[{index}]' if isinstance(value, list) else f'({index})'}")
    else:
        yield path, value


def tree_digest(value: Tree) -> str:
    """Return the SHA-256 over all leaves with their paths, in the order of the paths, as 64 hexadecimal digits."""
    total = hashlib.sha256(f"tree {ENCODING}\n".encode())
    for path, leaf in sorted(tree_leaves(value), key=lambda item: item[0]):
        name, encoded = path.encode("utf-8", "surrogatepass"), encode(leaf)
        total.update(f"{len(name)} {len(encoded)}\n".encode() + name + encoded)
    return total.hexdigest()


def to_bytes(content: Mapping[str, Any]) -> bytes:
    """Serialise a content. The same content gives the same bytes, whatever the file is called."""
    buffer = io.BytesIO()  # given a path, torch.save would write the file's name into the archive
    torch.save(_with_one_object_a_text(dict(content)), buffer)
    return buffer.getvalue()


def _with_one_object_a_text(value: Any) -> Any:
    """Rebuild containers so that equal texts are one object.

    Pickle writes a text that is the same object as an earlier one as a reference, so without this the
    bytes would tell whether a text was read from a file or came from the program.
    """
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, dict):
        return {_with_one_object_a_text(key): _with_one_object_a_text(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        if set(map(type, value)) == {int}:
            return type(value)([*value])  # an object of its own, as the containers around it are
        return type(value)(_with_one_object_a_text(item) for item in value)
    return value
