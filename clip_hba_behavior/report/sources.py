"""What a report is of: runs, results tables, sweeps. Nothing of it needs torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clip_hba_behavior.config import Config
from clip_hba_behavior.reproducibility.record.ledger import read_ledger
from clip_hba_behavior.reproducibility.record.lines import read_lines
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import SWEEP_FILE, RunDirectory, is_tracked
from clip_hba_behavior.run.names import names_of
from clip_hba_behavior.run.results import METRICS, RESULTS, parse_row
from clip_hba_behavior.verification.results_table import read_results_table


@dataclass(frozen=True)
class Source:
    """One path that a report was asked of.

    Attributes:
        kind: a run's directory, a results CSV alone, or a sweep's file or directory.
        path: as it was given.
    """

    kind: Literal["run", "table", "sweep"]
    path: Path


@dataclass(frozen=True)
class RunRecord:
    """What is on record of a run without its checkpoints.

    Attributes:
        name: for a person, other than the names of the other runs of the report.
        path: the run's directory, or the CSV file.
        rows: `METRICS` by number of completed epochs, ascending.
        config: None of a CSV alone.
        environment: `environment.json`; empty of a CSV alone.
        digests: of the state at each epoch's end, as the ledger has them; empty of a CSV alone.
        notes: what is wrong with the files, and was left out.
    """

    name: str
    path: Path
    rows: dict[int, dict[str, float]]
    config: Config | None
    environment: dict[str, Any]
    digests: dict[int, str]
    notes: tuple[str, ...] = ()

    def column(self, metric: str) -> list[float]:
        """Return a metric of each epoch."""
        return [row[metric] for row in self.rows.values()]

    def best_epoch(self) -> int:
        """Return the epoch with the lowest test loss, the first of equal ones, as early stopping counts them.

        An undefined loss (nan) is no lowest one.
        """
        losses = {epoch: row["test_loss"] for epoch, row in self.rows.items()}
        return min(losses, key=lambda epoch: math.inf if math.isnan(losses[epoch]) else losses[epoch])


def find_sources(asked: Sequence[Path]) -> list[Source]:
    """Say of each path what it is.

    Raises:
        BadInputError: nothing is there, it is none of the three, or it was given twice.
    """
    found: list[Source] = []
    for path in asked:
        source = _source_of(path)
        if any(each.path.absolute() == path.absolute() for each in found):
            raise BadInputError(f"{path} is given twice")
        found.append(source)
    return found


def _source_of(path: Path) -> Source:
    if path.is_file():
        return Source("sweep" if path.suffix in (".yaml", ".yml") else "table", path)
    if not path.is_dir():
        raise BadInputError(
            f"there is nothing at the path {path}\n"
            "  expected: the directory of a run or of a sweep, a sweep's YAML file, or a results CSV\n"
            f"  list the runs and sweeps that there are: {command_line('runs', path.parent)}"
        )
    if (path / SWEEP_FILE).is_file():
        return Source("sweep", path)
    if is_tracked(path):
        raise BadInputError(
            f"{path} is the run of a training loop of your own, of which no report is made\n"
            f"  look at it with: {command_line('inspect', path)}"
        )
    run = RunDirectory.at(path)
    if not run.config_file.is_file():
        raise BadInputError(
            f"there is neither a run nor a sweep in {path}: it has no config.yaml and no {SWEEP_FILE}\n"
            f"  list the runs below it: {command_line('runs', path)}"
        )
    return Source("run", path if run.path == path.absolute() else path.parent)  # its dora_params was named


def read_records(sources: Sequence[Source]) -> list[RunRecord]:
    """Read runs and results tables, each under a name of its own.

    Raises:
        BadInputError: a file cannot be read, or has no epoch.
    """
    names = names_of([each.path for each in sources])
    return [_read(source, name) for source, name in zip(sources, names, strict=True)]


def _read(source: Source, name: str) -> RunRecord:
    if source.kind == "table":
        table = read_results_table(source.path)
        record = RunRecord(name, source.path, dict(sorted(table.rows.items())), None, {}, {})
    else:
        run = RunDirectory.at(source.path)
        lines = read_lines(run.results_file, RESULTS)
        rows = {}
        for (epoch, _), line in lines.found.items():
            cells = parse_row(line)
            rows[epoch] = {metric: float(cells[metric]) for metric in METRICS}
        ledger = read_ledger(run.ledger_file)
        notes = lines.left_out() + ledger.lines.left_out()
        digests = {epoch: str(end["state_digest"]) for epoch, end in ledger.ends()}
        _refuse_no_rows(source.path, rows)
        environment = run.read_environment()
        record = RunRecord(name, source.path, rows, run.read_config(), environment, digests, tuple(notes))
    _refuse_no_rows(source.path, record.rows)
    return record


def _refuse_no_rows(path: Path, rows: Mapping[int, object]) -> None:
    if not rows:
        raise BadInputError(f"{path} has no results of any epoch\n  train it first, or leave it out")
