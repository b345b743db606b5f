"""`clip-hba <verb>`: parse, call, print. The work is done elsewhere.

Exit codes: 0 yes; 1 no; 2 bad use or bad input, nothing done; 3 consistent, but not the complete state;
70 internal error; 74 input/output error; 75 interrupted, resume to go on.

Each command checks what it is given first, and imports what needs torch then: a wrong path or key is told at once.
"""

import sys
from typing import Annotated, NoReturn

import typer

from clip_hba_behavior.cli import records, sweeps, training, use, verification
from clip_hba_behavior.cli.exit_codes import exit_code_of
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.launch import refuse_other_command

__all__ = ["app", "exit_code_of", "main", "run_from_command_line"]

app = typer.Typer(
    name="clip-hba",
    help="Fine-tune CLIP on human behaviour, and continue every run bit for bit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for each in (training, verification, use, records):
    app.add_typer(each.app)
app.add_typer(verification.data_app, name="data")
app.add_typer(verification.verify_app, name="verify")
app.add_typer(sweeps.sweep_app, name="sweep")
app.add_typer(records.cache_app, name="cache")


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from clip_hba_behavior.version import __version__

        print(f"clip-hba {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and stop."),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Let runs write to their log files alone, and draw no bars.")
    ] = False,
) -> None:
    """Fine-tune CLIP on human behaviour, and continue every run bit for bit."""
    if quiet:
        from clip_hba_behavior.run.log import silent

        silent()
    refuse_other_command(context.invoked_subcommand)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: app(typed), command_line(*typed))


def run_from_command_line() -> NoReturn:
    """Entry point of `clip-hba`."""
    sys.exit(main())
