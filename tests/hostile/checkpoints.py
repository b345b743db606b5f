"""Checkpoints that mean harm."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hostile.files import GIB, Build, RunsCode, bytes_of, sparse


class Storage:
    """A storage that a forged pickle refers to."""

    def __init__(self, numel: int, key: str = "0") -> None:
        self.numel = numel
        self.key = key


class Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class _Forger(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Storage):
            return ("storage", torch.FloatStorage, value.key, "cpu", value.numel)
        return None


def forged(content: Any) -> bytes:
    file = io.BytesIO()
    _Forger(file, 2).dump(content)
    return file.getvalue()


def tensor(size: tuple[int, ...], stride: tuple[int, ...], numel: int = 4, offset: int = 0) -> Calls:
    return Calls(torch._utils._rebuild_tensor_v2, Storage(numel), offset, size, stride, False, Calls(OrderedDict))


def archive_of(pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", b"3\n")
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def saved(content: Any) -> Callable[[], bytes]:
    def save() -> bytes:
        file = io.BytesIO()
        torch.save(content, file)
        return file.getvalue()

    return save


def holding(*, raw: bytes | None = None, **extra: Any) -> Callable[[], bytes]:
    """An archive with a valid parameter, and with something else."""
    return lambda: archive_of(forged({"w": tensor((4,), (1,))} | extra) if raw is None else raw)


def complete(**changes: Any) -> Callable[[], bytes]:
    """A state that was never saved by this package, under a digest that fits."""

    def save() -> bytes:
        from clip_hba_behavior.reproducibility.state.digest import digest

        state = {
            "optimizer_state": {},
            "rng_state": {},
            "early_stopping_state": {},
            "epoch": 1,
            "step_in_epoch": 0,
            "loss_sum": 0.0,
            "num_samples": 0,
            "epoch_start_rng_state": None,
            "metrics": {},
        } | {key: value for key, value in changes.items() if key != "provenance"}
        parameters = {"w": torch.ones(4)}
        content = parameters | state | {"format_version": 1}
        content["state_digest"] = digest({"parameters": parameters} | state)
        content["provenance"] = changes.get("provenance", {})
        return saved(content)()

    return save


def laughs() -> bytes:
    value: list[Any] = ["ha"] * 10
    for _ in range(15):
        value = [value] * 10
    return archive_of(forged({"w": tensor((4,), (1,)), "laughs": value}))


def circle() -> bytes:
    value: list[Any] = []
    value.append(value)
    return archive_of(forged({"w": tensor((4,), (1,)), "circle": value}))


def one_text_often() -> bytes:
    return archive_of(forged({"w": tensor((4,), (1,)), "texts": ["x" * 4_000_000] * 100_000}))


def encoded_often() -> bytes:
    """A long text, encoded again and again: a few bytes each time, a copy each time."""
    once = b"c_codecs\nencode\nq\x00X" + struct.pack("<I", 4_000_000) + b"x" * 4_000_000
    again = b"h\x00h\x01X\x06\x00\x00\x00latin1\x86R"
    return archive_of(b"\x80\x02" + once + b"q\x010](" + again * 20_000 + b"e.")


def attribute_in_the_way() -> bytes:
    """An OrderedDict with an attribute `items` that is a function."""
    start = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsctorch\nFloatStorage\nsb."
    return archive_of(start)


def many_records_in_one_place() -> bytes:
    content = archive_of(forged({"w": tensor((4,), (1,))}), more=bytes(10_000))
    start = content.index(b"PK\x01\x02")
    end = content.index(b"PK\x05\x06")
    entry = content[content.index(b"PK\x01\x02", end - 80) : end]
    entries = content[start:end] + entry * 500
    count = struct.pack("<HHLL", 504, 504, len(entries), start)
    return content[:start] + entries + content[end : end + 8] + count + b"\0\0"


def two_directories() -> bytes:
    """zipfile takes the directory before the 64-bit end record; torch's reader goes where its locator says."""
    hidden = archive_of(forged({"w": Calls(torch.FloatTensor, 2**31)}))
    shown = archive_of(forged({"w": tensor((4,), (1,))}))
    start, end = shown.index(b"PK\x01\x02"), shown.index(b"PK\x05\x06")
    whole_file = hidden + shown[:end]
    record = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 3, 3, end - start, start)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 0, 1)
    return whole_file + record + locator + shown[end:]


def directory_of_a_gigabyte(directory: Path) -> Path:
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, GIB, 0, 0)
    return sparse(directory / "file.pth", GIB + 22, end=end)


def directory_of_many_records() -> bytes:
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 0, 0, 220_000 * 46, 0, 0)
    return entry * 220_000 + end


CHECKPOINTS: list[tuple[str, Build]] = [
    ("names __builtin__ exec", bytes_of("code", saved({"w": torch.zeros(1), "x": RunsCode()}))),
    ("names __builtin__ exec", bytes_of("code_as_a_key", holding(x=RunsCode()))),
    (
        "names __builtin__ exec",
        bytes_of("code_in_an_array", saved({"w": torch.zeros(1), "x": np.array([RunsCode()], dtype=object)})),
    ),
    ("File is not a zip file", bytes_of("bare_pickle", lambda: pickle.dumps(RunsCode(), 2))),
    ("uses INST", bytes_of("other_opcode", holding(raw=b"\x80\x02(i__builtin__\nexec\n."))),
    (
        "uses NEWOBJ",
        bytes_of("storage_made_anew", holding(raw=b"\x80\x02ctorch\nFloatStorage\nJ\0\0\0\x7f\x85\x81.")),
    ),
    ("", bytes_of("storage_called", holding(raw=b"\x80\x02ctorch\nFloatStorage\nJ\0\0\0\x7f\x85R."))),
    ("names torch FloatTensor", bytes_of("constructor", holding(x=Calls(torch.FloatTensor, 2**31)))),
    ("claims more than the file holds", bytes_of("view_2_40", saved({"w": torch.zeros(1).expand(2**40)}))),
    ("claims more than the file holds", bytes_of("claim_2_40", holding(x=tensor((2**40,), (1,))))),
    ("claims more than the file holds", bytes_of("claim_2_60", holding(x=tensor((2**60,), (1,))))),
    ("claims more than the file holds", bytes_of("storage_2_40", holding(x=tensor((2**40,), (1,), 2**40)))),
    ("claims more than the file holds", bytes_of("stride", holding(x=tensor((2, 2), (2**40, 1))))),
    ("claims more than the file holds", bytes_of("offset", holding(x=tensor((1,), (1,), offset=2**40)))),
    ("whose sizes are no sizes", bytes_of("negative", holding(x=tensor((4,), (1,), offset=-(2**20))))),
    ("whose sizes are no sizes", bytes_of("size_2_80", holding(x=tensor((2**80,), (0,))))),
    ("too many elements", bytes_of("product_2_160", holding(x=tensor((2**40,) * 4, (0,) * 4)))),
    ("", bytes_of("many_dimensions", holding(x=tensor((1,) * 1000, (1,) * 1000)))),
    ("claims more", bytes_of("views_of_all", holding(x=[tensor((4,), (1,))] * 3000))),
    (
        "compressed records",
        bytes_of("zip_bomb", lambda: archive_of(bytes(50_000_000), zipfile.ZIP_DEFLATED)),
    ),
    ("claim more bytes than the file has", bytes_of("records_in_one_place", many_records_in_one_place)),
    ("is no checkpoint, or a torn one", bytes_of("two_directories", two_directories)),
    ("is no checkpoint, or a torn one", directory_of_a_gigabyte),
    ("is no checkpoint, or a torn one", bytes_of("directory_of_many_records", directory_of_many_records)),
    ("claims more than the file holds", bytes_of("laughs", laughs)),
    ("nested more than", bytes_of("circle", circle)),
    (
        "nested more than",
        bytes_of("nested", holding(raw=b"\x80\x02}X\x01\0\0\0w" + b"]" * 100_000 + b"a" * 99_999 + b"s.")),
    ),
    ("parts", bytes_of("objects", holding(raw=b"\x80\x02](" + b"}" * 10_000_000 + b"e."))),
    (
        "it holds no parameters",
        bytes_of("many_objects", holding(raw=b"\x80\x02}X\1\0\0\0w](" + b"}" * 1_490_000 + b"es.")),
    ),
    ("parts", bytes_of("kept_under_2_31", holding(raw=b"\x80\x02]r\xff\xff\xff\x7f."))),
    ("claims more than the file holds", bytes_of("one_text_often", one_text_often)),
    ("", bytes_of("encoded_often", encoded_often)),
    ("it holds no parameters", bytes_of("attribute_in_the_way", attribute_in_the_way)),
    ("", bytes_of("half_a_pair", holding(x="\ud800"))),
    ("a dict's key is a tuple", bytes_of("tuple_as_key", holding(x={(1, 2): 3}))),
    (
        "not little-endian",
        bytes_of("byte_order", lambda: archive_of(forged({"w": tensor((4,), (1,))}), byteorder=b"big")),
    ),
    ("rng_state is of the wrong kind", bytes_of("random_5", holding(rng_state=5))),
    ("provenance is of the wrong kind", bytes_of("provenance_list", complete(provenance=[1]))),
    ("metrics is of the wrong kind", bytes_of("metrics_text", complete(metrics="good"))),
    ("epoch is of the wrong kind", bytes_of("epoch_text", complete(epoch="one"))),
    ("optimizer_state is of the wrong kind", bytes_of("optimizer_list", complete(optimizer_state=[]))),
]
