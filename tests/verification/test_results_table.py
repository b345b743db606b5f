from pathlib import Path

import pytest

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.results import COLUMNS, METRICS, format_row
from clip_hba_behavior.verification.results_table import read_results_table

LATER = ",".join(COLUMNS)
EARLIER = "epoch,train_loss,val_loss,rsa_behavioral_corr,rsa_behavioral_p"


def table(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "results.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_rows_of_this_project_are_read_back_exactly(tmp_path: Path) -> None:
    values = {"train_loss": 0.1 + 0.2, "test_loss": 1e-300, "behavioral_rsa_rho": -0.5}
    metrics = values | {"behavioral_rsa_p_value": 5e-324, "perturb_type": "none"}
    metrics |= {"epoch": 1, "used_random_targets": False, "used_shuffled_targets": False}
    found = read_results_table(table(tmp_path, LATER, format_row(metrics)))
    assert found.rows == {1: {name: metrics[name] for name in METRICS}}
    assert found.form.endswith("epochs from 1")


def test_epochs_counted_from_0_become_numbers_of_completed_epochs(tmp_path: Path) -> None:
    found = read_results_table(table(tmp_path, EARLIER, "0,4.0,3.0,0.2,1e-5", "1,2.0,1.5,0.3,1e-6"))
    assert list(found.rows) == [1, 2]
    assert found.rows[1] == dict(zip(METRICS, (4.0, 3.0, 0.2, 1e-5), strict=True))
    assert found.form == f"header {EARLIER.removeprefix('epoch,').replace(',', ', ')}; epochs from 0"


def test_more_columns_spaces_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = table(
        tmp_path, "\ufeffepoch, note, train_loss, val_loss, rsa_behavioral_corr, rsa_behavioral_p", "0,x,1,2,3,4"
    )
    assert read_results_table(path).rows[1]["test_loss"] == 2.0


def test_a_wrong_header_is_named_with_both_that_are_right(tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        read_results_table(table(tmp_path, "epoch,loss", "1,2"))
    assert "found:    epoch, loss\n" in str(caught.value)
    assert f"expected: epoch, {', '.join(METRICS)}\n" in str(caught.value)
    assert f"or {EARLIER.replace(',', ', ')}" in str(caught.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2.0,high,0.3,1e-6", "line 3: val_loss is 'high', not a number"),
        ("1,2.0,,0.3,1e-6", "line 3: val_loss is '', not a number"),
        ("1,2.0", "line 3: val_loss is None, not a number"),
        ("one,2.0,1.5,0.3,1e-6", "line 3: epoch is 'one', not a number"),
        ("inf,2.0,1.5,0.3,1e-6", "line 3: epoch is 'inf', not a number"),
        ("0,2.0,1.5,0.3,1e-6", "line 3: an epoch that cannot be\n  found:    0\n"),
        ("-1,2.0,1.5,0.3,1e-6", "expected: a whole number from 0 on, each once"),
        ("1.5,2.0,1.5,0.3,1e-6", "found:    1.5\n"),
    ],
)
def test_a_cell_that_cannot_be_names_its_line(row: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError) as caught:
        read_results_table(table(tmp_path, EARLIER, "0,4.0,3.0,0.2,1e-5", row))
    assert message in str(caught.value)


def test_epoch_0_does_not_stand_in_a_csv_of_this_project(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="a whole number from 1 on"):
        read_results_table(table(tmp_path, LATER, "0,1,1,1,1,False,False,none"))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "found:    nothing"), (b"\xff\xfe\x00", "is no CSV"), (None, "there is no results")],
)
def test_a_file_that_is_no_csv_is_bad_input(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadInputError, match=message):
        read_results_table(path)
