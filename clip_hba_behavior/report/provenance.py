"""What a run was made with, in names and values. No path and no name of a machine."""

from pathlib import Path

from clip_hba_behavior.config import STANDIN
from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.assembly import is_synthetic
from clip_hba_behavior.run.checkpoint_files import name_epochs
from clip_hba_behavior.run.directory import RunDirectory

Fact = tuple[str, str]


def about_run(record: RunRecord) -> list[Fact]:
    """Return how far a run is, and from where it began."""
    config, environment = record.config, record.environment
    assert config is not None
    facts = [
        (
            "Epochs",
            f"{name_epochs(record.rows).removeprefix('epochs ').removeprefix('epoch ')} of {config.epochs}",
        ),
        (
            "Arithmetic",
            f"{config.arithmetic}{'' if config.is_portable() else ': bits depend on machine and versions'}",
        ),
        ("Random seed", str(config.random_seed)),
        *_data_facts(record),
    ]
    for key, what in (("parent", "Fork of"), ("continued_from", "Continued from")):
        parent = environment.get(key)
        if isinstance(parent, dict) and {"run", "epoch"} <= parent.keys():
            facts.append((what, f"{Path(str(parent['run'])).name}, after epoch {parent['epoch']}"))
    if config.perturb_type != "none" and config.perturb_epoch is not None:
        last = config.perturb_epoch + config.perturb_length - 1
        stretch = name_epochs(range(config.perturb_epoch, last + 1))
        facts.append(("Perturbed", f"{config.perturb_type}, {stretch}, seed {config.perturb_seed}"))
    return facts


def _data_facts(record: RunRecord) -> list[Fact]:
    """Return which data set and backbone a run has, and how many images train and test."""
    config = record.config
    assert config is not None
    data, backbone = (
        "the synthetic data set: images, targets and RDM are drawn, none is of people",
        config.backbone,
    )
    if not is_synthetic(config):
        data = f"targets {Path(str(config.csv_file)).name}, human RDM {Path(str(config.RDM48_triplet_dir)).name}"
    if num_images := len(record.environment.get("targets", {})):
        num_train = int(config.train_portion * num_images)  # as the split is drawn
        data += f"; {num_train:,} training images, {num_images - num_train:,} test images"
    if backbone == STANDIN:
        backbone = "the small CLIP that comes with the package; it knows drawn pictures alone"
    elif Path(backbone).is_absolute():
        backbone = Path(backbone).name
    return [("Data", data), ("Backbone", backbone)]


def environment_facts(record: RunRecord) -> list[Fact]:
    """Return versions, processor, settings, digests of the data, and what changed on the way."""
    config, environment = record.config, record.environment
    assert config is not None
    package, machine = environment.get("package", {}), environment.get("machine", {})
    changes = [*environment.get("drift", []), *environment.get("package_changes", [])]
    settings = {key: value for key, value in config.trajectory().items() if value is not None}
    return [
        ("Program", f"clip_hba_behavior {package.get('version', 'not recorded')}"),
        ("Commit", str(environment.get("git_commit") or "not recorded")),
        ("Versions", _listed(environment.get("versions", {}))),
        ("Device", f"{environment.get('device')}, {machine.get('device_model', 'not recorded')}"),
        ("Settings", _listed(settings)),
        ("Digests", "\n".join(f"{name} {value}" for name, value in environment.get("digests", {}).items())),
        ("Changed on the way", "\n".join(map(str, changes)) or "nothing"),
    ]


def repeated(record: RunRecord, run_dir: Path) -> str:
    """Return the command that trains a run again, into another directory."""
    return command_line("train", record.path / RunDirectory.at(record.path).config_file.name, "--run-dir", run_dir)


def _listed(values: "dict[str, object]") -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in values.items())


def _plain(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
