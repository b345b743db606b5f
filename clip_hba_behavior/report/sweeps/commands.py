"""`clip-hba report` of sweeps: read what there is of them, and make their pages."""

from collections.abc import Sequence
from pathlib import Path

from clip_hba_behavior.report.drawing import drawing
from clip_hba_behavior.report.output import refuse_foreign, write_report
from clip_hba_behavior.report.sources import Source
from clip_hba_behavior.report.sweeps.plans import plans_of
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.log import session


def report_sweeps(sources: Sequence[Source], out: Path | None) -> int:
    """Write the report of a sweep, or of several with a page for each.

    Returns:
        The exit code: 1 if a run is missing or damaged, or a control is not the baseline.

    Raises:
        BadInputError: something given cannot be used; nothing was written.
        StoppedError: a baseline's own results are not all there.
    """
    if others := [str(source.path) for source in sources if source.kind != "sweep"]:
        raise BadInputError(
            f"a report is of runs or of sweeps, and {', '.join(others)} is no sweep\n"
            f"  report each alone: {command_line('report', others[0])}"
        )
    plans = plans_of(sources)
    if out is None and len(sources) > 1:
        raise BadInputError(
            "a report of several sweeps belongs to no sweep's directory\n  say where it goes: "
            f"{command_line('report', *(source.path for source in sources), '--out', 'report')}"
        )
    directory = out if out is not None else plans[0][2].directory / "report"
    refuse_foreign(directory)
    several = len(plans) > 1
    prefixes = [f"sweep-{number}-" if several else "" for number in range(1, len(plans) + 1)]
    from clip_hba_behavior.report.site import render_site
    from clip_hba_behavior.report.sweeps.over_baselines import over_baselines_page
    from clip_hba_behavior.report.sweeps.page import sweep_page
    from clip_hba_behavior.report.sweeps.record import read_sweep, styles_of

    with session() as here, drawing() as drawer:
        progress = here.interruptible().report
        records = [
            read_sweep(file, plan, name, prefix, progress)
            for (file, name, plan), prefix in zip(plans, prefixes, strict=True)
        ]
        styles = styles_of(records)
        files = [f"sweep-{number}.html" if several else "index.html" for number in range(1, len(plans) + 1)]
        pages = [sweep_page(record, styles, file) for record, file in zip(records, files, strict=True)]
        if several:
            pages = [over_baselines_page(records, files, styles), *pages]
        for page in pages:
            for figure in page.figures():
                drawer(figure)
        write_report(directory, render_site(pages, drawer, progress))
        here.logger.info("The report is in %s", directory / "index.html")
    for record in records:
        if not record.collected.is_complete():
            print(f"not complete: {record.name}: see the page, or {command_line('sweep', 'status', record.file)}")
    return 0 if all(record.collected.is_complete() for record in records) else 1
