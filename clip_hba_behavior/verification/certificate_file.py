"""The file of a certificate: JSON, to be kept or handed to a reviewer; never replaced."""

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text, quote
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.version import __version__

FORMAT_VERSION = 1
MAX_BYTES = 64 * MIB


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


def read_verification(path: Path) -> dict[str, Any]:
    """Read a certificate of a verification.

    Raises:
        BadInputError: it cannot be read, or is none.
    """
    try:
        with open_text(path, MAX_BYTES) as file:
            content = json.load(file)
        if content["certificate"] != "verification" or content["format_version"] != FORMAT_VERSION:
            raise ValueError(f"it is of the kind {quote(content['certificate'])}")
        [(int(each["epoch"]), str(each["word"]), each["recorded_digest"]) for each in content["epochs"]]
        if content["claim"] is not None:
            [str(content["claim"][key]) for key in ("level", "meaning")]
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise BadInputError(
            f"{path} is no certificate of a verification: {error}\n"
            f"  make one: {command_line('verify', 'checkpoints', 'RUN', '--json', 'FILE')}"
        ) from None
    return dict(content)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value
