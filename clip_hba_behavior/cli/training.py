"""Commands that train."""

from pathlib import Path
from typing import Annotated, Any

import typer

from clip_hba_behavior.cli.exit_codes import NO, YES
from clip_hba_behavior.cli.options import (
    RunDir,
    Settings,
)

app = typer.Typer()


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
    from clip_hba_behavior.run.request import first_state_file, refuse_bad_start
    from clip_hba_behavior.run.resolution import resolve_config
    from clip_hba_behavior.verification.missing_states import put_back

    keys = read_config_file(config) | parse_settings(settings or [])
    if run_dir is not None:
        keys["run_dir"] = str(run_dir)
    checked = make_config(keys)
    if dry_run:
        print(resolve_config(checked).to_yaml(), end="")
        return
    refuse_bad_start(checked)
    put_back(first_state_file(checked), checked)
    from clip_hba_behavior.run.life import start

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
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="KEY", help="Go on although this changed (images, torch, lr, ...)."),
    ] = None,
    accept_mismatch: Annotated[
        int | None,
        typer.Option(
            "--accept-mismatch",
            metavar="EPOCH",
            min=1,
            help="Keep what is recorded of this epoch on apart, on record: it need not be repeated.",
        ),
    ] = None,
) -> None:
    """Continue a run, bit for bit."""
    from clip_hba_behavior.config import parse_settings
    from clip_hba_behavior.run.checkpoint_files import checkpoint_path
    from clip_hba_behavior.run.request import resumption
    from clip_hba_behavior.verification.missing_states import put_back

    allowed = [key.strip() for each in allow or [] for key in each.split(",")]
    changes = parse_settings(settings or [])
    asked = resumption(run, changes, from_epoch, run_dir, allowed)
    if asked.elsewhere is not None:
        put_back(checkpoint_path(asked.source.checkpoints, asked.elsewhere[1]), asked.config)
    from clip_hba_behavior.run.life import resume

    path = resume(run, changes, from_epoch, run_dir, allowed, accept_mismatch)
    print(f"The run is in {path}")


@app.command()
def fork(
    baseline: Annotated[Path, typer.Argument(help="The directory of the run to fork.")],
    at_epoch: Annotated[
        int, typer.Option("--at-epoch", min=1, help="The fork's first own epoch; it starts from the one before.")
    ],
    perturb: Annotated[
        str,
        typer.Option(
            "--perturb", help="random_target, label_shuffle, image_noise, uniform_images, reorder or none."
        ),
    ],
    run_dir: Annotated[Path, typer.Option("--run-dir", help="The fork's new directory.")],
    perturb_length: Annotated[
        int | None, typer.Option("--perturb-length", help="How many epochs are perturbed. Default: 1.")
    ] = None,
    perturb_seed: Annotated[
        int | None, typer.Option("--perturb-seed", help="Seeds the draws; no effect where there are none.")
    ] = None,
    perturb_distribution: Annotated[
        str | None,
        typer.Option("--perturb-distribution", help="normal or target; no effect but for random_target."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", help="Train up to this epoch. Default: the baseline's last.")
    ] = None,
    early_stopping: Annotated[
        str | None,
        typer.Option("--early-stopping", help="off (default), inherit (the baseline's counters) or fresh."),
    ] = None,
    reseed: Annotated[
        int | None, typer.Option("--reseed", help="Start with other random streams, seeded with this.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file with keys that the fork has of its own.")
    ] = None,
    settings: Settings = None,
) -> None:
    """Start from another run's state, perturb some epochs, and train on."""
    from clip_hba_behavior.config import parse_settings, read_config_file
    from clip_hba_behavior.run.fork_request import fork_config
    from clip_hba_behavior.run.request import first_state_file, refuse_bad_start
    from clip_hba_behavior.verification.missing_states import put_back

    options = {
        "perturb_type": perturb,
        "perturb_length": perturb_length,
        "perturb_seed": perturb_seed,
        "perturb_distribution": perturb_distribution,
        "epochs": epochs,
        "fork_early_stopping": early_stopping,
        "fork_reseed": reseed,
    }
    keys = (read_config_file(config) if config is not None else {}) | parse_settings(settings or [])
    keys |= {key: value for key, value in options.items() if value is not None}
    checked = fork_config(baseline, at_epoch, {**keys, "run_dir": str(run_dir)})
    refuse_bad_start(checked)
    put_back(first_state_file(checked), checked)
    from clip_hba_behavior.run.life import start_fork

    print(f"The run is in {start_fork(baseline, at_epoch, keys, run_dir)}")


@app.command()
def demo(
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Where the two runs go.")] = Path("runs/demo"),
) -> None:
    """Train on the synthetic data set, resume it from a middle epoch in a new process, and compare the bits."""
    from clip_hba_behavior.verification.demo import run_demo

    raise typer.Exit(YES if run_demo(run_dir) else NO)


@app.command()
def slurm(
    config: Annotated[Path, typer.Argument(help="YAML file of the run.")],
    settings: Settings = None,
    run_dir: RunDir = None,
    time: Annotated[
        str, typer.Option(help="Time limit of one job; a run that needs more comes back.")
    ] = "08:00:00",
    partition: Annotated[str | None, typer.Option(help="Partition.")] = None,
    account: Annotated[str | None, typer.Option(help="Account.")] = None,
    gres: Annotated[str | None, typer.Option(help="GPU, such as gpu:h100:1.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, such as 16G.")] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="Processor cores; without it, one for each of the run's threads.")
    ] = None,
    setup: Annotated[list[str] | None, typer.Option(help="Shell line that loads the environment.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="Further option of sbatch.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit it, too.")] = False,
) -> None:
    """Print the SLURM script of one run, which saves before a preemption or the time limit, and comes back."""
    from clip_hba_behavior.sweep.job import job_script, submit_job

    named = {"partition": partition, "account": account, "gres": gres, "memory": memory, "cpus": cpus}
    resources: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    resources |= {"time": time, "setup": setup or [], "options": option or []}
    script, run = job_script(config, settings or [], run_dir, resources)
    print(f"job {submit_job(script, run)}: {run}; its log is {run}.slurm.log" if submit else script, end="")
    if submit:
        print()


@app.command("slurm-task", hidden=True)
def slurm_task(
    config: Path, run_dir: Annotated[Path, typer.Option("--run-dir")], settings: Settings = None
) -> None:
    """Start a run, or go on with it, within a job."""
    from clip_hba_behavior.sweep.job import work

    print(f"The run is in {work(config, settings or [], run_dir)}")
