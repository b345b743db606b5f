"""What of a run goes into its bundle, and what is left out. Nothing of it needs torch."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip_hba_behavior.bundle.archive import refuse_names
from clip_hba_behavior.bundle.manifest import MANIFEST
from clip_hba_behavior.report.certificates import Certificate
from clip_hba_behavior.report.output import MANIFEST as REPORT_MANIFEST
from clip_hba_behavior.report.output import names_written, refuse_foreign
from clip_hba_behavior.reproducibility.record.lease import LOCK_NAME, holder_of
from clip_hba_behavior.reproducibility.record.quarantine import FOLDER as QUARANTINE
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint_files import list_checkpoints, list_step_checkpoints
from clip_hba_behavior.run.directory import RECORD_FILES, SWEEP_FILE, RunDirectory, is_temporary, is_tracked

REPORT = "report"
BEST = "best.json"


@dataclass(frozen=True)
class Contents:
    """The files of a bundle.

    Attributes:
        files: their paths, by their names below the run's directory.
        left_out: the run's own files that are not among them.
        others: what else is in the run's directory.
    """

    files: dict[str, Path]
    left_out: tuple[str, ...]
    others: tuple[str, ...]


def refuse_no_run(path: Path) -> RunDirectory:
    """Return the run of which a bundle can be made.

    Raises:
        BadInputError: there is none, or it is still written, or lacks what a bundle needs.
    """
    run = RunDirectory.at(path)
    if (run.path / SWEEP_FILE).is_file() or run.path.is_file():
        raise BadInputError(
            f"{path} is no run\n  make a bundle of each run of a sweep; list them: "
            f"{command_line('runs', path if path.is_dir() else path.parent)}"
        )
    if is_tracked(run.path):
        raise BadInputError(
            f"{path} is the run of a training loop of your own, of which no bundle is made\n"
            f"  look at it with: {command_line('inspect', path)}"
        )
    run.refuse_if_no_run()
    if (holder := holder_of(run.path)) is not None:
        raise BadInputError(
            f"{path} is in use by {holder}: its files could change while they are read\n"
            "  wait for it to end, or stop it"
        )
    needed = (run.environment_file, run.ledger_file, run.results_file, run.path / BEST)
    if missing := [each.name for each in needed if not each.is_file()]:
        raise BadInputError(
            f"{path} lacks {', '.join(missing)}\n  go on with the run, which writes what can be made again: "
            f"{command_line('resume', path)}"
        )
    return run


def contents_of(run: RunDirectory, epochs: Iterable[int], certificates: Mapping[str, Path]) -> Contents:
    """List what goes into a bundle.

    Args:
        run: of which `refuse_no_run` said nothing.
        epochs: whose states go into it.
        certificates: paths by their names in the bundle.

    Raises:
        BadInputError: a file has a name that not every system can have, or the report was changed.
    """
    own = [run.config_file, run.environment_file, run.path / BEST]
    own += [path for name in RECORD_FILES if (path := run.path / name).is_file()]
    checkpoints = list_checkpoints(run.checkpoints)
    own += [checkpoints[epoch] for epoch in epochs]
    own += sorted(each for each in (run.path / QUARANTINE).rglob("*") if each.is_file() and not is_temporary(each))
    own += _files_of_report(run.path / REPORT)
    files = {each.relative_to(run.path).as_posix(): each for each in own}
    files |= certificates
    refuse_names(files, str(run.path))
    left_out: list[str] = []
    others: list[str] = []
    there = {each for each in run.path.rglob("*") if not each.is_dir() and not is_temporary(each)}
    # where these folders are links, nothing below them is found by the walk
    there |= {*checkpoints.values(), *list_step_checkpoints(run.step_checkpoints).values()}
    for path in sorted(there):
        name = path.relative_to(run.path).as_posix()
        if name in files or name == LOCK_NAME:
            continue
        is_own = path in checkpoints.values() or path.parent == run.step_checkpoints
        is_own |= path in (run.log_file, run.forks_file)
        (left_out if is_own else others).append(name)
    return Contents(dict(sorted(files.items())), tuple(left_out), tuple(others))


def _files_of_report(directory: Path) -> list[Path]:
    if not (directory / REPORT_MANIFEST).is_file():
        return []
    try:
        refuse_foreign(directory)
        names = names_written(directory)
        if lost := [name for name in names if not (directory / name).is_file()]:
            raise BadInputError(f"{directory} is not complete: it lacks {', '.join(lost)}")
    except BadInputError as error:
        why = str(error).partition("\n")[0]
        raise BadInputError(
            f"{why}\n  move {directory} away, and make it again: {command_line('report', directory.parent)}"
        ) from None
    return sorted(directory / name for name in (REPORT_MANIFEST, *names))


def certificate_paths(
    run: RunDirectory, certificates: Sequence[Certificate], named: Path | None
) -> dict[str, Path]:
    """Return the paths of a run's certificates, by their names in the bundle.

    Raises:
        BadInputError: the one that is named has the name of another, or one by which it would not be found.
    """
    if named is not None and not named.name.endswith(".json"):
        raise BadInputError(
            f"{named}: its name does not end in .json, so no certificate would be found in the bundle\n"
            "  rename the certificate"
        )
    found = {each.name: path for each in certificates if (path := run.path / each.name).is_file()}
    taken = [path for name, path in found.items() if name.casefold() == MANIFEST]
    if named is not None and (
        named.name.casefold() == MANIFEST or not found.setdefault(named.name, named).samefile(named)
    ):
        taken.append(named)
    if taken:
        raise BadInputError(f"{taken[0]}: the bundle has another file of this name\n  rename the certificate")
    return found
