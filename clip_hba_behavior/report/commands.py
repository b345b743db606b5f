"""`clip-hba report`: check what is given, make the pages, write them.

What needs torch or draws is imported once the checks are done: a wrong path is told at once.
"""

import gc
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from clip_hba_behavior.config import make_config, read_config_file, respelled
from clip_hba_behavior.report.certificates import Certificate, certificates_of
from clip_hba_behavior.report.drawing import drawing
from clip_hba_behavior.report.history import recorded_figures
from clip_hba_behavior.report.output import refuse_foreign, write_report
from clip_hba_behavior.report.sources import Source, find_sources, read_records
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import session


def report(
    asked: Sequence[Path],
    out: Path | None,
    config: Path | None,
    split_half: Path | None,
    certificate: Path | None,
    device: str,
) -> int:
    """Write the report of a run, of several runs beside each other, or of sweeps.

    Returns:
        The exit code: 1 if something could not be read and was left out.

    Raises:
        BadInputError: something given cannot be used; nothing was written.
    """
    sources = find_sources(asked)
    of_a_run = {
        "--split-half": split_half,
        "--certificate": certificate,
        "--config": config,
        "--device": None if device == "auto" else device,
    }
    if any(source.kind == "sweep" for source in sources):
        _refuse_options_of_a_run(of_a_run)
        from clip_hba_behavior.report.sweeps.commands import report_sweeps

        return report_sweeps(sources, out)
    directory = out if out is not None else _default_directory(sources)
    refuse_foreign(directory)
    of_one_run = len(sources) == 1 and sources[0].kind == "run"
    if not of_one_run:
        _refuse_options_of_a_run(of_a_run)
    keys = read_config_file(config) if config is not None else {}
    if split_half is not None and not split_half.is_file():
        raise BadInputError(f"there is no file {split_half}\n  give --split-half RDM48_triplet_splithalf.mat")
    records = read_records(sources)
    if records[0].config is not None:
        make_config(records[0].config.model_dump() | {**respelled(keys), "device": device})
    certificates: list[Certificate] = []
    if of_one_run:
        certificates, notes = certificates_of(records[0], certificate)
        records = [replace(records[0], notes=(*records[0].notes, *notes))]
    with session() as here, drawing() as draw:
        if of_one_run:
            for figure in recorded_figures(records[0]):
                draw(figure)
        # torch's threads would spin while they wait for each other, on the core of the process that draws
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        gc.disable()  # imports leave little garbage, and to look for it again and again takes a tenth of the time
        # only now: the process that draws has something to do meanwhile
        from clip_hba_behavior.report.run_page import Request, run_page
        from clip_hba_behavior.report.runs_page import runs_page
        from clip_hba_behavior.report.site import render_site

        gc.freeze()  # what is there now stays
        gc.enable()
        if of_one_run:
            page, left_out = run_page(records[0], Request(keys, device, split_half, certificates), here, draw)
        else:
            page = runs_page(records, here)
            left_out = [f"{record.path}: {note}" for record in records for note in record.notes]
        write_report(directory, render_site([page], draw, here.interruptible().report))
        here.logger.info("The report is in %s", directory / "index.html")
    for each in left_out:
        print(f"left out: {each}", file=sys.stderr)
    return 1 if left_out else 0


def _refuse_options_of_a_run(given: Mapping[str, Path | str | None]) -> None:
    for option, value in given.items():
        if value is not None:
            raise BadInputError(f"{option} {value}: only for the report of one run\n  leave it out")


def _default_directory(sources: Sequence[Source]) -> Path:
    """Return where the report goes if nobody says: into the run's or the sweep's own directory."""
    if len(sources) == 1 and sources[0].kind == "run":
        return RunDirectory.at(sources[0].path).path / "report"
    paths = [each.path for each in sources]
    raise BadInputError(
        f"a report of {'several runs' if len(paths) > 1 else 'a table'} belongs to no run's directory\n"
        f"  say where it goes: {command_line('report', *paths, '--out', 'report')}"
    )
