"""A verification as JSON values."""

import dataclasses
from typing import Any

from clip_hba_behavior.config import as_digested
from clip_hba_behavior.reproducibility.record.judge import MEANING
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.verification.certificate_file import headed
from clip_hba_behavior.verification.outcome import Verification
from clip_hba_behavior.verification.text import closing_line

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
        "config_digest": digest(as_digested(verification.config)),
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
