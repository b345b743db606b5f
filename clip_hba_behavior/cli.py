"""`clip-hba <verb>`: parse, call, print. The work is done elsewhere.

Exit codes: 0 yes; 1 no; 2 bad use or bad input, nothing done; 70 internal error; 74 input/output
error; 75 interrupted, resume to go on.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

YES, NO, BAD_INPUT, INTERNAL_ERROR, IO_ERROR, INTERRUPTED = 0, 1, 2, 70, 74, 75

app = typer.Typer(
    name="clip-hba",
    help="Fine-tune CLIP on human behaviour, and continue every run bit for bit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
data_app = typer.Typer(help="Look at a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the configuration.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run's new directory.")]


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file; its keys are in docs/configuration.md.")],
    settings: Settings = None,
    run_dir: RunDir = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved configuration, and stop.")
    ] = False,
) -> None:
    """Train from a configuration."""
    from clip_hba_behavior.config import make_config, parse_settings, read_config_file
    from clip_hba_behavior.run import resolve_config, start

    keys = read_config_file(config) | parse_settings(settings or [])
    if run_dir is not None:
        keys["run_dir"] = str(run_dir)
    checked = make_config(keys)
    if dry_run:
        print(resolve_config(checked).to_yaml(), end="")
    else:
        print(f"The run is in {start(checked)}")


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The directory of the run to go on with.")],
    from_epoch: Annotated[
        int | None,
        typer.Option("--from-epoch", min=0, help="Go on from the state after this epoch; needs --run-dir."),
    ] = None,
    settings: Settings = None,
    run_dir: RunDir = None,
) -> None:
    """Continue a run, bit for bit."""
    from clip_hba_behavior.config import parse_settings
    from clip_hba_behavior.run import resume

    print(f"The run is in {resume(run, parse_settings(settings or []), from_epoch, run_dir)}")


@app.command()
def inspect(checkpoint: Annotated[Path, typer.Argument(help="An epochN_dora_params.pth of any age.")]) -> None:
    """Show what a checkpoint holds; nothing in it is run."""
    from clip_hba_behavior.reproducibility.checkpoint import describe, read_checkpoint

    print(describe(read_checkpoint(checkpoint)))


@app.command()
def demo(
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Where the two runs go.")] = Path("runs/demo"),
) -> None:
    """Train the stand-in, resume it from a middle epoch in a new process, and compare the bits."""
    from clip_hba_behavior.demo import run_demo

    raise typer.Exit(YES if run_demo(run_dir) else NO)


@data_app.command("check")
def data_check(
    config: Annotated[Path, typer.Argument(help="YAML file with the data's five keys.")], settings: Settings = None
) -> None:
    """Count, open and compare everything that a run would read."""
    from clip_hba_behavior.config import make_config, parse_settings, read_config_file
    from clip_hba_behavior.run import check_data_of

    report = check_data_of(make_config(read_config_file(config) | parse_settings(settings or [])))
    print(report)
    raise typer.Exit(YES if report.ok else NO)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    return exit_code_of(lambda: app(arguments))


def exit_code_of(work: Callable[[], object]) -> int:
    """Do some work; whatever stops it becomes a message and an exit code."""
    try:
        work()
    except KeyboardInterrupt:
        return _say_interrupted()
    except SystemExit as stop:
        # 130 is what typer makes of Ctrl-C
        return _say_interrupted() if stop.code == 130 else int(stop.code or 0)
    except OSError as error:
        print(f"input/output error: {error}", file=sys.stderr)
        return IO_ERROR
    except Exception as error:
        return _explain(error)
    return YES


def _say_interrupted() -> int:
    print("interrupted; if the run has a checkpoint, `clip-hba resume RUN_DIR` goes on from it", file=sys.stderr)
    return INTERRUPTED


def _explain(error: Exception) -> int:
    """Say what went wrong; only what this program did not foresee shows its traceback."""
    from clip_hba_behavior.reproducibility.errors import BadInputError, NotReproducibleError, StoppedError

    if isinstance(error, BadInputError):
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, NotReproducibleError | StoppedError):
        print(f"error: {error}", file=sys.stderr)
        return NO
    traceback.print_exception(error)
    print("internal error: please report the lines above", file=sys.stderr)
    return INTERNAL_ERROR


def run_from_command_line() -> NoReturn:
    """Entry point of `clip-hba`."""
    sys.exit(main())
