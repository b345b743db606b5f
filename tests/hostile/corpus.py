"""Files that mean harm, each written by a function; and the readers that must refuse them.

All are small on the disk; what is large is a hole in a sparse file.
"""

import io
import json
import os
import pickle
import resource
import socket
import struct
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch

GIB = 2**30
CANARY = "pwned"  # what code in a file would make in the working directory

Build = Callable[[Path], Path]


class RunsCode:
    """Unpickled, it makes the canary."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, (f"import pathlib; pathlib.Path('{CANARY}').touch()",))


# --- in a fresh process: read one file, within limits ---------------------------------------------------


def read_checkpoint(path: Path) -> object:
    from clip_hba_behavior.run import checkpoint

    found = checkpoint.read_checkpoint(path)
    checkpoint.describe(found)
    return found


def read_config(path: Path) -> object:
    from clip_hba_behavior.config import make_config, read_config_file

    return make_config(read_config_file(path)).to_yaml().encode()


def read_table(path: Path) -> object:
    from clip_hba_behavior.data.things import read_annotations

    return read_annotations(path)


def read_prompts(path: Path) -> object:
    from clip_hba_behavior.data.things import read_prompts

    return read_prompts(path)


def read_rdm(path: Path) -> object:
    from clip_hba_behavior.data.things import read_human_rdm

    return read_human_rdm(path)


def read_image(path: Path) -> object:
    from clip_hba_behavior.data.images import Preprocessing, load_pixels

    return load_pixels([path], Preprocessing())


def digest_image(path: Path) -> object:
    from clip_hba_behavior.data.things import image_digests

    return image_digests([path])


def read_backbone(path: Path) -> object:
    from clip_hba_behavior.model.openai_format import load_openai_file

    return load_openai_file(path, trust_backbone_file=False)


def read_results(path: Path) -> object:
    from clip_hba_behavior.verification.results_table import read_results_table

    return read_results_table(path)


def read_ledger(path: Path) -> object:
    """Read a run whose ledger is this file: what is wrong with it is said, and the run is read on."""
    from clip_hba_behavior.reproducibility.state.errors import BadInputError
    from clip_hba_behavior.verification.files import RunFiles

    run = Path.cwd().with_name("run")
    (run / "dora_params").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "dora_params" / "epoch1_dora_params.pth").touch()
    (run / "steps.jsonl").symlink_to(path)
    files = RunFiles(run)
    about_it = [each for each in files.problems if "steps.jsonl" in each]
    if about_it:
        raise BadInputError("\n".join(about_it))
    return files.ledger


READERS = {
    "checkpoint": read_checkpoint,
    "config": read_config,
    "table": read_table,
    "prompts": read_prompts,
    "rdm": read_rdm,
    "image": read_image,
    "image digest": digest_image,
    "backbone": read_backbone,
    "results": read_results,
    "ledger": read_ledger,
}


def _memory(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def attempt(reader: str, path: str, directory: str, report: str) -> None:
    """Read a file as this process, within 6 GiB of address space more than it has, and say how it went."""
    from clip_hba_behavior.reproducibility.state.errors import BadInputError

    os.chdir(directory)
    for module in ("data.images", "model.openai_format", "verification.files", "run.checkpoint"):
        __import__(f"clip_hba_behavior.{module}")
    limit = _memory("VmSize") + 6 * GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark of memory begins again
    before, begin = _memory("VmHWM"), time.process_time()
    outcome: dict[str, Any] = {}
    try:
        READERS[reader](Path(path))
        outcome["end"] = "accepted"
    except BadInputError as error:
        outcome |= {"end": "refused", "message": str(error)}
    outcome |= {"seconds": time.process_time() - begin, "grown": _memory("VmHWM") - before}
    Path(report).write_text(json.dumps(outcome))
    sys.exit(2 if outcome["end"] == "refused" else 0)


# --- places where no regular file is ---------------------------------------------------------------------


def pipe(directory: Path) -> Path:
    os.mkfifo(directory / "pipe")
    return directory / "pipe"


def endless_device(directory: Path) -> Path:
    return Path("/dev/zero")


def link_to_a_device(directory: Path) -> Path:
    (directory / "link").symlink_to("/dev/zero")
    return directory / "link"


def a_socket(directory: Path) -> Path:
    os.chdir(directory)  # the path of a socket may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    return directory / "socket"


def a_directory(directory: Path) -> Path:
    (directory / "folder").mkdir()
    return directory / "folder"


def circle_of_links(directory: Path) -> Path:
    (directory / "a").symlink_to("b")
    (directory / "b").symlink_to("a")
    return directory / "a"


def name_too_long(directory: Path) -> Path:
    return directory / ("x" * 300)


def huge_hole(directory: Path) -> Path:
    return sparse(directory / "hole", 10 * GIB)


def empty(directory: Path) -> Path:
    (directory / "empty").touch()
    return directory / "empty"


def zeros(directory: Path) -> Path:
    (directory / "zeros").write_bytes(bytes(5000))
    return directory / "zeros"


PLACES: list[Build] = [
    pipe,
    endless_device,
    link_to_a_device,
    a_socket,
    a_directory,
    circle_of_links,
    name_too_long,
    huge_hole,
    empty,
    zeros,
]


def sparse(path: Path, size: int, start: bytes = b"", end: bytes = b"") -> Path:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)
    return path


def bytes_of(name: str, content: bytes | Callable[[], bytes]) -> Build:
    """A file with some content."""

    def build(directory: Path) -> Path:
        (directory / "file").write_bytes(content if isinstance(content, bytes) else content())
        return directory / "file"

    build.__name__ = name
    return build


# --- checkpoints -----------------------------------------------------------------------------------------


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

# --- OpenAI's files --------------------------------------------------------------------------------------


def clip_weights(**changes: Any) -> dict[str, Any]:
    def block(prefix: str) -> dict[str, Any]:
        return {f"{prefix}.resblocks.0.mlp.c_fc.weight": torch.ones(256, 64)}

    return {
        "visual.conv1.weight": torch.ones(64, 3, 8, 8),
        "visual.positional_embedding": torch.ones(5, 64),
        "visual.proj": torch.ones(64, 8),
        "token_embedding.weight": torch.ones(10, 64),
        "positional_embedding": torch.ones(7, 64),
        "text_projection": torch.ones(64, 8),
        "logit_scale": torch.ones(()),
        **block("visual.transformer"),
        **block("transformer"),
    } | {key.replace("__", "."): value for key, value in changes.items()}


def script() -> bytes:
    """A TorchScript archive with code, and pickles that would run some, too."""
    evil = pickle.dumps(RunsCode(), 2)
    code = f"def __setstate__(self, x):\n  return open('{CANARY}', 'w')\n".encode()
    return archive_of(evil, **{"constants.pkl": evil, "code/__torch__.py": code})


def tall_tower() -> bytes:
    one = torch.ones(1)
    blocks = {f"visual__transformer__resblocks__{n}__ln_1__bias": one for n in range(5000)}
    return saved(clip_weights(**blocks))()


HOLDS_NONE = "holds no OpenAI CLIP"
BACKBONES: list[tuple[str, Build]] = [
    ("it carries code", bytes_of("script", script)),
    ("names __builtin__ exec", bytes_of("code", saved(clip_weights(x=RunsCode())))),
    ("claims more", bytes_of("claim_2_40", holding(x=tensor((2**40,), (1,), 2**40)))),
    ("compressed records", bytes_of("zip_bomb", lambda: archive_of(bytes(50_000_000), zipfile.ZIP_DEFLATED))),
    ("is no CLIP weight file, or a torn one", directory_of_a_gigabyte),
    (HOLDS_NONE, bytes_of("tall_tower", tall_tower)),
    ("is empty", bytes_of("empty_weight", saved(clip_weights(positional_embedding=torch.ones(2**40, 0))))),
    ("is empty", bytes_of("no_width", saved(clip_weights(visual__conv1__weight=torch.ones(0, 3, 8, 8))))),
    (HOLDS_NONE, bytes_of("narrow", saved(clip_weights(visual__conv1__weight=torch.ones(1, 3, 8, 8))))),
    (HOLDS_NONE, bytes_of("number_as_weight", saved(clip_weights(visual__proj=5)))),
    (HOLDS_NONE, bytes_of("scalar", saved(clip_weights(token_embedding__weight=torch.ones(()))))),
    (HOLDS_NONE, bytes_of("cube", saved(clip_weights(visual__proj=torch.ones(2, 3, 4))))),
    (HOLDS_NONE, bytes_of("torn_model", saved(clip_weights()))),
]

# --- tables ----------------------------------------------------------------------------------------------

HEADER = ",".join(["", "image_name", *map(str, range(66))]).encode() + b"\n"


def one_long_line(directory: Path) -> Path:
    return sparse(directory / "file.csv", 60 * 2**20, start=HEADER[:-1])


TABLES: list[tuple[str, Build]] = [
    ("a row of more than", one_long_line),
    ("a row of more than", bytes_of("ten_million_columns", lambda: HEADER[:-1] + b"," * 10**7 + b"\n1\n")),
    ("a row of more than", bytes_of("wide_row", lambda: HEADER + b"1," * 10**7)),
    ("a row of more than", bytes_of("row_of_many_lines", lambda: HEADER + b'"\n",' * 10**6)),
    ("field larger than field limit", bytes_of("wide_cell", lambda: HEADER + b"x" * 200_000 + b"\n")),
    ("it has 1 cells", bytes_of("many_short_rows", lambda: HEADER + b"a\n" * 10**7)),
    ("is empty", bytes_of("many_bad_cells", lambda: HEADER + (b"," * 67 + b"\n") * 100_000)),
    ("found more than", bytes_of("many_empty_lines", lambda: b"\n" * 10**7)),
    ("missing", bytes_of("other_columns", lambda: b"x," * 100_000 + b"\n1\n")),
    ("is too long", bytes_of("long_name", lambda: HEADER + b"0," + b"x" * 300 + b",1" * 66 + b"\n")),
    ("has a control character", bytes_of("colours", lambda: HEADER + b"0,\x1b[31ma.jpg" + b",1" * 66 + b"\n")),
]
PROMPTS: list[tuple[str, Build]] = [
    ("wrong number of prompts", bytes_of("many", b"a\n" * 100_000)),
    ("expected at most", bytes_of("long", b"a" * 2**20)),
]

# --- .mat ------------------------------------------------------------------------------------------------


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

# --- images ----------------------------------------------------------------------------------------------


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data = _chunk(b"IDAT", zlib.compress(bytes(99))) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data


def _tag(tag: int, kind: int, count: int, value: int) -> bytes:
    return struct.pack("<HHLL", tag, kind, count, value)


def tiff(*tags: bytes, content: bytes = b"", count: int | None = None) -> bytes:
    number = len(tags) if count is None else count
    return b"II*\0" + struct.pack("<LH", 8, number) + b"".join(tags) + bytes(4) + content


def tiff_tile_bomb() -> bytes:
    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(bytes(2**20)) for _ in range(900)) + packer.flush()
    side = 30_000
    tags = [(256, 100), (257, 100), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    start = 8 + 2 + 12 * (len(tags) + 2) + 4
    ends = [_tag(324, 4, 1, start), _tag(325, 4, 1, len(packed))]
    return tiff(*(_tag(tag, 4, 1, value) for tag, value in tags), *ends, content=packed)


def tiff_of_tags() -> bytes:
    """30,000 tags, each of which is all of the file."""
    size = 2**20
    tags = [_tag(256, 4, 1, 9), _tag(257, 4, 1, 9), *(_tag(1000 + n, 7, size, 0) for n in range(30_000))]
    return tiff(*tags, content=bytes(size))


def jpeg(width: int, height: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format="JPEG")
    content = bytearray(file.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def webp(width: int, height: int) -> bytes:
    size = struct.pack("<L", width - 1)[:3] + struct.pack("<L", height - 1)[:3]
    extended = b"VP8X" + struct.pack("<L", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<L", len(extended) + 4) + b"WEBP" + extended


def gif_of_comments() -> bytes:
    return (
        b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + (b"!\xfe" + (b"\xff" + b"x" * 255) * 20 + b"\0") * 2000
    )


def png_with_a_wide_chunk(directory: Path) -> Path:
    start = png(9, 9)[:33]
    return sparse(directory / "a.png", 127 * 2**20, start=start + struct.pack(">I", 126 * 2**20) + b"tEXt")


IMAGES: list[tuple[str, Build]] = [
    ("too large", bytes_of("png_10_gigapixels", png(100_000, 100_000))),
    ("too large", bytes_of("png_2_62", png(2**31 - 1, 2**31 - 1))),
    ("too large", bytes_of("jpeg_4_gigapixels", lambda: jpeg(65_535, 65_535))),
    (
        "too large",
        bytes_of(
            "bmp_10_gigapixels",
            b"BM" + struct.pack("<LLLLllHHLLLLLL", 0, 0, 54, 40, 100_000, 100_000, 1, 24, 0, 0, 0, 0, 0, 0),
        ),
    ),
    (
        "too large",
        bytes_of(
            "tiff_10_gigapixels",
            tiff(
                *(
                    _tag(t, 4, 1, v)
                    for t, v in (
                        (256, 10**5),
                        (257, 10**5),
                        (258, 8),
                        (259, 1),
                        (262, 1),
                        (273, 8),
                        (277, 1),
                        (278, 10**5),
                        (279, 9),
                    )
                )
            ),
        ),
    ),
    (
        "",
        bytes_of(
            "gif_4_gigapixels",
            b"GIF89a"
            + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0)
            + b","
            + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0)
            + b"\x08\0;",
        ),
    ),
    ("", bytes_of("webp_256_megapixels", webp(16_383, 16_383))),
    ("", bytes_of("webp_2_48", webp(2**24, 2**24))),
    (
        "",
        bytes_of(
            "png_text_bomb", lambda: png(9, 9, *[_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**26), 1))] * 5)
        ),
    ),
    (
        "",
        bytes_of(
            "png_profile_bomb", lambda: png(9, 9, _chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(2**28), 1)))
        ),
    ),
    ("", png_with_a_wide_chunk),
    ("", bytes_of("tiff_tile_bomb", tiff_tile_bomb)),
    ("", bytes_of("tiff_of_tags", tiff_of_tags)),
    ("", bytes_of("gif_of_comments", gif_of_comments)),
    ("it is no JPEG", bytes_of("pickle", lambda: pickle.dumps(RunsCode()))),
    (
        "it is no JPEG",
        bytes_of("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(pwned) (w) file\n"),
    ),
]

# --- configurations --------------------------------------------------------------------------------------


def yaml_laughs(key: str) -> bytes:
    lines = ["a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 15)]
    return "\n".join([*lines, f"{key}: *a14"]).encode()


def yaml_merges() -> bytes:
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}" for n in range(1, 15)]
    return "\n".join(lines).encode()


CONFIGS: list[tuple[str, Build]] = [
    ("is no YAML file", bytes_of("code", f"a: !!python/object/apply:os.system ['touch {CANARY}']\n".encode())),
    (
        "is no YAML file",
        bytes_of("code_by_name", f"a: !!python/object/new:os.system ['touch {CANARY}']\n".encode()),
    ),
    ("an alias stands for", bytes_of("laughs", yaml_laughs("lr"))),
    ("an alias stands for", bytes_of("laughs_of_augmentation", yaml_laughs("augmentation"))),
    ("an alias stands for", bytes_of("merges", yaml_merges())),
    ("an alias stands for", bytes_of("circle", b"a: &a [*a]\n")),
    ("is no YAML file", bytes_of("flow_nesting", b"a: " + b"[" * 60_000)),
    ("is no YAML file", bytes_of("closed_nesting", b"a: " + b"[" * 20_000 + b"]" * 20_000)),
    ("is no YAML file", bytes_of("block_nesting", b"- " * 30_000 + b"a")),
    ("is no YAML file", bytes_of("mapping_nesting", b"{a: " * 10_000)),
    ("is no YAML file", bytes_of("digits", b"epochs: " + b"9" * 60_000)),
    ("63 bits", bytes_of("hexadecimal", b"epochs: 0x" + b"f" * 60_000)),
    ("63 bits", bytes_of("hexadecimal_float", b"lr: 0x" + b"f" * 60_000)),
    ("too long to show", bytes_of("hexadecimal_text", b"run_dir: [0x" + b"f" * 60_000 + b"]")),
    ("", bytes_of("sexagesimal", b"epochs: 1" + b":59" * 20_000)),
    ("no such key", bytes_of("long_key", b"? " + b"k" * 60_000 + b"\n: 1\n")),
    ("and ", bytes_of("many_keys", lambda: "\n".join(f"key{n}: {n}" for n in range(4000)).encode())),
    ("and ", bytes_of("many_items", b"augmentation: [" + b"x," * 20_000 + b"]")),
    ("found 'xxx", bytes_of("long_value", b"lr: " + b"x" * 60_000)),
    ("is no YAML file", bytes_of("empty_integer", b"epochs: !!int ''\n")),
    ("is no YAML file", bytes_of("bad_time", b"epochs: !!timestamp x\n")),
    ("is no YAML file", bytes_of("bad_truth", b"epochs: !!bool x\n")),
    ("is no YAML file", bytes_of("bad_bytes", b"epochs: !!binary '\xc3\xa9'\n")),
    ("is no YAML file", bytes_of("control", b"a: \x00\n")),
    ("is no YAML file", bytes_of("list_as_key", b"? [1, 2]\n: 3\n")),
    ("expected no NUL", bytes_of("nul_in_a_path", b'run_dir: "a\\0b"\n')),
    ("", bytes_of("half_a_pair", b'run_dir: "\\ud800"\n')),
    ("cannot be read", bytes_of("latin_1", b"run_dir: caf\xe9\n")),
    ("expected at most", bytes_of("a_megabyte", b"# \n" * 2**19)),
]

# --- results and ledgers ---------------------------------------------------------------------------------

RESULTS_HEADER = b"epoch,train_loss,val_loss,rsa_behavioral_corr,rsa_behavioral_p"
RESULTS: list[tuple[str, Build]] = [
    ("a row of more than", bytes_of("columns", lambda: RESULTS_HEADER + b"," * 10**6)),
    ("expected at most", bytes_of("many_columns", lambda: RESULTS_HEADER + b"," * 10**7)),
    ("found:    'x, x", bytes_of("other_columns", b"x," * 100_000)),
    ("not a number", bytes_of("long_cell", RESULTS_HEADER + b"\n" + b"9" * 100_000 + b"x,1,1,1,1\n")),
    ("not a number", bytes_of("infinite", RESULTS_HEADER + b"\n" + b"9" * 100_000 + b",1,1,1,1\n")),
    ("not a number", bytes_of("short_rows", RESULTS_HEADER + b"\n" + b"1\n" * 10**6)),
    ("is no results CSV", bytes_of("empty_lines", b"\n" * 10**6)),
]

LEDGERS: list[tuple[str, Build]] = [
    ("not a valid line", bytes_of("nesting", b"[" * 10**6)),
    (
        "not a valid line",
        bytes_of("nested_value", b'{"epoch": 1, "step": 1, "x": ' + b"[" * 900 + b"]" * 900 + b"}\n"),
    ),
    ("not a valid line", bytes_of("one_long_line", lambda: b"x" * 60 * 2**20)),
    ("not read further", bytes_of("empty_lines", lambda: b"\n" * 10**7)),
    ("not a valid line", bytes_of("infinite_epoch", b'{"epoch": 1e999, "step": 1}\n')),
    ("not a valid line", bytes_of("long_epoch", b'{"epoch": ' + b"9" * 5000 + b', "step": 1}\n')),
    ("not a valid line", bytes_of("list_as_step", b'{"epoch": 1, "step": [1]}\n')),
    ("not a valid line", bytes_of("state_5", b'{"epoch": 1, "step": "end", "state": 5}\n')),
    ("not a valid line", bytes_of("no_object", b"5\n[]\nnull\n")),
]

# What a reader takes with good reason: an empty configuration is the synthetic data set's, any bytes are digested,
# and a ledger that is empty or not there says nothing.
ACCEPTED = {
    ("config", "empty"),
    ("image digest", "empty"),
    ("image digest", "zeros"),
    ("ledger", "empty"),
    ("ledger", "circle_of_links"),
    ("ledger", "name_too_long"),
}

CORPUS: dict[str, list[tuple[str, Build]]] = {
    "checkpoint": CHECKPOINTS,
    "backbone": BACKBONES,
    "table": TABLES,
    "prompts": PROMPTS,
    "rdm": RDMS,
    "image": IMAGES,
    "config": CONFIGS,
    "results": RESULTS,
    "ledger": LEDGERS,
}
