"""Which sweeps a report is of; nothing of it needs torch or NumPy, so that a wrong file is told at once."""

from collections.abc import Sequence
from pathlib import Path

from clip_hba_behavior.report.sources import Source
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import SWEEP_FILE
from clip_hba_behavior.run.names import names_of
from clip_hba_behavior.sweep.plan import Plan, read_sweep_file
from clip_hba_behavior.sweep.sweep import make_sweep


def plans_of(sources: Sequence[Source]) -> list[tuple[Path, str, Plan]]:
    """Read the files of sweeps, and list their runs: of each baseline the file, a name, the plan.

    A sweep's directory is where it is now, wherever the file in it says that it is.

    Raises:
        BadInputError: one is no sweep, has not begun, or was given twice.
    """
    found: list[tuple[Path, str, Plan]] = []
    for source, name in zip(sources, names_of([each.path for each in sources]), strict=True):
        file = source.path / SWEEP_FILE if source.path.is_dir() else source.path
        asked = read_sweep_file(file)
        if source.path.is_dir():
            asked = asked.model_copy(update={"directory": str(source.path)})
        sweep = make_sweep(asked)
        if not sweep.directory.is_dir():
            raise BadInputError(
                f"there is nothing in {sweep.directory} yet: the sweep has not begun\n"
                f"  begin: {command_line('sweep', 'run', file)}"
            )
        if any(sweep.directory.resolve() == before.directory.resolve() for _, _, before in found):
            raise BadInputError(f"the sweep in {sweep.directory} is given twice")
        for plan in sweep.plans:
            found.append((file, f"{name}, {plan.prefix.rstrip('/')}" if plan.prefix else name, plan))
    return found
