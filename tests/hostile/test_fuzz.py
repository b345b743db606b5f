"""Damaged and made-up files: refused, or read as what they were; nothing else escapes, nothing hangs.

FUZZ_EXAMPLES sets how many of each kind are tried; without it, a few hundred.
"""

import io
import os
import pickletools
import random
import struct
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_hba_behavior.config import Config, make_config, parse_settings, read_config_file
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.run.checkpoint import describe, read_checkpoint, to_bytes, to_content
from clip_hba_behavior.training.state import TrainingState

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
LONGEST = 5.0  # seconds of computing that one example may take

_quick = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def state() -> TrainingState:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return TrainingState(
        parameters=snapshot(dict(model.named_parameters())),
        optimizer_state=snapshot(optimizer.state_dict()),
        rng_state=snapshot(capture_rng_state()),
        early_stopping_state={"best_test_loss": 0.5, "epochs_no_improve": 2},
        epoch=3,
        metrics={"epoch": 3, "test_loss": 1 / 3, "perturb_type": "none"},
    )


# --- mutations of a checkpoint's bytes --------------------------------------------------------------------


def flip_bytes(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 20))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def flip_in_the_directory(content: bytes, draw: random.Random) -> bytes:
    damaged = bytearray(content)
    start = content.index(b"PK\x01\x02")
    for _ in range(draw.choice((1, 2, 4))):
        damaged[draw.randrange(start, len(damaged))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(damaged)


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def cut_out_or_repeat(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content))
    end = min(len(content), start + draw.randrange(1, 300))
    return content[:start] + content[end:] if draw.random() < 0.5 else content[:end] + content[start:]


def records_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(records: dict[str, bytes]) -> bytes:
    """Write records with checksums that hold, so that what is damaged is deeper."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return file.getvalue()


def swap_records(content: bytes, draw: random.Random) -> bytes:
    records = records_of(content)
    first, second = draw.sample(sorted(records), 2)
    records[first], records[second] = records[second], records[first]
    return archive_of(records)


def change_a_record(content: bytes, draw: random.Random) -> bytes:
    records = records_of(content)
    name = draw.choice(sorted(records))
    change = draw.choice((flip_bytes, truncate, cut_out_or_repeat))
    records[name] = change(records[name] or b"x", draw)
    return archive_of(records)


def change_the_pickle(content: bytes, draw: random.Random) -> bytes:
    """Change whole opcodes: leave out, repeat, swap, or put in one that the pickle does not have."""
    records = records_of(content)
    name = next(name for name in records if name.endswith("data.pkl"))
    places = [place for _, _, place in pickletools.genops(records[name])]
    ends = [*places[1:], len(records[name])]
    parts = [records[name][start:end] for start, end in zip(places, ends, strict=True)]
    for _ in range(draw.choice((1, 1, 2, 5))):
        here = draw.randrange(1, len(parts))
        kind = draw.randrange(5)
        if kind == 0:
            del parts[here]
        elif kind == 1:
            parts.insert(here, draw.choice(parts))
        elif kind == 2:
            parts[here] = draw.choice(parts)
        elif kind == 3:
            parts[here] = draw.choice(pickletools.opcodes).code.encode("latin1") + draw.randbytes(
                draw.randrange(9)
            )
        else:
            parts[here] = draw.choice(
                (b"N", b"}", b"]", b")", b"K\x07", b"G" + struct.pack(">d", 1e300), b"R", b"b")
            )
    records[name] = b"".join(parts)
    return archive_of(records)


def change_a_name(content: bytes, draw: random.Random) -> bytes:
    """Change a text in the pickle for another of the same length, or a number for another."""
    records = records_of(content)
    name = next(name for name in records if name.endswith("data.pkl"))
    damaged = bytearray(records[name])
    texts = [(arg, place) for op, arg, place in pickletools.genops(damaged) if op.name == "BINUNICODE"]
    text, place = draw.choice(texts)
    damaged[place + 5 + draw.randrange(max(1, len(text)))] = draw.randrange(32, 127)
    records[name] = bytes(damaged)
    return archive_of(records)


MUTATIONS: list[Callable[[bytes, random.Random], bytes]] = [
    flip_bytes,
    flip_in_the_directory,
    truncate,
    cut_out_or_repeat,
    swap_records,
    change_a_record,
    change_the_pickle,
    change_the_pickle,
    change_the_pickle,
    change_a_name,
]


def read_or_refuse(path: Path, digest: str) -> str:
    """Read a damaged checkpoint: it is refused, or partial, or its state is the saved one."""
    begin, message = time.process_time(), ""
    try:
        found = read_checkpoint(path)
        describe(found)
        # without its digest a file is one of the earlier pipeline: parameters, marked as no complete state
        assert found.state is None or found.state.digest() == digest
        end = "partial" if found.state is None else "read"
    except BadInputError as error:
        message, end = str(error), "refused"
    assert end != "refused" or str(path) in message
    assert time.process_time() - begin < LONGEST
    return end


def test_a_mutated_checkpoint_is_refused_or_is_the_saved_state(
    state: TrainingState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, path = to_bytes(to_content(state, {"environment": {"torch": "x"}})), tmp_path / "mutated.pth"
    counts: dict[tuple[str, str], int] = {}
    for number in range(EXAMPLES):
        draw = random.Random(number)
        mutate = MUTATIONS[number % len(MUTATIONS)]
        path.write_bytes(mutate(content, draw))
        try:
            end = read_or_refuse(path, state.digest())
        except Exception as error:
            raise AssertionError(f"{mutate.__name__}, seed {number}") from error
        counts[mutate.__name__, end] = counts.get((mutate.__name__, end), 0) + 1
    with capsys.disabled():
        ends = {
            end: sum(n for (_, each), n in counts.items() if each == end) for end in ("refused", "read", "partial")
        }
        print(f"\n{EXAMPLES} mutated checkpoints: {ends}")
    assert sum(count for (_, end), count in counts.items() if end == "refused") > EXAMPLES // 2


def test_any_bytes_between_a_checkpoints_own_are_refused_or_change_nothing(
    state: TrainingState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, path = to_bytes(to_content(state, {})), tmp_path / "mutated.pth"
    num_run = 0

    @_quick
    @given(st.integers(0, len(content) - 1), st.integers(0, 40), st.binary(max_size=40))
    def check(start: int, length: int, put_in: bytes) -> None:
        nonlocal num_run
        num_run += 1
        path.write_bytes(content[:start] + put_in + content[start + length :])
        read_or_refuse(path, state.digest())

    check()
    with capsys.disabled():
        print(f"\n{num_run} checkpoints with other bytes in between")


# --- configurations --------------------------------------------------------------------------------------

KEYS = st.sampled_from([*Config.model_fields, "cuda", "criterion", "lerning_rate", "<<", "="])
ODD = [
    *("1e-4", "0x" + "f" * 5000, "9" * 5000, "1" + ":59" * 400, "-1", "2", "1_0", "0o7", "true", "null", "~"),
    *(".nan", "-.inf", "1:30:00", "2020-01-01", "standin", "cuda:٣", "none", "last 3", "|\n  x", "? a"),
    *("!!int ''", "!!float x", "!!binary '='", "!!timestamp x", "!!set {a}", "!!python/name:os.system"),
    *("!!omap [a: 1]", "!!pairs [a: 1]", "!!str 1", '"\\ud800"', '"\\0"'),
    *("*a", "&a 1", "&a [1, *a]", "&a {<<: *a}", "{<<: {lr: 1}}"),
]
SCALARS = st.one_of(
    st.sampled_from(ODD),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(max_size=20),
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(lambda each: f"[{', '.join(each)}]"))
LINES = st.lists(st.tuples(KEYS, VALUES).map(lambda pair: f"{pair[0]}: {pair[1]}"), max_size=4).map("\n".join)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def config_or_refusal(read: Callable[[], dict[str, Any]], counts: dict[str, int]) -> None:
    begin, message = time.process_time(), ""
    try:
        config = make_config(read())
        assert isinstance(config, Config)
        config.to_yaml().encode()
        end = "taken"
    except BadInputError as error:
        message, end = str(error), "refused"
    assert len(message) < 50_000
    assert time.process_time() - begin < LONGEST
    counts[end] = counts.get(end, 0) + 1


def test_any_file_is_a_configuration_or_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, counts = tmp_path / "config.yaml", dict[str, int]()

    @_quick
    @given(st.one_of(LINES.map(lambda text: text.encode(errors="surrogatepass")), st.binary(max_size=60)))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        config_or_refusal(lambda: read_config_file(path), counts)

    check()
    with capsys.disabled():
        print(f"\n{sum(counts.values())} configuration files: {counts}")


def test_any_setting_is_a_configuration_or_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[str, int] = {}

    @_quick
    @given(st.lists(st.tuples(KEYS, VALUES).map("=".join) | st.text(max_size=30), max_size=3))
    def check(given_settings: list[str]) -> None:
        config_or_refusal(lambda: parse_settings(given_settings), counts)

    check()
    with capsys.disabled():
        print(f"\n{sum(counts.values())} lists of settings: {counts}")


def test_any_values_are_a_configuration_or_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[str, int] = {}

    @_quick
    @given(st.dictionaries(KEYS, PLAIN, max_size=4))
    def check(values: dict[str, Any]) -> None:
        with warnings.catch_warnings():
            config_or_refusal(lambda: values, counts)

    check()
    with capsys.disabled():
        print(f"\n{sum(counts.values())} mappings: {counts}")
