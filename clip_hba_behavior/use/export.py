"""`clip-hba export`: a run's model as a PEFT adapter, or merged into CLIP as a Hugging Face directory."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import respelled
from clip_hba_behavior.reproducibility.record.judge import Verdict
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import published_directory
from clip_hba_behavior.run.checkpoint import Checkpoint, read_named
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.use.alignment import Alignment, alignment_of
from clip_hba_behavior.use.check_export import Comparison, compare_export, drawn_images, read_images
from clip_hba_behavior.use.formats import write_adapter, write_merged, write_preprocessing
from clip_hba_behavior.use.held_out import held_out_of
from clip_hba_behavior.use.load import load_model
from clip_hba_behavior.use.model_card import CERTIFICATES, CONFIG_NAME, Findings, model_card
from clip_hba_behavior.verification.certificate_file import read_verification

_WRITERS = {"peft": write_adapter, "merged": write_merged}


def export_model(
    path: Path,
    format: str,
    out: Path,
    certificate: Path | None,
    keys: Mapping[str, Any] | None,
    session: Session,
) -> Comparison:
    """Export the model of a checkpoint; `out` appears once what was exported predicts as the model does.

    Args:
        path: of the checkpoint, in its run.
        format: `peft` or `merged`.
        out: the new directory.
        certificate: of a verification, for the card; those in the run's directory are found anyway.
        keys: of the configuration that are others than the run's, such as where the backbone is now.
        session: told of what was found and of progress; its report may leave on a signal.

    Returns:
        How what was exported compares with the model.

    Raises:
        BadInputError: the model cannot be loaded, or the certificate is not of this state.
        StoppedError: what was exported predicts otherwise; nothing is left of it.
    """
    run, checkpoint = RunDirectory(path.parent.parent), read_named(path)
    certificates = _certificates(run, checkpoint, certificate)
    model = load_model(
        path, config={**respelled(keys or {}), "precision": "float32"}, device="cpu"
    )  # as the libraries compute
    try:
        held_out = held_out_of(model.config, run)
        images = read_images(model, held_out.paths)
    except BadInputError as error:
        held_out, images = None, drawn_images(model)
        session.logger.warning("The held-out images are not at hand, so drawn ones are compared: %s", error)
    with published_directory(out) as directory:
        write_preprocessing(model, directory)
        _WRITERS[format](model, directory)
        predictions, comparison = compare_export(
            model, directory, format, images, lambda done, total: session.report("comparing", done, total)
        )
        alignment: Alignment | None = None
        if held_out is not None:
            alignment = alignment_of(predictions, held_out.human_rdm)
        findings = Findings(comparison, alignment, tuple(certificates.values()))
        for certified in certificates:
            (directory / CERTIFICATES).mkdir(exist_ok=True)
            (directory / CERTIFICATES / certified.name).write_bytes(certified.read_bytes())
        of_no_machine = run.read_config().model_copy(update={"cache_dir": None, "run_dir": None})
        (directory / CONFIG_NAME).write_bytes(of_no_machine.to_yaml().encode())
        card = model_card(format, model, run, checkpoint, findings)
        (directory / "README.md").write_bytes(card.encode())
    return comparison


def _certificates(run: RunDirectory, checkpoint: Checkpoint, named: Path | None) -> dict[Path, str]:
    """Return each certificate that tells of a checkpoint's state, and a sentence on it.

    Of two with one name it is the one that was named.

    Raises:
        BadInputError: the one that is named is no certificate, or tells of other states.
    """
    found = {}
    for path in sorted(run.path.glob("*.json")):
        with suppress(BadInputError):  # no certificate, as the run's other files are none
            found[path] = _certified(path, checkpoint)
    if named is not None:
        found[named] = _certified(named, checkpoint)
        if found[named] is None:
            raise BadInputError(
                f"{named} is no certificate of this state\n"
                f"  expected: a verification in which a recorded_digest is {checkpoint.state_digest}\n"
                "  name one of this run and epoch, or leave --certificate out"
            )
    by_name = {path.name: (path, sentence) for path, sentence in found.items() if sentence is not None}
    return dict(by_name.values())


def _certified(path: Path, checkpoint: Checkpoint) -> str | None:
    """Return what a certificate says of a checkpoint's state; None if it says nothing of it."""
    content = read_verification(path)
    words = {each["recorded_digest"]: each["word"] for each in content["epochs"]}
    if checkpoint.state_digest not in words:
        return None
    claim, word = content["claim"], words[checkpoint.state_digest]
    holds = word in (Verdict.REPRODUCIBLE, Verdict.CONSISTENT)  # the level is that of the run's other epochs, too
    level = f" at level {claim['level']} ({claim['meaning']})" if claim and holds else ""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return f"{CERTIFICATES}/{path.name} (SHA-256 `{sha256}`): this state is {word}{level}"
