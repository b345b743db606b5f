"""Which runs a sweep consists of, and which of them share a beginning."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clip_hba_behavior.config import Config, PerturbType, make_config, read_config_file
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import SWEEP_FILE, RunDirectory
from clip_hba_behavior.run.names import names_of
from clip_hba_behavior.wrong_keys import explain, suggestion

Positive = Annotated[int, Field(ge=1)]
# What a perturbation draws nothing for: another seed would give the same run.
_WITHOUT_SEED = ("uniform_images",)
# What is no perturbation to look for an effect of, and the key that asks for such runs.
_ASKED_FOR_ELSEWHERE = {"none": "controls: true", "reorder": "null_seeds: 19"}
KINDS = tuple(kind for kind in get_args(PerturbType) if kind not in _ASKED_FOR_ELSEWHERE)
# Keys of a fork that a sweep sets itself.
_SET_BY_THE_SWEEP = {
    "run_dir",
    "training_run",
    "baseline_dora_directory",
    "epochs",
    "arithmetic",  # a fork computes in its baseline's
    "perturb_type",
    "perturb_epoch",
    "perturb_length",
    "perturb_seed",
    "fork_reseed",
}
_NO_LIMIT = ("0", "-1", "UNLIMITED", "INFINITE")  # SLURM's words for none
_SECONDS_OF_WORK = 60  # the least that a job has before the signal comes


def seconds_of(limit: str) -> float:
    """Return the seconds of a time limit in any of SLURM's forms; infinity where it is none.

    They are minutes, minutes:seconds, hours:minutes:seconds, and days-hours, days-hours:minutes,
    days-hours:minutes:seconds; UNLIMITED is none.

    Raises:
        ValueError: it has none of them.
    """
    if limit.upper() in _NO_LIMIT:
        return math.inf
    days, dash, clock = limit.rpartition("-")
    parts = clock.split(":")
    numbers = [days, *parts] if dash else parts
    if len(parts) > 3 or not all(each.isascii() and each.isdecimal() for each in numbers):
        raise ValueError("expected such as 90, 90:00, 01:30:00, 1-12, 1-12:00 or 1-12:00:00")
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(int(each) * unit for each, unit in zip(parts, units, strict=False))


class SlurmSettings(BaseModel):
    """What `sbatch` is told; one kind of GPU a sweep, for the bits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    partition: str | None = Field(None, description="Partition.")
    account: str | None = Field(None, description="Account.")
    constraint: str | None = Field(None, description="Node features, such as one processor model.")
    gres: str | None = Field(None, description="GPU, such as gpu:h100:1; one kind for the whole sweep.")
    cpus: Positive = Field(1, description="Processor cores per run.")
    memory: str | None = Field(None, description="Memory per run, such as 16G.")
    time: str = Field("01:00:00", description="Time limit of one job; a run that needs more is requeued.")
    throttle: Positive | None = Field(None, description="At most this many jobs of the array at once.")
    chains_per_task: Positive | None = Field(
        None, description="Chains that one job executes in turn. Default: as many as fit its time limit."
    )
    signal_seconds: Positive = Field(60, description="How long before the limit or a preemption to save.")
    setup: list[str] = Field([], description="Shell lines that load the environment, such as module load.")
    options: list[str] = Field([], description="Further options of sbatch.")

    @field_validator("time", mode="before")
    @classmethod
    def _time_is_a_limit(cls, given: Any) -> Any:
        if isinstance(given, int):
            raise ValueError('YAML reads it as a number; put it in quotes, such as "02:00:00"')
        if isinstance(given, str):
            seconds_of(given)
        return given

    @model_validator(mode="after")
    def _time_leaves_some_for_work(self) -> "SlurmSettings":
        """Refuse a limit that ends soon after the signal: a task would be requeued for ever without progress."""
        least = self.signal_seconds + _SECONDS_OF_WORK
        if seconds_of(self.time) < least:
            raise ValueError(
                f"time {self.time} leaves no time to work: the signal comes {self.signal_seconds} s "
                f"(and up to 30 s more) before it\n  expected: at least {least} s"
            )
        return self


class SweepFile(BaseModel):
    """A sweep, as its YAML file says it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    baseline: str | list[str] = Field(description="The baseline's run directory, or a list of several'.")
    directory: str = Field(description="Where the runs, their log and the table go.")
    epochs: list[Positive] | Literal["all"] = Field("all", description="First perturbed epochs; `all`: each.")
    kinds: list[PerturbType] = Field(description="Perturbations.")
    lengths: list[Positive] = Field([1], description="How many epochs each is perturbed.")
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field([0], description="Seeds of the draws.")
    controls: bool = Field(True, description="For each epoch an unperturbed fork, which must be the baseline.")
    null_seeds: Annotated[int, Field(ge=0)] = Field(
        0, description="For each epoch and length so many `reorder` runs, seeds from 1 on: the matched null."
    )
    reseeds: Annotated[int, Field(ge=0)] = Field(
        0, description="For each epoch so many unperturbed forks with other random streams: a wider null."
    )
    settings: dict[str, Any] = Field({}, description="Other keys of every fork, such as perturb_distribution.")
    band: Annotated[float, Field(gt=0)] = Field(
        0.02, description="Recovered: the test loss is within this share of the baseline's."
    )
    band_epochs: Positive = Field(
        3, description="Recovered: the test loss stays within the band for so many epochs."
    )
    processes: Positive | None = Field(
        None, description="Runs at once on this machine. Default: cores by the baseline's thread count."
    )
    slurm: SlurmSettings = Field(
        default_factory=lambda: SlurmSettings.model_validate({}), description="For --engine slurm."
    )

    @field_validator("baseline", mode="before")
    @classmethod
    def _baseline_is_one_or_a_list(cls, given: Any) -> Any:
        paths = given if isinstance(given, list) else [given]
        if not paths or not all(isinstance(each, str) and each for each in paths):
            raise ValueError("expected a run's directory, or a list of some")
        return given

    @field_validator("baseline")
    @classmethod
    def _baselines_are_several_runs(cls, given: str | list[str]) -> str | list[str]:
        paths = _as_list(given)
        resolved = [Path(each).expanduser().resolve() for each in paths]
        if twice := [str(path) for path, its in zip(paths, resolved, strict=True) if resolved.count(its) > 1]:
            raise ValueError(f"{', '.join(twice)}: one run is given more than once; leave out all but one")
        return given

    def baselines(self) -> list[Path]:
        """Return the baselines' directories, as absolute paths."""
        return [Path(each).expanduser().absolute() for each in _as_list(self.baseline)]

    @field_validator("epochs", mode="before")
    @classmethod
    def _epochs_are_all_or_numbers(cls, given: Any) -> Any:
        numbers = given if isinstance(given, list) else [None]
        if given != "all" and not all(type(each) is int and each >= 1 for each in numbers):
            raise ValueError("expected all, or a list of epochs from 1 on, such as [3, 10]")
        return given

    @field_validator("kinds", mode="before")
    @classmethod
    def _kinds_are_perturbations(cls, given: Any) -> Any:
        if isinstance(given, list) and not all(each in KINDS for each in given):
            others = ", ".join(f"{kind} by {key}" for kind, key in _ASKED_FOR_ELSEWHERE.items())
            raise ValueError(f"expected a list of some of {', '.join(KINDS)}; asked for elsewhere: {others}")
        return given

    @field_validator("settings")
    @classmethod
    def _settings_are_keys_of_a_configuration(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Read them as a configuration is read, once: what is compared later is what trains."""
        taken = [key for key in given if key in _SET_BY_THE_SWEEP]
        if taken:
            raise ValueError(f"{', '.join(taken)}: the sweep sets this itself; leave it out")
        config = make_config(given)
        return config.model_dump(include=config.model_fields_set)


@dataclass(frozen=True)
class Run:
    """One fork of a sweep.

    Attributes:
        name: its directory within the sweep's.
        kind: the perturbation; `none` for a control, `reseed` for one with other random streams.
        epoch: the first perturbed epoch, and the fork's first.
        length: how many epochs are perturbed; 0 for none.
        seed: of the draws, or of the streams.
        extends: the name of the run whose perturbed beginning it shares; None if it starts at the baseline.
    """

    name: str
    kind: str
    epoch: int
    length: int
    seed: int
    extends: str | None = None

    def settings(self) -> dict[str, Any]:
        """Return the fork's own keys."""
        if self.kind == "none":
            return {"perturb_type": "none"}
        if self.kind == "reseed":
            return {"perturb_type": "none", "fork_reseed": self.seed}
        keys: dict[str, Any] = {
            "perturb_type": self.kind,
            "perturb_epoch": self.epoch,
            "perturb_length": self.length,
        }
        return keys if self.kind in _WITHOUT_SEED else keys | {"perturb_seed": self.seed}


@dataclass(frozen=True)
class Plan:
    """The runs of a sweep from one baseline, in chains: within a chain each run continues from the one before it.

    Attributes:
        file: what was asked for.
        baseline: the baseline's directory.
        directory: the sweep's.
        last_epoch: where the baseline ends, and every fork.
        chains: runs that share a beginning, shortest perturbation first; chains are independent.
        left_out: runs that are asked for, but whose perturbation would go beyond the last epoch.
        arithmetic: the baseline's, in which every fork computes.
        prefix: what the runs' names begin with where the sweep has several baselines: one's name and a slash.
    """

    file: SweepFile
    baseline: Path
    directory: Path
    last_epoch: int
    chains: tuple[tuple[Run, ...], ...]
    left_out: tuple[Run, ...] = ()
    arithmetic: str = "native"
    prefix: str = ""

    def runs(self) -> list[Run]:
        """Return all runs, chain by chain."""
        return [run for chain in self.chains for run in chain]

    @cached_property
    def _by_name(self) -> dict[str, Run]:
        return {run.name: run for run in self.runs()}

    @cached_property
    def _by_extended(self) -> dict[str, Run]:
        return {run.extends: run for run in self.runs() if run.extends is not None}

    def path(self, name: str) -> Path:
        """Return a run's directory."""
        return self.directory / "runs" / name

    def folder(self) -> Path:
        """Return where the runs' directories are."""
        return self.directory / "runs" / self.prefix

    def shorter(self, run: Run) -> Run | None:
        """Return the run that another extends; None if that starts at the baseline."""
        return None if run.extends is None else self._by_name.get(run.extends)

    def longer(self, run: Run) -> Run | None:
        """Return the run that extends another, if there is one."""
        return self._by_extended.get(run.name)

    def source(self, run: Run) -> Path:
        """Return the directory of the run whose state a run starts from."""
        return self.baseline if run.extends is None else self.path(run.extends)

    def first_own_epoch(self, run: Run) -> int:
        """Return the first epoch that a run trains itself, rather than taking it over from the run it extends."""
        shorter = self.shorter(run)
        return run.epoch if shorter is None else shorter.epoch + shorter.length

    def retention(self) -> dict[str, Any]:
        """Return which states a fork keeps by default: where every machine can make the others again, few."""
        return {} if self.arithmetic == "native" else {"keep_checkpoints": "best"}

    def states_to_make(self) -> int:
        """Return how many of the baseline's states `keep_checkpoints` removed that forks begin with."""
        begun = {run.epoch - 1 for run in self.runs() if run.extends is None}
        return len(begun & RunDirectory(self.baseline).removed_epochs())

    def own_keys(self, run: Run) -> dict[str, Any]:
        """Return the keys that a fork does not have from its parent."""
        keys = {**self.retention(), **self.file.settings, **run.settings()}
        if keys.get("fork_early_stopping") == "fresh" and (run.extends is not None or run.kind == "none"):
            # The counters began with the run that it extends; a control with others would not be the baseline.
            keys["fork_early_stopping"] = "inherit"
        return keys

    def config_of(self, run: Run) -> Config:
        """Return the fork's own keys as a configuration, in its parent's arithmetic; others have their defaults.

        Raises:
            BadInputError: they do not go together, or not with that arithmetic.
        """
        origin = {"training_run": self.first_own_epoch(run), "baseline_dora_directory": str(self.source(run))}
        keys = {"arithmetic": self.arithmetic, **self.own_keys(run)}
        return make_config({**keys, **origin, "epochs": self.last_epoch})

    def epochs_to_train(self) -> int:
        """Return how many epochs the sweep trains, with shared beginnings."""
        return sum(self.last_epoch - self.first_own_epoch(run) + 1 for run in self.runs())

    def epochs_alone(self) -> int:
        """Return how many epochs it would train if each run started at the baseline."""
        return sum(self.last_epoch - run.epoch + 1 for run in self.runs())


def read_sweep_file(path: Path) -> SweepFile:
    """Read and check a sweep's YAML file.

    Raises:
        BadInputError: names every wrong key with its value and what is allowed.
    """
    if path.is_dir():
        copy = path / SWEEP_FILE
        hint = f"give the copy of it that is there: {copy}" if copy.is_file() else "give the file's own path"
        raise BadInputError(f"{path} is a directory: expected the YAML file of a sweep\n  {hint}")
    return make_sweep_file(read_config_file(path, "YAML file of a sweep at the path"))


def make_sweep_file(given: Mapping[str, Any]) -> SweepFile:
    """Check a mapping and make a sweep of it.

    Raises:
        BadInputError: names every wrong key with its value and what is allowed.
    """
    try:
        return SweepFile.model_validate(dict(given))
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise BadInputError("the sweep file is wrong\n  " + "\n  ".join(lines)) from None


def _explain(detail: Any) -> str:
    keys = SlurmSettings.model_fields if detail["loc"][:1] == ("slurm",) else SweepFile.model_fields
    key = str(detail["loc"][-1]) if detail["loc"] else ""
    if detail["type"] == "extra_forbidden" and suggestion(key, keys) is None:
        near = suggestion(key, Config.model_fields)
        if near is not None:  # a key of every fork
            return f"{key}: no such key of a sweep; did you mean settings: {{{near}: ...}}?"
    return explain(detail, keys, "docs/SWEEPS.md").replace("\n", "\n  ")


def make_plan(file: SweepFile, number: int = 0) -> Plan:
    """List the runs of a sweep from one of its baselines.

    Args:
        file: the sweep.
        number: which of its baselines, from 0.

    Raises:
        BadInputError: the baseline is no run, or has no state that a fork could start from; the sweep's directory
            is a run's; or its settings do not go with the baseline's arithmetic.
    """
    baselines = file.baselines()
    baseline = RunDirectory(baselines[number])
    prefix = f"{names_of(baselines)[number]}/" if len(baselines) > 1 else ""
    if not baseline.config_file.is_file():
        given = _as_list(file.baseline)[number]
        is_relative = not Path(given).expanduser().is_absolute()
        counted = f"\n  {given} counts from the current directory, {Path.cwd()}" if is_relative else ""
        raise BadInputError(
            f"there is no run in {baseline.path}: the sweep's baseline has no config.yaml{counted}"
        )
    directory = Path(file.directory).expanduser().absolute()
    if (directory / baseline.config_file.name).exists():
        whose = "the baseline's own" if directory.resolve() == baseline.path.resolve() else "a run's"
        raise BadInputError(
            f"directory {file.directory} is {whose} directory, so no sweep can be in it\n"
            f"  give the sweep one of its own, such as {baseline.path}_sweep"
        )
    states = list_checkpoints(baseline.checkpoints)
    last = baseline.newest_epoch()
    wanted = range(1, last + 1) if file.epochs == "all" else sorted(set(file.epochs))
    begins = states.keys() | baseline.removed_epochs()
    missing = [epoch for epoch in wanted if epoch - 1 not in begins or epoch > last]
    if missing:
        raise BadInputError(
            f"no fork can start with epoch {', '.join(map(str, missing))} of {baseline.path}\n"
            f"  found:    checkpoints of epochs {', '.join(map(str, states))}\n"
            "  expected: the one before each epoch, and no epoch beyond the last"
        )
    chains: list[tuple[Run, ...]] = []
    for epoch in wanted:
        if file.controls:
            chains.append((Run(f"{prefix}e{epoch:03}_none", "none", epoch, 0, 0),))
        for seed in range(1, file.reseeds + 1):
            chains.append((Run(f"{prefix}e{epoch:03}_reseed_s{seed}", "reseed", epoch, 0, seed),))
        for kind in dict.fromkeys(file.kinds):
            seeds = file.seeds[:1] if kind in _WITHOUT_SEED else list(dict.fromkeys(file.seeds))
            for seed in seeds:
                chains.append(_chain(prefix, kind, epoch, seed, sorted(set(file.lengths))))
        for seed in range(1, file.null_seeds + 1):
            chains.append(_chain(prefix, "reorder", epoch, seed, sorted(set(file.lengths))))
    fitting = (tuple(run for run in chain if run.epoch + run.length - 1 <= last) for chain in chains)
    left_out = tuple(run for chain in chains for run in chain if run.epoch + run.length - 1 > last)
    arithmetic = baseline.read_config().arithmetic
    chosen = tuple(chain for chain in fitting if chain)
    plan = Plan(file, baseline.path, directory, last, chosen, left_out, arithmetic, prefix)
    for run in plan.runs():
        try:
            plan.config_of(run)
        except BadInputError as error:
            whose = f"a fork of {baseline.path} cannot be made: " if prefix else ""
            raise BadInputError(f"{whose}{error}") from None
    return plan


def _as_list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given


def _chain(prefix: str, kind: str, epoch: int, seed: int, lengths: list[int]) -> tuple[Run, ...]:
    """Return the runs of one beginning, the shortest perturbation first."""
    chain: list[Run] = []
    for length in lengths:
        name = f"{prefix}e{epoch:03}_{kind}_l{length}_s{seed}"
        # the shorter one must train on beyond its window, or there is no state to go on from
        extends = chain[-1].name if chain else None
        chain.append(Run(name, kind, epoch, length, seed, extends))
    return tuple(chain)
