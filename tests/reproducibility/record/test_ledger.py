from pathlib import Path

from clip_hba_behavior.reproducibility.record.ledger import read_ledger


def test_an_epochs_end_is_found_among_whatever_lines_there_are(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    assert read_ledger(path).end(1) is None
    hostile = ['{"epoch": 1e999, "step": "end"}', '"end"', "[" * 10**5 + '"end"', '{"epoch": 2, "step": "end"}']
    path.write_text("\n".join([*hostile, '{"epoch": 1, "step": "end", "state_digest": "a"}', '{"epoch": 1, "st']))
    ledger = read_ledger(path)
    assert ledger.end(1) == {"state_digest": "a"}
    assert ledger.end(3) is None
    assert [str(each) for each in ledger.faults] == [
        "lines 1 to 3: not a valid line of the ledger",
        "line 5: out of order",
    ]
    assert ledger.lines.torn == '{"epoch": 1, "st'
