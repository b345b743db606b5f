"""The study script, at a size that says nothing, and its tables against known answers."""

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("study_tables", BENCHMARKS / "study_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(kind: str, start: int, seed: int, loss: float, is_equal: bool = False) -> Iterator[dict[str, Any]]:
    """The one row of a run that ends with its perturbed epoch."""
    yield {
        "run": f"e{start:03}_{kind}_s{seed}",
        "parent": "b",
        "kind": kind,
        "perturb_epoch": start,
        "perturb_length": 1,
        "seed": seed,
        "epoch": start,
        "baseline_state_digest": f"b {start}",
        "equals_baseline": is_equal,
        "test_loss_minus_baseline": loss,
        "behavioral_rsa_rho_minus_baseline": loss / 10,
    }


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """A strong kind, controls, 19 null runs and 9 reseeds of the same distribution, at two starts."""
    chance = np.random.Generator(np.random.Philox(5))
    found: list[dict[str, Any]] = []
    for start in (2, 4):
        found += rows_of("none", start, 0, 0.0, is_equal=True)
        found += rows_of("random_target", start, 0, 50.0)
        for seed, loss in enumerate(chance.standard_normal(19).tolist(), start=1):
            found += rows_of("reorder", start, seed, loss)
        for seed, loss in enumerate(chance.standard_normal(9).tolist(), start=1):
            found += [row | {"perturb_length": 0} for row in rows_of("reseed", start, seed, loss)]
    return found


def lines_of(printed: str, beginning: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith(beginning)]


def test_a_strong_kind_is_found_in_every_cell_and_nothing_where_nothing_is(
    tables: ModuleType, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    tables.print_kinds(rows)
    tables.print_nothing(rows)
    printed = capsys.readouterr().out
    (line,) = lines_of(printed, "random_target, length 1, test_loss, perturbed")
    assert "mean effect +50.0000" in line
    assert "p at most 0.05 in 2 of 2 cells; claims' p 0.05" in line
    assert "Controls: 2 of 2 epochs equal to the last bit." in printed
    claims, effects = lines_of(printed, "each reorder seed beside the others")
    assert "38 claims, p 5.3% at most 0.053" in claims  # of 19 runs one is the largest, in each measure
    assert "76 effects, p 5.3% at most 0.053" in effects
    assert len(lines_of(printed, "each reseed beside reorder, perturbed epoch, test_loss: 9 claims")) == 1


def test_a_weak_effect_is_expected_as_often_as_its_size_lets_it(
    tables: ModuleType, rows: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [
        row
        for name, loss in (("lr +1 %", 0.1), ("lr +9 %", 40.0))
        for start in (2, 4)
        for row in rows_of(name, start, 0, loss)
    ]
    tables.print_changes(rows, changed)
    printed = capsys.readouterr().out
    (weak,) = lines_of(printed, "lr +1 %, length 1, test_loss")
    assert "in 0 of 2 cells, 0.0 expected from their sizes" in weak
    (strong,) = lines_of(printed, "lr +9 %, length 1, test_loss")
    assert "in 2 of 2 cells, 2.0 expected from their sizes" in strong


@pytest.mark.system
@pytest.mark.timeout(900)
def test_a_study_is_made_from_nothing_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    size = [
        *("--images", "40"),
        *("--epochs", "2"),
        *("--baselines", "2"),
        *("--starts", "2"),
        *("--lengths", "1"),
    ]
    size += [*("--null-seeds", "2"), *("--reseeds", "1"), *("--changes", "50")]
    command = [sys.executable, str(BENCHMARKS / "study.py"), str(tmp_path / "study"), *size]
    first = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "Controls: 2 of 2 epochs equal to the last bit." in first.stdout
    assert "random_target, length 1, test_loss, perturbed: mean effect " in first.stdout
    assert "learning rate +50 %, length 1, test_loss, perturbed: mean effect " in first.stdout
    assert (tmp_path / "study" / "report" / "sweep-2.html").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "clip-hba train" not in again.stdout
    assert again.stdout.partition("What the kinds do")[2] == first.stdout.partition("What the kinds do")[2]
