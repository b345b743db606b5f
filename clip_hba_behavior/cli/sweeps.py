"""Commands on a sweep."""

from pathlib import Path
from typing import Annotated

import typer

sweep_app = typer.Typer(help="Many forks of one baseline.", no_args_is_help=True)


Sweep = Annotated[Path, typer.Argument(help="YAML file of the sweep; its keys are in docs/SWEEPS.md.")]
Engine = Annotated[str, typer.Option("--engine", help="local (this machine) or slurm.")]


@sweep_app.command("plan")
def sweep_plan(sweep: Sweep) -> None:
    """List the runs, which share a beginning, and what they will cost."""
    from clip_hba_behavior.sweep.commands import plan

    raise typer.Exit(plan(sweep))


@sweep_app.command("run")
def sweep_run(
    sweep: Sweep,
    engine: Engine = "local",
) -> None:
    """Do what is missing, and write the table."""
    from clip_hba_behavior.sweep.commands import run

    raise typer.Exit(run(sweep, engine))


@sweep_app.command("resume")
def sweep_resume(
    sweep: Sweep,
    engine: Engine = "local",
) -> None:
    """The same as `run`: what is done stays, what was cut off is resumed."""
    from clip_hba_behavior.sweep.commands import run

    raise typer.Exit(run(sweep, engine))


@sweep_app.command("status")
def sweep_status(
    sweep: Sweep,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it live, until nothing works on it any more.")
    ] = False,
) -> None:
    """Say how far each run is, and why one failed."""
    from clip_hba_behavior.sweep.commands import status, watch_status

    raise typer.Exit(watch_status(sweep) if watch else status(sweep))


@sweep_app.command("table")
def sweep_table(sweep: Sweep) -> None:
    """Aggregate the finished runs into sweep.csv and sweep.parquet, and their effects beside the null."""
    from clip_hba_behavior.sweep.commands import table

    raise typer.Exit(table(sweep))


@sweep_app.command("cancel")
def sweep_cancel(sweep: Sweep) -> None:
    """Stop what runs; each run saves its state first."""
    from clip_hba_behavior.sweep.commands import cancel

    raise typer.Exit(cancel(sweep))


@sweep_app.command("verify")
def sweep_verify(
    sweep: Sweep,
    sample: Annotated[int, typer.Option("--sample", min=1, help="How many runs.")] = 5,
    seed: Annotated[int, typer.Option("--seed", help="Which ones.")] = 0,
    engine: Engine = "local",
) -> None:
    """Replay a random epoch of some finished runs, and compare the bits."""
    from clip_hba_behavior.sweep.commands import verify

    raise typer.Exit(verify(sweep, sample, seed, engine))


@sweep_app.command("task", hidden=True)
def sweep_task(folder: Path, index: Annotated[int, typer.Option("--index", min=0)]) -> None:
    """Execute one task of a job array."""
    from clip_hba_behavior.sweep.commands import task

    raise typer.Exit(task(folder, index))
