"""The certificates of a run: found in its directory, or named."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.report.sources import RunRecord
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import open_text
from clip_hba_behavior.run.checkpoint_files import name_epochs
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.verification.certificate_file import MAX_BYTES, read_verification


@dataclass(frozen=True)
class Certificate:
    """A certificate of a verification of this run.

    Attributes:
        name: of its file.
        content: as it stands in the file.
    """

    name: str
    content: dict[str, Any]

    def facts(self) -> list[tuple[str, str]]:
        """Return what it says."""
        claim = self.content["claim"]
        level = "none: nothing was replayed" if claim is None else f"{claim['level']}: {claim['meaning']}"
        epochs = [int(each["epoch"]) for each in self.content["epochs"]]
        return [
            ("Certificate", self.name),
            ("Verdict", str(self.content.get("summary", self.content.get("verdict", "–")))),
            ("Level", level),
            ("Covers", name_epochs(epochs)),
            ("Made by", f"{self.content.get('program', '–')}, {self.content.get('date', '–')}"),
        ]


def certificates_of(record: RunRecord, named: Path | None) -> tuple[list[Certificate], list[str]]:
    """Find the certificates of a run.

    Args:
        record: of the run.
        named: one that is anywhere; those in the run's directory are found without.

    Returns:
        The certificates, and a note on each in the run's directory that is damaged, or is not of this run.

    Raises:
        BadInputError: the one that is named cannot be read, or is not of this run.
    """
    found: dict[Path, Certificate] = {}
    notes: list[str] = []
    for path in sorted(RunDirectory.at(record.path).path.glob("*.json")):
        try:
            content = read_verification(path)
        except BadInputError as error:
            if _is_meant_as_one(path):  # not another file of the run, or of the user
                notes.append(str(error))
            continue
        try:
            _refuse_other_run(path, content, record)
        except BadInputError as error:
            notes.append(str(error))
        else:
            found[path.resolve()] = Certificate(path.name, content)
    if named is not None:
        content = read_verification(named)
        _refuse_other_run(named, content, record)
        found[named.resolve()] = Certificate(named.name, content)
    return list(found.values()), notes


def _is_meant_as_one(path: Path) -> bool:
    """Return whether a file that is no certificate of a verification was to be one, and is damaged."""
    text = ""
    try:
        with open_text(path, MAX_BYTES) as file:
            text = file.read()
        return bool(json.loads(text)["certificate"] == "verification")
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return "certificate" in path.stem or '"certificate"' in text


def _refuse_other_run(path: Path, content: dict[str, Any], record: RunRecord) -> None:
    claimed = {int(each["epoch"]): each["recorded_digest"] for each in content["epochs"]}
    compared = {epoch: digest for epoch, digest in claimed.items() if digest and epoch in record.digests}
    for epoch, digest in compared.items():
        if digest != record.digests[epoch]:
            raise BadInputError(
                f"{path} is not of {record.path}: the state after epoch {epoch} is another\n"
                f"  digest in the certificate: {digest}\n  digest in the run:         {record.digests[epoch]}\n"
                "  leave --certificate out, or name this run's"
            )
    if not compared:
        raise BadInputError(
            f"{path} says of no epoch of {record.path} which state it verified\n"
            "  leave --certificate out, or name this run's"
        )
