"""`manifest.json` of a bundle: the digest of each file, and the facts by which a reader knows the run."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import quote

README, MANIFEST = "README.txt", "manifest.json"
KIND, FORMAT_VERSION = "clip_hba_behavior bundle", 1


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Attributes:
        facts: of the run; see `facts_of`.
        left_out: files of the run that the bundle does not hold.
        files: by name the number of bytes and the SHA-256 of each, itself apart.
    """

    facts: dict[str, Any]
    left_out: tuple[str, ...]
    files: dict[str, tuple[int, str]]

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        content = {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "facts": self.facts,
            "left_out": list(self.left_out),
            "files": {name: {"bytes": size, "sha256": sha256} for name, (size, sha256) in self.files.items()},
        }
        return (json.dumps(content, indent=1) + "\n").encode()


def read_manifest(content: bytes, path: Path) -> Manifest:
    """Read a manifest.

    Args:
        content: of the file.
        path: of the bundle, for the message.

    Raises:
        BadInputError: it is none, or of another version.
    """
    try:
        found = json.loads(content)
        if found["kind"] != KIND:
            raise ValueError(f"its kind is {quote(found['kind'])}")
        if found["format_version"] != FORMAT_VERSION:
            raise BadInputError(
                f"{path} has another format\n  found:    format_version {quote(found['format_version'])}\n"
                f"  expected: format_version {FORMAT_VERSION}\n  check it with the version that wrote it"
            )
        files = {str(name): (int(each["bytes"]), str(each["sha256"])) for name, each in found["files"].items()}
        return Manifest(dict(found["facts"]), tuple(map(str, found["left_out"])), files)
    except BadInputError:
        raise
    except (ValueError, ArithmeticError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{path} is no bundle: its {MANIFEST} cannot be read: {error}") from None
