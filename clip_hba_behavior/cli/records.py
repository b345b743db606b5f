"""Commands on what runs and caches have recorded."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clip_hba_behavior.cli.options import WhereDataAre

if TYPE_CHECKING:
    from clip_hba_behavior.run.caches import Cache

app = typer.Typer()

cache_app = typer.Typer(help="The caches of frozen features.", no_args_is_help=True)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A run's directory, or an epochN_dora_params.pth of any age.")],
) -> None:
    """Show what a run is, or what a checkpoint holds; nothing in it is run."""
    if os.path.isdir(path):  # noqa: PTH112  # of a name that no file can have, Path.is_dir would raise
        from clip_hba_behavior.run.summary import describe_run

        print(describe_run(path))
        return
    from clip_hba_behavior.reproducibility.state.archive import open_archive

    with open_archive(path, "checkpoint"):
        pass
    from clip_hba_behavior.run.checkpoint import describe, read_checkpoint
    from clip_hba_behavior.verification.tracked import describe_state

    print(describe_state(path) or describe(read_checkpoint(path)))


@app.command()
def state(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    epoch: Annotated[
        int, typer.Option("--epoch", min=1, help="The state after this epoch: epochN_dora_params.pth.")
    ],
    step: Annotated[
        int | None,
        typer.Option("--step", min=1, help="The state within it, after this many of its steps: epochN_stepK.pth."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The new file. Default: its place in the run.")] = None,
    config: WhereDataAre = None,
) -> None:
    """Train up to a state that was not kept, compare it with the ledger, and write its checkpoint."""
    from clip_hba_behavior.config import read_config_file
    from clip_hba_behavior.verification.missing_states import make_again
    from clip_hba_behavior.verification.state_request import missing_state

    keys = read_config_file(config) if config is not None else {}
    missing = missing_state(run, epoch, step, out)
    print(f"{missing.file}\nstate digest {make_again(missing, keys)}")


@app.command()
def runs(
    directory: Annotated[Path, typer.Argument(help="Look below this directory.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every run and sweep: how far, how good, from where, how large."""
    from clip_hba_behavior.run.listing import as_json as to_json
    from clip_hba_behavior.run.listing import as_table, list_runs

    listed = list(list_runs(directory))
    print(to_json(listed) if as_json else as_table(listed) if listed else f"no runs in {directory}")


@app.command()
def bundle(
    run: Annotated[Path, typer.Argument(help="A run's directory.")],
    out: Annotated[Path, typer.Option("--out", help="The new file to write, such as run.zip.")],
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="A verification's --json; those in the run's directory are found."),
    ] = None,
) -> None:
    """Write what a paper's supplement needs of a run into one zip file."""
    from clip_hba_behavior.bundle.commands import bundle

    raise typer.Exit(bundle(run, out, certificate))


CacheDir = Annotated[Path | None, typer.Option("--cache-dir", help="Where caches are; as in a configuration.")]
RunsDir = Annotated[Path, typer.Option("--runs", help="Look for runs that use them below this directory.")]


@cache_app.command("list")
def cache_list(cache_dir: CacheDir = None, runs_dir: RunsDir = Path("runs")) -> None:
    """Show what the frozen features take, and which runs use them."""
    from clip_hba_behavior.run.caches import as_table

    caches, faults = _caches(cache_dir, runs_dir)
    print("\n".join([as_table(caches), *faults]))


@cache_app.command("clean")
def cache_clean(
    cache_dir: CacheDir = None,
    runs_dir: RunsDir = Path("runs"),
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that runs use; filled again at need.")
    ] = False,
) -> None:
    """Remove caches that none of the runs uses; they can be filled again."""
    from clip_hba_behavior.run.caches import as_table, remove

    caches, faults = _caches(cache_dir, runs_dir)
    for fault in faults:
        print(fault)
    removed, busy = remove(each for each in caches if everything or not each.runs)
    print(f"removed\n{as_table(removed)}" if removed else "nothing to remove")
    for each in busy:
        print(f"{each.path} is being filled, and stays")


def _caches(cache_dir: Path | None, runs_dir: Path) -> "tuple[list[Cache], list[str]]":
    from clip_hba_behavior.config import make_config
    from clip_hba_behavior.run.caches import list_caches
    from clip_hba_behavior.run.listing import list_runs
    from clip_hba_behavior.run.resolution import resolve_config

    given = {"device": "cpu"} | ({} if cache_dir is None else {"cache_dir": str(cache_dir)})
    found = list_runs(runs_dir) if runs_dir.is_dir() else ()
    used = [runs_dir / each.path for each in found if each.kind == "run"]
    return list_caches(Path(str(resolve_config(make_config(given)).cache_dir)), used)
