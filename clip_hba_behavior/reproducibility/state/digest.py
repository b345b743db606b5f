"""The canonical encoding of a state, and the digests over it.

Equality in this project means equal digests: of raw bytes, names, dtypes and shapes. It is never
`torch.allclose`, never `torch.equal` (which takes -0.0 for 0.0 and fails on NaN), and never a
comparison of files (a checkpoint's provenance may differ where its state does not).
"""

import hashlib
import struct
from collections.abc import Iterator
from typing import TypeAlias

import torch

Leaf: TypeAlias = torch.Tensor | bool | int | float | str | bytes | tuple[int, ...] | None


def leaves(value: object, name: str = "") -> Iterator[tuple[str, Leaf]]:
    """Walk nested dicts, lists and tuples down to tensors and scalars.

    A dict's key or a list's index is one part of the name, parts are joined with `/`. A list of
    integers (the state of Python's generator has 625) is one leaf. An empty container is the leaf
    `()`: its presence counts.

    Yields:
        `(name, leaf)` in the order of the containers.

    Raises:
        TypeError: for anything that is neither a container, a tensor nor a scalar.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{name}/{key}" if name else str(key))
        if not value:
            yield name, ()
    elif isinstance(value, list | tuple):
        if set(map(type, value)) <= {int}:
            yield name, tuple(value)
        else:
            for index, item in enumerate(value):
                yield from leaves(item, f"{name}/{index}")
    elif value is None or isinstance(value, torch.Tensor | bool | int | float | str | bytes):
        yield name, value
    else:
        raise TypeError(f"{name}: {type(value).__name__} has no canonical encoding")


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements of a tensor in row-major order, each little-endian."""
    tensor = tensor.detach().cpu().contiguous()
    array = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def encode(leaf: Leaf) -> bytes:
    """Encode one leaf so that different leaves never give the same bytes.

    A tensor is the line `tensor <dtype> <shape>`, as Python writes them (`torch.float32 (66,)`), and its
    `tensor_bytes`; a text is the line `str` and its UTF-8; bytes are the line `bytes` and themselves; a float is
    the line `float` and its eight bytes, the lowest first, so that NaN and -0.0 are themselves. Anything else is
    the line `<its type>`, `int`, `bool`, `NoneType` or `tuple`, and Python's `repr`.
    """
    if isinstance(leaf, torch.Tensor):
        return f"tensor {leaf.dtype} {tuple(leaf.shape)}\n".encode() + tensor_bytes(leaf)
    if isinstance(leaf, bytes):
        return b"bytes\n" + leaf
    if isinstance(leaf, str):
        return b"str\n" + leaf.encode("utf-8", "surrogatepass")
    if isinstance(leaf, float):
        return b"float\n" + struct.pack("<d", leaf)
    return f"{type(leaf).__name__}\n{leaf!r}".encode()


def leaf_digest(leaf: Leaf) -> str:
    """Return the SHA-256 of one encoded leaf, as 64 hexadecimal digits."""
    return hashlib.sha256(encode(leaf)).hexdigest()


def digest(value: object) -> str:
    """Return the SHA-256 over the encoding of all leaves, sorted by name (by code points).

    Before each stands the line `<length of the name> <name> <number of bytes>`.

    Args:
        value: nested dicts, lists and tuples of tensors and scalars.

    Returns:
        64 hexadecimal digits.
    """
    total = hashlib.sha256()
    for name, leaf in sorted(leaves(value), key=lambda item: item[0]):
        encoded = encode(leaf)
        total.update(f"{len(name)} {name} {len(encoded)}\n".encode())
        total.update(encoded)
    return total.hexdigest()
