"""`clip-hba report`: check what is given, make the pages, write them.

What needs torch or draws is imported once the checks are done: a wrong path is told at once.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from clip_hba_behavior.config import make_config, read_config_file
from clip_hba_behavior.report.certificates import certificates_of
from clip_hba_behavior.report.output import refuse_foreign, write_report
from clip_hba_behavior.report.sources import Source, find_sources, read_records
from clip_hba_behavior.report.sweeps.commands import report_sweeps
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
    """Write the report of a run, or of several runs beside each other.

    Returns:
        The exit code: 1 if something could not be read and was left out.

    Raises:
        BadInputError: something given cannot be used; nothing was written.
    """
    sources = find_sources(asked)
    if any(source.kind == "sweep" for source in sources):
        _refuse_what_is_of_a_run(sources, config, split_half, certificate)
        return report_sweeps(sources, out)
    directory = out if out is not None else _default_directory(sources)
    refuse_foreign(directory)
    keys = read_config_file(config) if config is not None else {}
    make_config(keys)
    records = read_records(sources)
    certificates, notes = certificates_of(records[0], certificate)
    if split_half is not None and not split_half.is_file():
        raise BadInputError(f"there is no file {split_half}\n  give --split-half RDM48_triplet_splithalf.mat")
    from clip_hba_behavior.data.things import read_human_halves
    from clip_hba_behavior.rsa.noise_ceiling import noise_ceiling

    ceiling = None if split_half is None else noise_ceiling(*read_human_halves(split_half))
    from clip_hba_behavior.report.run_page import Request, run_page
    from clip_hba_behavior.report.site import render_site

    with session() as here:
        page, left_out = run_page(records[0], Request(keys, device, ceiling, certificates), here)
        write_report(directory, render_site([page], here.interruptible().report))
        here.logger.info("The report is in %s", directory / "index.html")
    left_out = [*notes, *left_out]
    for each in left_out:
        print(f"left out: {each}", file=sys.stderr)
    return 1 if left_out else 0


def _refuse_what_is_of_a_run(sources: Sequence[Source], *options: Path | None) -> None:
    """Return if all that is given is of sweeps.

    Raises:
        BadInputError: a run is given beside a sweep, or an option that only a run's page uses.
    """
    sweeps = [source.path for source in sources if source.kind == "sweep"]
    if others := [source.path for source in sources if source.kind != "sweep"]:
        raise BadInputError(
            f"a report is of runs or of sweeps\n  sweeps: {', '.join(map(str, sweeps))}\n"
            f"  others: {', '.join(map(str, others))}\n"
            f"  report each alone: {command_line('report', sweeps[0])}"
        )
    if any(option is not None for option in options):
        raise BadInputError(
            "--config, --split-half and --certificate are of a run's report; a sweep's uses none of them\n"
            f"  leave them out: {command_line('report', *sweeps)}"
        )


def _default_directory(sources: Sequence[Source]) -> Path:
    """Return where the report goes if nobody says: into the run's or the sweep's own directory."""
    if len(sources) == 1 and sources[0].kind == "run":
        return RunDirectory.at(sources[0].path).path / "report"
    paths = [each.path for each in sources]
    raise BadInputError(
        f"a report of {'several runs' if len(paths) > 1 else 'a table'} belongs to no run's directory\n"
        f"  say where it goes: {command_line('report', *paths, '--out', 'report')}"
    )
