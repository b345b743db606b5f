"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the configuration.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run's new directory.")]
WhereDataAre = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file: where data and backbone are; for old checkpoints all of the run."),
]
Epochs = Annotated[str, typer.Option("--epochs", help="Such as 3,10,20 or 5-9; or all.")]
Processes = Annotated[int, typer.Option("--processes", min=1, help="Train so many epochs at once.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Only the first steps of each epoch.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Certificate = Annotated[Path | None, typer.Option("--json", help="Write the whole result here, as a certificate.")]
RunOfModel = Annotated[Path, typer.Argument(help="The run's directory.")]
EpochOfModel = Annotated[
    int | None, typer.Option("--epoch", min=0, help="Which epoch's model. Default: the best.")
]
NewDirectory = Annotated[Path, typer.Option("--out", help="The new directory to write.")]
