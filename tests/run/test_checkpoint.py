import dataclasses
import io
import logging
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.reproducibility.state.snapshot import snapshot
from clip_hba_behavior.run.checkpoint import describe, read_checkpoint, save_dora_parameters
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.training.state import TrainingState


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


@pytest.fixture
def state(model: nn.Module) -> TrainingState:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return TrainingState(
        parameters=snapshot(dict(model.named_parameters())),
        optimizer_state=snapshot(optimizer.state_dict()),
        rng_state=snapshot(capture_rng_state()),
        early_stopping_state={"best_test_loss": 0.1 + 0.2, "epochs_no_improve": 2},
        epoch=3,
        metrics={"epoch": 3, "test_loss": 1 / 3},
    )


@pytest.fixture
def saved(model: nn.Module, state: TrainingState, tmp_path: Path) -> Path:
    return save_dora_parameters(model, tmp_path, 3, logging.getLogger("test"), training_state=state)


def test_a_checkpoint_is_read_as_it_was_saved(saved: Path, state: TrainingState) -> None:
    read = read_checkpoint(saved)
    assert saved.name == "epoch3_dora_params.pth"
    assert read.whole_state().digest() == state.digest() == read.state_digest


@pytest.mark.parametrize(("wrong", "named"), [({"digests": None}, "digests None"), ({"drift": "x"}, "drift 'x'")])
def test_a_provenance_of_another_kind_is_refused(wrong: Any, named: str, saved: Path) -> None:
    content = torch.load(saved) | {"provenance": wrong}
    torch.save(content, saved)
    with pytest.raises(BadInputError, match=f"is damaged: where it comes from.*\\n.*{named}"):
        read_checkpoint(saved)


def test_a_gpus_streams_stand_beside_the_state_of_a_portable_run(
    saved: Path, model: nn.Module, state: TrainingState, tmp_path: Path
) -> None:
    beside = {"cuda_rng_state_all": [torch.arange(16, dtype=torch.uint8)]}
    log = logging.getLogger("test")
    path = save_dora_parameters(model, tmp_path / "gpu", 3, log, training_state=state, beside=beside)
    assert torch.equal(torch.load(path)["cuda_rng_state_all"][0], beside["cuda_rng_state_all"][0])
    read = read_checkpoint(path)
    assert read.state_digest == read_checkpoint(saved).state_digest
    assert read.parameters.keys() == state.parameters.keys()
    assert "cuda_rng_state_all" not in read.whole_state().rng_state


def test_a_plain_torch_load_opens_a_checkpoint_in_the_guides_layout(saved: Path, model: nn.Module) -> None:
    content = torch.load(saved)
    assert set(content["rng_state"]) >= {"torch_rng_state", "numpy_rng_state", "python_rng_state"}
    torch.set_rng_state(content["rng_state"]["torch_rng_state"])
    np.random.set_state(content["rng_state"]["numpy_rng_state"])
    assert not model.load_state_dict(content, strict=False).missing_keys


def test_the_same_state_gives_the_same_bytes_under_any_name(
    saved: Path, model: nn.Module, state: TrainingState, tmp_path: Path
) -> None:
    other = save_dora_parameters(model, tmp_path / "elsewhere", 4, training_state=state)
    assert other.read_bytes() == saved.read_bytes()


def test_a_checkpoint_is_never_replaced(saved: Path, model: nn.Module, state: TrainingState) -> None:
    before = saved.read_bytes()
    save_dora_parameters(model, saved.parent, 3, training_state=state)  # the same state: nothing to say
    other = dataclasses.replace(state, metrics={"epoch": 3, "test_loss": 0.5})
    with pytest.raises(NotReproducibleError, match="exists and holds another state"):
        save_dora_parameters(model, saved.parent, 3, training_state=other)
    with pytest.raises(BadInputError, match="never replaced"):
        save_dora_parameters(model, saved.parent, 3)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_the_guides_message_and_what_is_left_out(
    model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: TrainingState
) -> None:
    with_random = save_dora_parameters(model, tmp_path, 1)
    assert capsys.readouterr().out == "Saved RNG states for reproducibility\n"
    without = save_dora_parameters(model, tmp_path, 2, save_rng_state=False, training_state=state)
    assert capsys.readouterr().out == ""
    assert torch.load(with_random)["partial"] is True
    assert "rng_state" in torch.load(with_random)
    assert "rng_state" not in torch.load(without)
    for path in (with_random, without):
        read = read_checkpoint(path)
        assert set(read.parameters) == {name for name, _ in model.named_parameters()}
        with pytest.raises(BadInputError, match="does not hold the complete training state"):
            read.whole_state()


def test_checkpoints_are_listed_by_number(model: nn.Module, tmp_path: Path) -> None:
    for epoch in (10, 2, 0):
        save_dora_parameters(model, tmp_path, epoch)
    (tmp_path / "epoch3_dora_params.pth.tmp").touch()
    assert list(list_checkpoints(tmp_path)) == [0, 2, 10]


# --- files that must be refused ----------------------------------------------------------------------


def rewritten(path: Path, **changes: Any) -> Path:
    content = torch.load(path) | changes
    target = path.with_name("changed.pth")
    torch.save(content, target)
    return target


def test_a_changed_bit_is_refused(saved: Path) -> None:
    weight = torch.load(saved)["0.weight"]
    weight.view(torch.int32)[0, 0] ^= 1
    with pytest.raises(BadInputError, match="its state is not the one that was saved"):
        read_checkpoint(rewritten(saved, **{"0.weight": weight}))


def test_a_flipped_byte_in_the_file_is_refused_or_changes_nothing(saved: Path, state: TrainingState) -> None:
    content = saved.read_bytes()
    damaged = saved.with_name("damaged.pth")
    num_refused = 0
    for position in range(0, len(content), len(content) // 150):
        damaged.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            assert read_checkpoint(damaged).whole_state().digest() == state.digest()
        except BadInputError:
            num_refused += 1
    assert num_refused > 50


def test_a_record_that_says_it_is_encrypted_is_refused(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag in the archive's directory, one flipped bit
    damaged = saved.with_name("damaged.pth")
    damaged.write_bytes(content)
    with pytest.raises(BadInputError, match="is no checkpoint, or a torn one"):
        read_checkpoint(damaged)


def test_a_torn_file_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    torn = saved.with_name("torn.pth")
    for hundredth in range(100):
        torn.write_bytes(content[: len(content) * hundredth // 100])
        with pytest.raises(BadInputError):
            read_checkpoint(torn)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "a list, not a dict"),
        ({"epoch": 3}, "it holds no parameters"),
        ({1: torch.zeros(2)}, "not a dict by name"),
        ({"a": torch.zeros(1), "b": {"c": {1, 2}}}, "it names __builtin__ set"),
    ],
    ids=["a list", "no parameters", "no names", "a set"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: object, reason: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(BadInputError, match=reason):
        read_checkpoint(tmp_path / "other.pth")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="there is no checkpoint"):
        read_checkpoint(tmp_path / "missing.pth")
    path = tmp_path / "text.pth"
    path.write_text("epoch,train_loss\n")
    with pytest.raises(BadInputError, match="is no checkpoint, or a torn one"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10**6)
    with pytest.raises(BadInputError, match="compressed records"):
        read_checkpoint(path)


def test_a_later_format_is_refused(saved: Path) -> None:
    with pytest.raises(BadInputError, match="found:    format_version 99"):
        read_checkpoint(rewritten(saved, format_version=99))


class _RunsCode:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("import pathlib; pathlib.Path('ran').touch()",))


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(1), "b": _RunsCode()}, "hostile.pth")
    with pytest.raises(BadInputError, match="is refused: it names __builtin__ exec"):
        read_checkpoint("hostile.pth")
    assert not Path("ran").exists()
    torch.load("hostile.pth", weights_only=False)  # the file does what it is meant to do
    assert Path("ran").exists()


def test_a_tensor_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.pth"
    torch.save({"a": torch.zeros(1).expand(2**40)}, path)  # a view: one element on the disk, 2^40 to a reader
    assert path.stat().st_size < 4000
    with pytest.raises(BadInputError, match="claims more than the file holds"):
        read_checkpoint(path)


def test_a_constructor_that_reserves_memory_is_not_called(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, buffer)
    # the pickle of torch.FloatTensor(2130706432)
    hostile = b"\x80\x02ctorch\nFloatTensor\nJ\x00\x00\x00\x7f\x85R."
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(tmp_path / "hostile.pth", "w") as target:
        for record in source.infolist():
            content = hostile if record.filename.endswith("data.pkl") else source.read(record)
            target.writestr(record.filename, content)
    with pytest.raises(BadInputError, match="it names torch FloatTensor"):
        read_checkpoint(tmp_path / "hostile.pth")


# --- checkpoints of the earlier pipeline --------------------------------------------------------------


def test_numpys_raw_array_of_the_earlier_pipeline_is_read(tmp_path: Path) -> None:
    old = {"torch_rng_state": torch.get_rng_state(), "numpy_rng_state": np.random.get_state()}
    torch.save({"w": torch.ones(2), "rng_state": old}, tmp_path / "old.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "old.pth")
    read = read_checkpoint(tmp_path / "old.pth")
    assert read.rng_state is not None
    algorithm, key, position, *_ = read.rng_state["numpy_rng_state"]
    assert (algorithm, position) == ("MT19937", np.random.get_state()[2])
    assert key.numpy().tobytes() == np.random.get_state()[1].tobytes()
    np.random.set_state(read.rng_state["numpy_rng_state"])


@pytest.mark.parametrize(
    "array",
    [np.array([{"a": 1}], dtype=object), np.zeros((2, 3), dtype=np.uint32), np.zeros(3), np.zeros(2, dtype=">u4")],
    ids=["objects", "a matrix", "floats", "big-endian"],
)
def test_other_numpy_arrays_are_refused(array: np.ndarray, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2), "rng_state": {"numpy_rng_state": array}}, tmp_path / "old.pth")
    with pytest.raises(BadInputError):
        read_checkpoint(tmp_path / "old.pth")


def test_recorded_checkpoints_load_with_and_without_random_state(reference: Path) -> None:
    for epoch in range(1, 7):
        name = f"epoch{epoch}_dora_params.pth"
        new, old = (
            read_checkpoint(reference / "run/dora" / name),
            read_checkpoint(reference / "run/old_no_rng" / name),
        )
        assert new.state is None
        assert new.rng_state is not None
        assert len(new.parameters) == 9
        assert old.rng_state is None
        assert "WARNING: No RNG states in checkpoint" in describe(old)


def test_describe_names_what_a_checkpoint_holds(saved: Path, state: TrainingState) -> None:
    text = describe(read_checkpoint(saved))
    assert state.digest() in text
    assert "the complete training state" in text
    assert "0.weight  (3, 4) float32" in text
    assert repr(1 / 3) in text
