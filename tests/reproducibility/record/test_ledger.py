from pathlib import Path

from clip_hba_behavior.reproducibility.record.ledger import format_record, read_ledger


def test_an_epochs_end_is_found_among_whatever_lines_there_are(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert read_ledger(path).end(1) is None
    hostile = ['{"epoch": 1e999, "step": "end"}', '"end"', "[" * 10**5 + '"end"', '{"epoch": 3, "step": "end"}']
    ends = [format_record(epoch, "end", {"metrics": {}, "state_digest": "a", "state": {}}) for epoch in (2, 1)]
    path.write_text("\n".join([*hostile, *ends, '{"epoch": 1, "st']))
    ledger = read_ledger(path)
    assert ledger.end(1) == {"metrics": {}, "state_digest": "a", "state": {}}
    assert ledger.end(3) is None
    assert [str(each) for each in ledger.faults] == [
        "lines 1 to 4: not a valid line of the ledger",
        "line 6: out of order",
    ]
    assert ledger.lines.torn == '{"epoch": 1, "st'


def test_a_line_that_is_not_as_it_was_written_is_none(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    line = format_record(1, 1, {"batch": "b", "loss": 1.5})
    others = [line + "\r", f" {line}", line.replace('"batch": "b", ', ""), line[:-1] + ', "note": 1}']
    for each in others:
        path.write_text(f"{each}\n")
        assert [str(fault) for fault in read_ledger(path).faults] == ["line 1: not a valid line of the ledger"]
    path.write_text(f"{line}\n")
    assert read_ledger(path).faults == ()


def test_the_rest_of_a_line_too_long_is_no_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    line = format_record(1, 1, {"batch": "b", "loss": 1.5})
    path.write_text("x" * 2**20 + f"{line}\n")
    ledger = read_ledger(path)
    assert ledger.lines.found == {}
    assert [str(fault) for fault in ledger.faults] == ["line 1: not a valid line of the ledger"]
