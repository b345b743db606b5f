"""The card of an exported model: what it is, how it is used, how good it is, and how it came to be."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import STANDIN, Config
from clip_hba_behavior.model.backbone_names import is_a_path
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.assembly import is_synthetic
from clip_hba_behavior.run.checkpoint import Checkpoint
from clip_hba_behavior.run.checkpoint_files import name_epochs
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.use.alignment import Alignment
from clip_hba_behavior.use.check_export import Comparison
from clip_hba_behavior.use.formats import base_name, tokenizer_name
from clip_hba_behavior.use.trained_model import TrainedModel

CONFIG_NAME = "training_config.yaml"
CERTIFICATES = "certificates"  # a directory: a certificate may have the name of a library's file
_TEMPLATE = "model_card.md.jinja"
_SETTINGS = ("rank", "vision_layers", "transformer_layers", "lr", "batch_size", "random_seed")
_NO_BASE = "...  # that CLIP in Hugging Face format: transformers does not open OpenAI's files"
_LIBRARIES = {"peft": "peft", "merged": "transformers"}


@dataclass(frozen=True)
class Findings:
    """What an export found out about the model.

    Attributes:
        comparison: with what the libraries make of the export.
        alignment: with people; None where the held-out images were not at hand.
        certificates: sentences on those that vouch for the exported state.
    """

    comparison: Comparison
    alignment: Alignment | None
    certificates: tuple[str, ...]


def model_card(
    format: str, model: TrainedModel, run: RunDirectory, checkpoint: Checkpoint, findings: Findings
) -> str:
    """Return the card as Markdown, with the head that the Hugging Face hub reads.

    Args:
        format: `peft` or `merged`.
        model: as it was exported.
        run: whose model it is.
        checkpoint: with its parameters.
        findings: what is not in the run's files.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(  # it is Markdown: nothing is escaped
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(_TEMPLATE).render(_values(format, model, run, checkpoint, findings))


def _values(
    format: str, model: TrainedModel, run: RunDirectory, checkpoint: Checkpoint, findings: Findings
) -> dict[str, Any]:
    config, environment, state = model.config, run.read_environment(), checkpoint.whole_state()
    recorded = run.read_config()  # a key that was given for this export is not what the run was trained with
    num_held_out = len(environment["images"]) - len(environment["targets"])
    base = base_name(config)
    is_on_hub = base is not None and not is_a_path(base) and not Path(base).exists()
    where = run.path.relative_to(Path.cwd()) if run.path.is_relative_to(Path.cwd()) else run.path
    package = environment.get("package", {}).get("version", "of unknown version")
    trained_with = ", ".join(f"{key} {getattr(recorded, key)}" for key in _SETTINGS)
    return {
        "format": format,
        "library": _LIBRARIES[format],
        "hub_name": base if is_on_hub else None,
        "base_code": repr(base) if base is not None else _NO_BASE,
        "tokenizer_code": repr(tokenizer_name(config)),
        "base_directory": None if is_on_hub else base,
        "is_synthetic": is_synthetic(recorded),
        "is_small_clip": recorded.backbone == STANDIN,
        "epoch": state.epoch,
        "run_name": run.path.name,
        "num_prompts": len(model.prompts),
        "image_size": model.preprocessing.image_size,
        "num_train_test": len(environment["targets"]),
        "num_held_out": num_held_out,
        "digests": environment["digests"],
        "test_loss": state.metrics["test_loss"],
        "recorded_rho": state.metrics["behavioral_rsa_rho"],
        "arithmetic": recorded.arithmetic_kind(),
        "settings": f"DoRA of {trained_with}",
        "versions": ", ".join(
            [f"clip_hba_behavior {package}", *(f"{k} {v}" for k, v in sorted(environment["versions"].items()))]
        ),
        "device": environment["device"],
        "origin": _origin(recorded, environment),
        "state_digest": checkpoint.state_digest,
        "verify_command": command_line("verify", "checkpoints", where, "--json", where / "certificate.json"),
        "repeat_command": command_line("train", CONFIG_NAME, "--run-dir", f"runs/{run.path.name}-again"),
        "alignment": findings.alignment,
        "certificates": findings.certificates,
        "comparison": str(findings.comparison)[0].upper() + str(findings.comparison)[1:],
    }


def _origin(config: Config, environment: dict[str, Any]) -> list[str]:
    """Return what a reader must know of the run's way; no path, which would tell of a machine."""
    lines = []
    for key, what in (("parent", "a fork of"), ("continued_from", "continued from")):
        if origin := environment[key]:
            lines.append(f"{what} the run {Path(str(origin['run'])).name}, after epoch {origin['epoch']}")
    if config.perturb_type != "none" and config.perturb_epoch is not None:
        epochs = range(config.perturb_epoch, config.perturb_epoch + config.perturb_length)
        lines.append(f"perturbed by {config.perturb_type} in {name_epochs(epochs)}")
    return lines + [f"changed on the way: {each}" for each in environment["drift"]]
