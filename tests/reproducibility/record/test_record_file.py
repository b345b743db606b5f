import json
from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.record.ledger import (
    END_OF_EPOCH,
    LEDGER,
    Step,
    format_record,
    position_of,
)
from clip_hba_behavior.reproducibility.record.quarantine import read_records
from clip_hba_behavior.reproducibility.record.record_file import RecordFile, keep_apart, repair
from clip_hba_behavior.reproducibility.state.errors import BadInputError, NotReproducibleError

END = {"metrics": {}, "state_digest": "d", "state": {}}


def step_of(loss: float) -> dict[str, object]:
    return {"batch": "b", "loss": loss}


RECORDS: list[tuple[int, Step, dict[str, object]]] = [
    (1, 1, step_of(4.0)),
    (1, 2, step_of(3.0)),
    (1, END_OF_EPOCH, END),
    (2, 1, step_of(2.0)),
    (2, 2, step_of(1.0)),
    (2, END_OF_EPOCH, END),
]


def append(file: RecordFile, epoch: int, step: Step, record: dict[str, object]) -> None:
    file.append(position_of(epoch, step), format_record(epoch, step, record))


def write_two_epochs(path: Path) -> bytes:
    file = RecordFile(path, (0, 0), LEDGER)
    for record in RECORDS:
        append(file, *record)
    file.commit()
    file.close()
    return path.read_bytes()


@pytest.mark.parametrize(
    ("after", "num_lines"), [((0, 0), 0), ((0, 1), 1), ((0, 2), 2), ((1, 0), 3), ((1, 1), 4), ((2, 0), 6)]
)
def test_lines_beyond_a_state_are_pending_and_written_again(
    after: tuple[int, int], num_lines: int, tmp_path: Path
) -> None:
    path = tmp_path / "steps.jsonl"
    complete = write_two_epochs(path)
    file = RecordFile(path, after, LEDGER)
    assert len(path.read_text().splitlines()) == num_lines
    pending = tmp_path / "steps.jsonl.pending"
    assert pending.exists() == (num_lines < 6)
    if pending.exists():
        assert path.read_bytes() + pending.read_bytes() == complete
    for record in RECORDS:
        if position_of(*record[:2]) > after:
            append(file, *record)
    file.close()
    assert path.read_bytes() == complete
    assert not pending.exists()


def test_a_repetition_that_is_interrupted_itself_still_has_to_repeat_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    complete = write_two_epochs(path)
    file = RecordFile(path, (0, 0), LEDGER)
    append(file, 1, 1, step_of(4.0))
    file.close()  # killed here
    file = RecordFile(path, (0, 1), LEDGER)
    append(file, 1, 2, step_of(3.0))
    with pytest.raises(NotReproducibleError):
        append(file, 1, END_OF_EPOCH, END | {"state_digest": "other"})
    file.close()
    assert (tmp_path / "steps.jsonl.pending").read_bytes() == b"".join(complete.splitlines(keepends=True)[2:])


def test_a_line_that_does_not_repeat_is_refused_each_time(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    write_two_epochs(path)
    for _ in range(3):
        file = RecordFile(path, (1, 0), LEDGER)
        with pytest.raises(
            NotReproducibleError,
            match=r"epoch 2, step 1, 1 values differ\n  loss\n    recorded: 2\.0\n    now:      2\.5",
        ) as refusal:
            append(file, 2, 1, step_of(2.5))
        file.close()
        assert f"clip-hba resume {tmp_path} --accept-mismatch 2" in str(refusal.value)


def test_lines_pending_under_their_old_name_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    lines = write_two_epochs(path).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    (tmp_path / "steps.jsonl.aside").write_bytes(b"".join(lines[3:]))
    file = RecordFile(path, (1, 0), LEDGER)
    with pytest.raises(NotReproducibleError):
        append(file, 2, 1, step_of(2.5))
    file.close()
    file = RecordFile(path, (1, 0), LEDGER)
    for record in RECORDS[3:]:
        append(file, *record)
    file.close()
    assert [each.name for each in tmp_path.iterdir()] == ["steps.jsonl"]


@pytest.mark.parametrize("zeros", [0, 3])
@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_line_is_pending_too(cut: int, zeros: int, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    complete = write_two_epochs(path)
    path.write_bytes(complete[:-cut] + bytes(zeros))
    file = RecordFile(path, (2, 0) if cut > 1000 else (1, 2), LEDGER)
    assert path.read_bytes() == b"".join(complete.splitlines(keepends=True)[:5])
    with pytest.raises(NotReproducibleError):
        append(file, 3, 1, step_of(1.0))
    append(file, 2, END_OF_EPOCH, END)
    file.close()
    assert path.read_bytes() == complete
    assert not (tmp_path / "steps.jsonl.pending").exists()


def test_losses_are_written_exactly(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "steps.jsonl", (0, 0), LEDGER)
    append(file, 1, 1, step_of(0.1 + 0.2))
    file.close()
    assert b'"loss": 0.30000000000000004' in (tmp_path / "steps.jsonl").read_bytes()


DAMAGE = {
    "unreadable": lambda lines: [*lines[:4], b"#######\n", *lines[5:]],
    "of NUL bytes": lambda lines: [*lines[:4], b"\0" * 40 + b"\n", *lines[5:]],
    "doubled": lambda lines: [*lines[:2], *lines[1:]],
    "two for one state": lambda lines: [*lines[:5], lines[4].replace(b"1.0", b"7.0"), *lines[5:]],
    "out of order": lambda lines: [*lines[:3], lines[4], lines[3], lines[5]],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_repaired_and_the_original_kept_complete(name: str, tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    complete = write_two_epochs(path)
    lines = complete.splitlines(keepends=True)
    damaged = b"".join(DAMAGE[name](lines))
    path.write_bytes(damaged)
    made_again = {(1, 2): (lines[4].decode().strip(), "a replay")}
    found = list(
        repair(
            path,
            LEDGER,
            (0, 0),
            (2, 0),
            lambda found, faults: {
                position: line for position, line in made_again.items() if position not in found.found
            },
        )
    )
    assert path.read_bytes() == complete
    assert len(found) == 1
    assert (tmp_path / "quarantine/steps.jsonl.1").read_bytes() == damaged
    record = json.loads((tmp_path / "quarantine/steps.jsonl.1.json").read_text())
    assert record == found[0] == next(read_records(tmp_path))
    assert record["faults"]
    assert list(repair(path, LEDGER, (0, 0), (2, 0), lambda found, faults: {})) == []  # it is valid now


def test_a_repair_that_was_killed_is_not_kept_twice(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    damaged = write_two_epochs(path).replace(b"3.0}", b"3.0")
    path.write_bytes(damaged)
    repairs = repair(path, LEDGER, (0, 0), (2, 0), lambda found, faults: {})
    next(repairs)  # the original is kept, the file not yet replaced
    repairs.close()
    assert path.read_bytes() == damaged
    assert len(list(repair(path, LEDGER, (0, 0), (2, 0), lambda found, faults: {}))) == 1
    assert sorted(each.name for each in (tmp_path / "quarantine").iterdir()) == [
        "steps.jsonl.1",
        "steps.jsonl.1.json",
    ]
    assert path.read_bytes() == b"".join(
        line for line in damaged.splitlines(keepends=True) if line.endswith(b"}\n")
    )


def test_what_a_run_leaves_on_purpose_is_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    lines = write_two_epochs(path).splitlines(keepends=True)
    record = keep_apart(path, LEDGER, (1, 1), "on request")
    assert record is not None
    assert path.read_bytes() == b"".join(lines[:4])
    assert (tmp_path / str(record["original"])).read_bytes() == b"".join(lines[4:])
    assert keep_apart(path, LEDGER, (1, 1), "on request") is None


def test_pending_lines_that_a_complete_state_covers_come_back_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    complete = write_two_epochs(path)
    RecordFile(path, (1, 0), LEDGER).close()  # resumed from an older state, and killed
    assert len(path.read_bytes().splitlines()) == 3
    RecordFile(path, (2, 0), LEDGER).close()  # the newer state is there again
    assert path.read_bytes() == complete
    assert [each.name for each in tmp_path.iterdir()] == ["steps.jsonl"]


def test_a_line_torn_twice_still_has_to_be_written_again(tmp_path: Path) -> None:
    """The run is killed within a line, and its repetition within an earlier one."""
    path = tmp_path / "steps.jsonl"
    lines = write_two_epochs(path).splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:36])
    file = RecordFile(path, (0, 2), LEDGER)
    append(file, *RECORDS[2])
    file.close()
    path.write_bytes(path.read_bytes() + lines[3][:25])
    file = RecordFile(path, (1, 0), LEDGER)
    append(file, *RECORDS[3])
    with pytest.raises(NotReproducibleError):
        append(file, 2, 2, step_of(1.0) | {"batch": "another"})
    file.close()


def test_a_pending_line_that_contradicts_the_file_is_kept_in_quarantine(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    complete = write_two_epochs(path)
    lines = complete.splitlines(keepends=True)
    pending = lines[4].replace(b"1.0", b"7.0")
    (tmp_path / "steps.jsonl.pending").write_bytes(pending)
    (record,) = repair(path, LEDGER, (0, 0), (2, 0), lambda found, faults: {})
    assert (tmp_path / str(record["original"])).read_bytes() == pending
    RecordFile(path, (2, 0), LEDGER).close()
    assert path.read_bytes() == complete


def test_a_file_of_very_many_invalid_lines_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    lines = write_two_epochs(path).splitlines(keepends=True)
    content = b"".join(line + b"junk\n" for line in lines * 5)
    path.write_bytes(content)
    with pytest.raises(BadInputError, match="too many lines that are not valid"):
        list(repair(path, LEDGER, (0, 0), (1, 0), lambda found, faults: {}))
    assert path.read_bytes() == content
