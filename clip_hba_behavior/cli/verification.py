"""Commands that check and compare: data, checkpoints, runs."""

from pathlib import Path
from typing import Annotated

import typer

from clip_hba_behavior.cli.exit_codes import NO, YES
from clip_hba_behavior.cli.options import (
    Certificate,
    Epochs,
    Processes,
    Settings,
    Steps,
    WhereDataAre,
)

app = typer.Typer()

data_app = typer.Typer(help="Look at a data set.", no_args_is_help=True)

verify_app = typer.Typer(help="Show whether a run is reproducible.", no_args_is_help=True)


@data_app.command("check")
def data_check(
    config: Annotated[Path, typer.Argument(help="YAML file with the data's five keys.")], settings: Settings = None
) -> None:
    """Count, open and compare everything that a run would read."""
    from clip_hba_behavior.config import make_config, parse_settings, read_config_file

    checked = make_config(read_config_file(config) | parse_settings(settings or []))
    from clip_hba_behavior.run.assembly import check_data_of

    report = check_data_of(checked)
    print(report)
    raise typer.Exit(YES if report.ok else NO)


@app.command()
def diff(
    run_a: Annotated[Path, typer.Argument(help="A run's directory, or a directory of checkpoints.")],
    run_b: Annotated[Path, typer.Argument(help="Another run, or directory of checkpoints.")],
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Also train the differing epoch of each again.")
    ] = True,
    json: Certificate = None,
) -> None:
    """Find the first epoch, step and thing in which two runs differ, and the likely cause."""
    from clip_hba_behavior.verification.commands import diff

    raise typer.Exit(diff(run_a, run_b, replay, json))


@app.command()
def reconstruct(
    directory: Annotated[Path, typer.Argument(help="The old checkpoints.")],
    config: Annotated[Path, typer.Option("--config", help="YAML file with everything that shaped the run.")],
    seed: Annotated[
        int | None, typer.Option("--seed", help="In place of the configuration's random_seed.")
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="A new directory for what is re-created.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Repeat the run, and so recover all of its state.")
    ] = False,
    order: Annotated[
        str, typer.Option("--order", help="auto, or the batch order's rule: earlier, later, later_persistent.")
    ] = "auto",
    epochs: Epochs = "all",
    settings: Settings = None,
    json: Certificate = None,
) -> None:
    """Re-create an old run from its seed, and check it against its checkpoints."""
    from clip_hba_behavior.verification.commands import reconstruct

    raise typer.Exit(reconstruct(directory, config, seed, run_dir, train, order, epochs, settings or [], json))


@verify_app.command("quick")
def verify_quick(json: Certificate = None) -> None:
    """Train, save, go on in a new process, compare: on made-up data, within a minute."""
    from clip_hba_behavior.verification.commands import verify_quick

    raise typer.Exit(verify_quick(json))


@verify_app.command("checkpoints")
def verify_checkpoints(
    run: Annotated[Path, typer.Argument(help="A run's directory, or a directory of checkpoints of any age.")],
    config: WhereDataAre = None,
    epochs: Epochs = "all",
    steps: Steps = None,
    settings: Settings = None,
    json: Certificate = None,
    loop: Annotated[
        str | None,
        typer.Option("--loop", metavar="MODULE:FUNCTION", help="The training loop of a run made by `track`."),
    ] = None,
    processes: Processes = 1,
) -> None:
    """Train each epoch again from the checkpoint before it, and compare the bits."""
    from clip_hba_behavior.verification.commands import verify_run

    raise typer.Exit(verify_run(run, None, config, settings or [], epochs, steps, json, loop, processes))


@verify_app.command("results")
def verify_results(
    csv: Annotated[Path, typer.Argument(help="A results CSV, of this project or of the earlier pipeline.")],
    checkpoints: Annotated[Path, typer.Option("--checkpoints", help="The run, or its checkpoints' directory.")],
    config: WhereDataAre = None,
    epochs: Epochs = "all",
    settings: Settings = None,
    json: Certificate = None,
    processes: Processes = 1,
) -> None:
    """Train each epoch again, and compare losses, RSA and p-value with the rows of a results CSV too."""
    from clip_hba_behavior.verification.commands import verify_run

    options = (epochs, None, json, None, processes)
    raise typer.Exit(verify_run(checkpoints, csv, config, settings or [], *options))


@verify_app.command("bundle")
def verify_bundle(
    file: Annotated[Path, typer.Argument(help="A zip file that `clip-hba bundle` wrote.")],
    config: WhereDataAre = None,
    epochs: Annotated[
        str | None,
        typer.Option("--epochs", help="Train these again, such as 3,10 or 5-9, or all. With --config: all."),
    ] = None,
    settings: Settings = None,
    json: Certificate = None,
) -> None:
    """Check every file of a bundle, and, where data are, train its run again and compare the bits."""
    from clip_hba_behavior.bundle.commands import verify_bundle

    raise typer.Exit(verify_bundle(file, config, settings or [], epochs, json))
