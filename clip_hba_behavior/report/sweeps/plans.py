"""Which sweeps a report is of; nothing of it needs torch or NumPy, so that a wrong file is told at once."""

from collections.abc import Sequence
from pathlib import Path

from clip_hba_behavior.report.sources import Source
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.sweep.plan import Plan, make_plan, read_sweep_file


def plans_of(sources: Sequence[Source]) -> list[tuple[Path, Plan]]:
    """Read the files of sweeps, and list their runs.

    A sweep's directory is where it is now, wherever the file in it says that it is.

    Raises:
        BadInputError: one is no sweep, has not begun, or was given twice.
    """
    found: list[tuple[Path, Plan]] = []
    for source in sources:
        file = source.path / "sweep.yaml" if source.path.is_dir() else source.path
        asked = read_sweep_file(file)
        if source.path.is_dir():
            asked = asked.model_copy(update={"directory": str(source.path)})
        plan = make_plan(asked)
        if not plan.directory.is_dir():
            raise BadInputError(
                f"there is nothing in {plan.directory} yet: the sweep has not begun\n"
                f"  begin: {command_line('sweep', 'run', file)}"
            )
        if any(plan.directory.resolve() == before.directory.resolve() for _, before in found):
            raise BadInputError(f"the sweep in {plan.directory} is given twice")
        found.append((file, plan))
    return found
