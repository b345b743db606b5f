"""`clip-hba report`: check what is given, make the pages, write them.

What needs torch or draws is imported once the checks are done: a wrong path is told at once.
"""

from collections.abc import Sequence
from pathlib import Path

from clip_hba_behavior.report.output import refuse_foreign, write_report
from clip_hba_behavior.report.sources import Source, find_sources, read_records
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.log import session


def report(asked: Sequence[Path], out: Path | None) -> int:
    """Write the report of a run, or of several runs beside each other; return the exit code.

    Raises:
        BadInputError: something given cannot be used; nothing was written.
    """
    sources = find_sources(asked)
    directory = out if out is not None else _default_directory(sources)
    refuse_foreign(directory)
    records = read_records(sources)
    from clip_hba_behavior.report.run_page import run_page
    from clip_hba_behavior.report.site import render_site

    with session() as here:
        pages = [run_page(records[0])]
        write_report(directory, render_site(pages, here.interruptible().report))
        here.logger.info("The report is in %s", directory / "index.html")
    return 0


def _default_directory(sources: Sequence[Source]) -> Path:
    """Return where the report goes if nobody says: into the run's or the sweep's own directory."""
    if len(sources) == 1 and sources[0].kind == "run":
        return RunDirectory.at(sources[0].path).path / "report"
    paths = [each.path for each in sources]
    raise BadInputError(
        f"a report of {'several runs' if len(paths) > 1 else 'a table'} belongs to no run's directory\n"
        f"  say where it goes: {command_line('report', *paths, '--out', 'report')}"
    )
