"""`clip-hba <verb>`: parse, call, print. The work is done elsewhere.

Exit codes: 0 yes; 1 no; 2 bad use or bad input, nothing done; 3 consistent, but not the complete state;
70 internal error; 74 input/output error; 75 interrupted, resume to go on.

Each command checks what it is given first, and imports what needs torch then: a wrong path or key is told at once.
"""

import errno
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from clip_hba_behavior.run.advice import command_line, start_again_with
from clip_hba_behavior.run.launch import launched, refuse_other_command
from clip_hba_behavior.run.output import lasting_output

if TYPE_CHECKING:
    from clip_hba_behavior.run.caches import Cache

YES, NO, BAD_INPUT, INTERNAL_ERROR, IO_ERROR, INTERRUPTED = 0, 1, 2, 70, 74, 75

app = typer.Typer(
    name="clip-hba",
    help="Fine-tune CLIP on human behaviour, and continue every run bit for bit.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at a data set.", no_args_is_help=True)
app.add_typer(data_app, name="data")

verify_app = typer.Typer(help="Show whether a run is reproducible.", no_args_is_help=True)
app.add_typer(verify_app, name="verify")

sweep_app = typer.Typer(help="Many forks of one baseline.", no_args_is_help=True)
app.add_typer(sweep_app, name="sweep")

cache_app = typer.Typer(help="The caches of frozen features.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")


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


Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a key of the configuration.")
]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run's new directory.")]
WhereDataAre = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file: where data and backbone are; for old checkpoints all of the run."),
]
Epochs = Annotated[str, typer.Option("--epochs", help="Such as 3,10,20 or 5-9; or all.")]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Only the first steps of each epoch.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Certificate = Annotated[Path | None, typer.Option("--json", help="Write the whole result here, as a certificate.")]


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
    from clip_hba_behavior.run.request import refuse_bad_start
    from clip_hba_behavior.run.resolution import resolve_config

    keys = read_config_file(config) | parse_settings(settings or [])
    if run_dir is not None:
        keys["run_dir"] = str(run_dir)
    checked = make_config(keys)
    if dry_run:
        print(resolve_config(checked).to_yaml(), end="")
        return
    refuse_bad_start(checked)
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
    from clip_hba_behavior.run.request import resumption

    allowed = [key.strip() for each in allow or [] for key in each.split(",")]
    changes = parse_settings(settings or [])
    resumption(run, changes, from_epoch, run_dir, allowed)
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
    from clip_hba_behavior.run.request import refuse_bad_start

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
    refuse_bad_start(fork_config(baseline, at_epoch, {**keys, "run_dir": str(run_dir)}))
    from clip_hba_behavior.run.life import start_fork

    print(f"The run is in {start_fork(baseline, at_epoch, keys, run_dir)}")


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
def demo(
    run_dir: Annotated[Path, typer.Option("--run-dir", help="Where the two runs go.")] = Path("runs/demo"),
) -> None:
    """Train on the synthetic data set, resume it from a middle epoch in a new process, and compare the bits."""
    from clip_hba_behavior.verification.demo import run_demo

    raise typer.Exit(YES if run_demo(run_dir) else NO)


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


RunOfModel = Annotated[Path, typer.Argument(help="The run's directory.")]
EpochOfModel = Annotated[
    int | None, typer.Option("--epoch", min=0, help="Which epoch's model. Default: the best.")
]
NewDirectory = Annotated[Path, typer.Option("--out", help="The new directory to write.")]


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
) -> None:
    """Train each epoch again from the checkpoint before it, and compare the bits."""
    from clip_hba_behavior.verification.commands import verify_run

    raise typer.Exit(verify_run(run, None, config, settings or [], epochs, steps, json, loop))


@verify_app.command("results")
def verify_results(
    csv: Annotated[Path, typer.Argument(help="A results CSV, of this project or of the earlier pipeline.")],
    checkpoints: Annotated[Path, typer.Option("--checkpoints", help="The run, or its checkpoints' directory.")],
    config: WhereDataAre = None,
    epochs: Epochs = "all",
    settings: Settings = None,
    json: Certificate = None,
) -> None:
    """Train each epoch again, and compare losses, RSA and p-value with the rows of a results CSV too."""
    from clip_hba_behavior.verification.commands import verify_run

    raise typer.Exit(verify_run(checkpoints, csv, config, settings or [], epochs, None, json))


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


Sweep = Annotated[Path, typer.Argument(help="YAML file of the sweep; its keys are in docs/SWEEPS.md.")]


@sweep_app.command("plan")
def sweep_plan(sweep: Sweep) -> None:
    """List the runs, which share a beginning, and what they will cost."""
    from clip_hba_behavior.sweep.commands import plan

    raise typer.Exit(plan(sweep))


@sweep_app.command("run")
def sweep_run(
    sweep: Sweep,
    engine: Annotated[str, typer.Option("--engine", help="local (this machine) or slurm.")] = "local",
) -> None:
    """Do what is missing, and write the table."""
    from clip_hba_behavior.sweep.commands import run

    raise typer.Exit(run(sweep, engine))


@sweep_app.command("resume")
def sweep_resume(
    sweep: Sweep,
    engine: Annotated[str, typer.Option("--engine", help="local (this machine) or slurm.")] = "local",
) -> None:
    """The same as `run`: what is done stays, what was cut off is resumed."""
    from clip_hba_behavior.sweep.commands import run

    raise typer.Exit(run(sweep, engine))


@sweep_app.command("status")
def sweep_status(sweep: Sweep) -> None:
    """Say how far each run is, and why one failed."""
    from clip_hba_behavior.sweep.commands import status

    raise typer.Exit(status(sweep))


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
) -> None:
    """Replay a random epoch of some finished runs, and compare the bits."""
    from clip_hba_behavior.sweep.commands import verify

    raise typer.Exit(verify(sweep, sample, seed))


@sweep_app.command("task", hidden=True)
def sweep_task(folder: Path, index: Annotated[int, typer.Option("--index", min=0)]) -> None:
    """Execute one task of a job array."""
    from clip_hba_behavior.sweep.slurm import work

    raise typer.Exit(work(folder, index))


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    typed = sys.argv[1:] if arguments is None else arguments
    return exit_code_of(lambda: app(typed), command_line(*typed))


def exit_code_of(work: Callable[[], object], command: str | None = None) -> int:
    """Do some work; whatever stops it becomes a message and an exit code.

    Of several processes started by torchrun, the first does it. The others train along, and end as it does.

    Args:
        work: what to do.
        command: what was typed; by default a Python script.
    """
    command = command or shlex.join(["python", *sys.argv])
    launch = launched()
    with lasting_output():
        if launch.rank > 0:
            return _attempt(_follow, command)
        code = _attempt(work, command)
        if launch.size > 1:
            from clip_hba_behavior.run.follow import tell_end

            tell_end(code)
        return code


def _follow() -> NoReturn:
    from clip_hba_behavior.run.follow import follow

    follow()


_ELSEWHERE = "give another place: --run-dir (run_dir) for a run, cache_dir for its frozen features"
_IO_ADVICE = {
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR), _ELSEWHERE),
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        f"what was complete stays: make space, then go on by `clip-hba resume`, or start again; or {_ELSEWHERE}",
    ),
}


def _attempt(work: Callable[[], object], command: str) -> int:
    try:
        work()
    except KeyboardInterrupt:
        return _say_interrupted("interrupted", command)
    except SystemExit as stop:
        # 130 is what typer makes of Ctrl-C
        return _say_interrupted("interrupted", command) if stop.code == 130 else int(stop.code or 0)
    except OSError as error:
        print(f"input/output error: {error}", file=sys.stderr)
        if advice := _IO_ADVICE.get(error.errno or 0):
            print(f"  {advice}", file=sys.stderr)
        return IO_ERROR
    except Exception as error:
        return _explain(error, command)
    return YES


def _say_interrupted(why: str, command: str) -> int:
    print(f"{why}\n  {start_again_with(command)}", file=sys.stderr)
    return INTERRUPTED


def _explain(error: Exception, command: str) -> int:
    """Say what went wrong; only what this program did not foresee shows its traceback."""
    from clip_hba_behavior.reproducibility.state.errors import (
        BadInputError,
        InterruptedRunError,
        NotReproducibleError,
        StoppedError,
    )

    if isinstance(error, InterruptedRunError):
        if error.next_step is None:
            return _say_interrupted(str(error), command)
        print(error, file=sys.stderr)
        return INTERRUPTED
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
