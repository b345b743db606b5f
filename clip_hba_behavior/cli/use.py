"""Commands on a trained model, reports, and points for trackers."""

from pathlib import Path
from typing import Annotated

import typer

from clip_hba_behavior.cli.options import (
    Device,
    EpochOfModel,
    NewDirectory,
    RunOfModel,
    WhereDataAre,
)

app = typer.Typer()


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(help="A run's directory, for its best epoch, or a checkpoint in one.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or directories of them.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="Write here: FILE.csv, FILE.parquet or FILE.npy.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option("--top", min=1, help="Print each image's largest dimensions. Default without --out: 5."),
    ] = None,
    config: WhereDataAre = None,
    device: Device = "auto",
) -> None:
    """Predict the 66 dimensions of any images."""
    from clip_hba_behavior.config import read_config_file
    from clip_hba_behavior.use.request import refuse_bad_table, refuse_no_model

    keys = read_config_file(config) if config is not None else None
    if out is not None:
        refuse_bad_table(out)
    refuse_no_model(source)
    from clip_hba_behavior.use.commands import predict

    raise typer.Exit(predict(source, images, out, top, keys, device))


@app.command()
def rdm(
    run: RunOfModel,
    out: NewDirectory,
    epoch: EpochOfModel = None,
    config: WhereDataAre = None,
    device: Device = "auto",
) -> None:
    """Write the predictions of the held-out images and their RDM, also for rsatoolbox and thingsvision's users."""
    from clip_hba_behavior.config import read_config_file
    from clip_hba_behavior.use.request import named_checkpoint, refuse_taken

    keys = read_config_file(config) if config is not None else None
    refuse_taken(out)
    checkpoint = named_checkpoint(run, epoch)
    from clip_hba_behavior.use.commands import rdm

    raise typer.Exit(rdm(checkpoint, out, keys, device))


@app.command("odd-one-out")
def odd_one_out(
    run: RunOfModel,
    triplets: Annotated[Path, typer.Argument(help="Text file, three 0-based indices of images a line.")],
    images: Annotated[
        Path,
        typer.Option(
            "--images", help="What the indices mean: a directory, by sorted names, or a file with a path a line."
        ),
    ],
    odd: Annotated[
        str,
        typer.Option("--odd", help="Which column is the odd one out: last (as THINGS publishes them) or first."),
    ] = "last",
    ceiling: Annotated[
        str | None, typer.Option("--ceiling", help="Noise ceiling: brain-score (0.6767), or a number.")
    ] = None,
    epoch: EpochOfModel = None,
    config: WhereDataAre = None,
    device: Device = "auto",
) -> None:
    """Say how often the model picks the odd one out of three images as people did."""
    from clip_hba_behavior.config import read_config_file
    from clip_hba_behavior.use.request import named_checkpoint, refuse_bad_triplets, triplet_ceiling

    keys = read_config_file(config) if config is not None else None
    refuse_bad_triplets(triplets, images, odd)
    known, checkpoint = triplet_ceiling(ceiling), named_checkpoint(run, epoch)
    from clip_hba_behavior.use.commands import odd_one_out

    raise typer.Exit(odd_one_out(checkpoint, triplets, images, odd, known, keys, device))


@app.command()
def export(
    run: RunOfModel,
    format: Annotated[
        str, typer.Option("--format", help="peft (the adapter alone) or merged (complete weights).")
    ],
    out: NewDirectory,
    epoch: EpochOfModel = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="A verification's --json, to be named in the model card.")
    ] = None,
    config: WhereDataAre = None,
) -> None:
    """Write a model for PEFT or transformers, load it back by them, and compare predictions."""
    from clip_hba_behavior.config import read_config_file
    from clip_hba_behavior.use.request import export_request

    keys = read_config_file(config) if config is not None else None
    checkpoint = export_request(run, epoch, format, out, certificate)
    from clip_hba_behavior.use.commands import export

    raise typer.Exit(export(checkpoint, format, out, certificate, keys))


@app.command()
def alignment(
    run: RunOfModel,
    epoch: EpochOfModel = None,
    permutations: Annotated[int, typer.Option("--permutations", min=1, help="Of the images, for each p.")] = 9999,
    split_half: Annotated[
        Path | None, typer.Option("--split-half", help="RDM48_triplet_splithalf.mat, for the noise ceiling.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    config: WhereDataAre = None,
) -> None:
    """Show how well a run's model agrees with people: rho, its test and interval, each dimension."""
    from clip_hba_behavior.config import read_config_file
    from clip_hba_behavior.use.request import named_checkpoint, refuse_no_file

    named_checkpoint(run, epoch)
    if split_half is not None:
        refuse_no_file(split_half, "--split-half")
    keys = read_config_file(config) if config is not None else None
    from clip_hba_behavior.use.commands import alignment

    raise typer.Exit(alignment(run, epoch, permutations, split_half, as_json, keys))


@app.command()
def report(
    asked: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_OR_SWEEP...", help="A run, several runs or results CSVs, or a sweep."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory of the report. Default: RUN/report, for one run.")
    ] = None,
    config: WhereDataAre = None,
    split_half: Annotated[
        Path | None, typer.Option("--split-half", help="RDM48_triplet_splithalf.mat, for the noise ceiling.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option("--certificate", help="Of a verification; those in the run are found.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Show what runs did: pages that open from disk, and the same figures for a paper."""
    from clip_hba_behavior.report.commands import report

    raise typer.Exit(report(asked, out, config, split_half, certificate, device))


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="A run's directory, also of a loop with track; or a sweep.")],
    to: Annotated[str, typer.Option("--to", help="tensorboard.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="A new directory. Default: tensorboard/ in the run's.")
    ] = None,
) -> None:
    """Write what a run has recorded so far for TensorBoard; again at any time."""
    from clip_hba_behavior.report.publish import publish

    raise typer.Exit(publish(run, to, out))
