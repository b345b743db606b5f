"""A verification as JSON, to be kept or handed to a reviewer."""

import dataclasses
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clip_hba_behavior import __version__
from clip_hba_behavior.reproducibility.record.judge import MEANING
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.verification.outcome import Verification
from clip_hba_behavior.verification.text import closing_line

FORMAT_VERSION = 1
_VERSIONS = ("package", "versions", "variables", "device")
_RECORDED = (*_VERSIONS, "device_model", "host", "digests", "config_digest", "parent", "drift")


def certificate(verification: Verification) -> dict[str, Any]:
    """Return the whole result as plain JSON values; floats that are no numbers become texts."""
    claim = verification.claim()
    environment = verification.environment
    content = {
        "verdict": verification.word().value,
        "exit_code": verification.word().exit_code(),
        "summary": closing_line(verification),
        "claim": None
        if claim is None
        else {"level": claim.level, "meaning": MEANING[claim.level], "reasons": list(claim.reasons)},
        "what": verification.what,
        "config": verification.config,
        "config_digest": digest(verification.config),
        "digests": environment.get("digests", {}),
        "recorded_environment": {key: verification.recorded.get(key) for key in _RECORDED},
        "environment": {key: environment.get(key) for key in (*_VERSIONS, "machine", "git_commit")},
        "problems": list(verification.problems),
        "notes": list(verification.notes),
        "drift": list(verification.drift),
        "epochs": [dataclasses.asdict(each) | {"word": each.word.value} for each in verification.epochs],
        "seconds": round(verification.seconds, 3),
    }
    return headed("verification", content)


def headed(kind: str, content: dict[str, Any]) -> dict[str, Any]:
    """Put in front what every certificate has: kind, form, program and date."""
    head = {
        "certificate": kind,
        "format_version": FORMAT_VERSION,
        "program": f"clip_hba_behavior {__version__}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return head | content


def check_free(path: Path | None) -> None:
    """Refuse, before any work, a certificate's path that is taken or has no directory.

    Raises:
        BadInputError: a file is there already; it would be lost.
    """
    if path is None:
        return
    if path.exists():
        raise BadInputError(f"{path} exists; a certificate is never replaced\n  give another --json")
    if not path.absolute().parent.is_dir():
        raise BadInputError(f"{path} cannot be written: there is no directory {path.absolute().parent}")


def write_certificate(path: Path, content: dict[str, Any]) -> None:
    """Write a certificate; a file that exists is left as it is.

    Raises:
        FileExistsError: it came to be meanwhile.
    """
    publish(path, (json.dumps(_plain(content), indent=1, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value
