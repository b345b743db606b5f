from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.record.ledger import END_OF_EPOCH, Ledger, recorded_end
from clip_hba_behavior.reproducibility.state.errors import NotReproducibleError


def write_two_epochs(path: Path, losses: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0)) -> bytes:
    ledger = Ledger(path, after=(0, 0))
    for epoch in (1, 2):
        for step in (1, 2):
            ledger.record(epoch, step, {"loss": losses[2 * (epoch - 1) + step - 1]})
        ledger.record(epoch, END_OF_EPOCH, {"state": {}})
    ledger.commit()
    ledger.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("after", "num_lines"), [((0, 0), 0), ((0, 1), 1), ((0, 2), 2), ((1, 0), 3), ((1, 1), 4), ((2, 0), 6)]
)
def test_lines_beyond_a_state_are_moved_aside_and_written_again(
    after: tuple[int, int], num_lines: int, tmp_path: Path
) -> None:
    path = tmp_path / "steps.jsonl"
    whole = write_two_epochs(path)
    ledger = Ledger(path, after)
    assert len(path.read_text().splitlines()) == num_lines
    aside = tmp_path / "steps.jsonl.aside"
    assert aside.exists() == (num_lines < 6)
    if aside.exists():
        assert path.read_bytes() + aside.read_bytes() == whole
    for epoch, step, loss in ((1, 1, 4.0), (1, 2, 3.0), (1, "end", 0), (2, 1, 2.0), (2, 2, 1.0), (2, "end", 0)):
        position = (epoch, 0) if step == "end" else (epoch - 1, step)
        if position > after:
            ledger.record(epoch, step, {"state": {}} if step == "end" else {"loss": loss})
    ledger.close()
    assert path.read_bytes() == whole
    assert not aside.exists()


def test_a_repetition_that_is_interrupted_itself_still_has_to_repeat_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    whole = write_two_epochs(path)
    ledger = Ledger(path, after=(0, 0))
    ledger.record(1, 1, {"loss": 4.0})
    ledger.close()  # killed here
    ledger = Ledger(path, after=(0, 1))
    ledger.record(1, 2, {"loss": 3.0})
    with pytest.raises(NotReproducibleError):
        ledger.record(1, END_OF_EPOCH, {"state": {"other": 1}})
    ledger.close()
    assert (tmp_path / "steps.jsonl.aside").read_bytes() == b"".join(whole.splitlines(keepends=True)[1:])


def test_a_line_that_does_not_repeat_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    write_two_epochs(path)
    ledger = Ledger(path, after=(1, 0))
    with pytest.raises(
        NotReproducibleError,
        match=r"epoch 2, step 1, 1 values differ\n  loss\n    recorded: 2\.0\n    now:      2\.5",
    ):
        ledger.record(2, 1, {"loss": 2.5})
    ledger.close()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_dropped(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    whole = write_two_epochs(path)
    path.write_bytes(whole[:-cut])
    ledger = Ledger(path, after=(2, 0))
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:5])
    ledger.close()


def test_losses_are_written_exactly(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert b'"loss": 0.30000000000000004' in write_two_epochs(path, (0.1 + 0.2, 1.0, 1.0, 1.0))


def test_an_epochs_end_is_found_among_whatever_lines_there_are(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert recorded_end(path, 1) is None
    hostile = ['{"epoch": 1e999, "step": "end"}', '"end"', "[" * 10**5 + '"end"', '{"epoch": 2, "step": "end"}']
    path.write_text("\n".join([*hostile, '{"epoch": 1, "step": "end", "state_digest": "a"}', '{"epoch": 1, "st']))
    assert recorded_end(path, 1) == {"epoch": 1, "step": "end", "state_digest": "a"}
    assert recorded_end(path, 3) is None
