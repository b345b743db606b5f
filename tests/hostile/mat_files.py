"""MATLAB files that mean harm."""

import io
import pickle
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.io

from hostile.files import Build, RunsCode, bytes_of


def mat(**variables: Any) -> Callable[[], bytes]:
    def save() -> bytes:
        file = io.BytesIO()
        scipy.io.savemat(file, variables)
        return file.getvalue()

    return save


MAT_HEADER = b"MATLAB 5.0 MAT-file".ljust(116) + bytes(8) + b"\x00\x01IM"


def _element(kind: int, content: bytes, claimed: int | None = None) -> bytes:
    return struct.pack("<LL", kind, len(content) if claimed is None else claimed) + content


def _variable(
    rows: int, columns: int, numbers: bytes, name: bytes = b"RDM48_triplet\0\0\0", kind: int = 6
) -> bytes:
    flags = _element(6, struct.pack("<LL", kind, 0))
    shape = _element(5, struct.pack("<ll", rows, columns))
    return flags + shape + struct.pack("<LL", 1, min(len(name), 13)) + name + numbers


def zlib_bomb(size: int) -> bytes:
    packer = zlib.compressobj(1)
    claimed = struct.pack("<LL", 14, size) + _variable(48, 48, struct.pack("<LL", 9, size))
    packed = packer.compress(claimed) + b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20))
    return MAT_HEADER + _element(15, packed + packer.flush())


def name_bomb() -> bytes:
    """The variable's name alone claims, and unpacks to, a quarter of a gigabyte."""
    size = 2**28
    packer = zlib.compressobj(1)
    start = (
        _element(6, struct.pack("<LL", 6, 0))
        + _element(5, struct.pack("<ll", 48, 48))
        + struct.pack("<LL", 1, size)
    )
    packed = packer.compress(struct.pack("<LL", 14, size + 100) + start)
    packed += b"".join(packer.compress(bytes(2**20)) for _ in range(size // 2**20))
    return MAT_HEADER + _element(15, packed + packer.flush())


def same_name_twice() -> bytes:
    objects = mat(RDM48_triplet=np.full((48, 48), "x", dtype=object))()
    return objects + mat(RDM48_triplet=np.ones((48, 48)))()[128:]


RDMS: list[tuple[str, Build]] = [
    ("of class cell", bytes_of("objects", mat(RDM48_triplet=np.full((48, 48), "x", dtype=object)))),
    (
        "of class struct",
        bytes_of("struct", mat(RDM48_triplet={"pickle": np.frombuffer(pickle.dumps(RunsCode()), "u1")})),
    ),
    ("is missing", bytes_of("pickle", mat(x=np.frombuffer(pickle.dumps(RunsCode()), "u1")))),
    ("two variables of the same name", bytes_of("twice", same_name_twice)),
    ("unpacks to more than", bytes_of("zlib_bomb", lambda: zlib_bomb(2**28))),
    ("unpacks to more than", bytes_of("name_bomb", name_bomb)),
    (
        "",
        bytes_of(
            "claims_4_gb",
            MAT_HEADER + _element(14, _variable(48, 48, struct.pack("<LL", 9, 2**32 - 8)), 2**32 - 8),
        ),
    ),
    (
        "",
        bytes_of(
            "name_of_4_gb",
            MAT_HEADER + _element(14, _element(6, bytes(8)) + struct.pack("<LLllLL", 5, 8, 48, 48, 1, 2**32 - 8)),
        ),
    ),
    (
        "is no RDM",
        bytes_of("shape_2_62", MAT_HEADER + _element(14, _variable(2**31 - 1, 2**31 - 1, _element(9, bytes(8))))),
    ),
    ("", bytes_of("fewer_numbers", MAT_HEADER + _element(14, _variable(48, 48, _element(9, bytes(8)))))),
    ("", bytes_of("opaque", MAT_HEADER + _element(14, _variable(48, 48, _element(9, bytes(8)), kind=17)))),
    (
        "is no RDM",
        bytes_of("function", MAT_HEADER + _element(14, _variable(48, 48, _element(9, bytes(8)), kind=16))),
    ),
    ("is no RDM", bytes_of("sparse", MAT_HEADER + _element(14, _variable(48, 48, _element(9, bytes(8)), kind=5)))),
    (
        "",
        bytes_of(
            "many_variables", lambda: MAT_HEADER + _element(14, _variable(1, 1, _element(9, bytes(8)))) * 40_000
        ),
    ),
    ("", bytes_of("many_empty", lambda: MAT_HEADER + _element(14, b"") * 500_000)),
    ("do not end", bytes_of("version_4_in_circles", struct.pack("<lllll", 0, -1, 3, 0, 4) + b"abc\0" + bytes(99))),
    ("", bytes_of("version_4_huge", struct.pack("<lllll", 0, 2**31 - 1, 2**31 - 1, 0, 14) + b"RDM48_triplet\0")),
    ("", bytes_of("version_4_name", struct.pack("<lllll", 0, 48, 48, 0, 2**31 - 1) + b"RDM48_triplet\0")),
]
