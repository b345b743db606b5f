"""What cannot stay where it was recorded is kept here, complete, with a record of why beside it.

`quarantine/<name>.<n>` is the original and `quarantine/<name>.<n>.json` the record: a repaired file of lines,
lines that a run did not repeat, a damaged checkpoint. Nothing in this folder is ever removed.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.reproducibility.state.system import sync_directory
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text

FOLDER = "quarantine"
_MAX_RECORD = 16 * MIB


def keep_content(run: Path, name: str, content: bytes, record: Mapping[str, Any]) -> dict[str, Any]:
    """Keep bytes of a run's file.

    Args:
        run: the run's directory.
        name: the file's path within it.
        content: what is kept.
        record: why, and what was done instead.

    Returns:
        The record as it was written, with `file`, `original`, `sha256` and `date`. The same content of the same
        file, left by a process that was killed before it went on, is not kept twice.
    """
    sha256 = hashlib.sha256(content).hexdigest()
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    path = next((each for each in _originals(folder, name) if _digest(each) == sha256), None)
    if path is None:
        path = _free(folder, name)
        publish(path, content)
    return _write_record(run, name, path, sha256, record)


def keep_file(run: Path, path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Move a file of a run out of the way, as it is; see `keep_content`."""
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    name = path.relative_to(run).as_posix()
    target = _free(folder, path.name)
    path.rename(target)
    sync_directory(path.parent)
    sync_directory(folder)
    return _write_record(run, name, target, _digest(target), record)


def read_records(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's quarantine, in the order in which they were written."""
    folder = run / FOLDER
    found = []
    for path in folder.glob("*.json") if folder.is_dir() else []:
        try:
            with open_text(path, _MAX_RECORD) as file:
                record = json.load(file)
        except (OSError, ValueError, RecursionError) as error:
            why = f"its record cannot be read: {error}"
            record = {"file": path.name, "original": f"{FOLDER}/{path.stem}", "why": why}
        found.append(_checked(record, path))
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix != ".json" and not path.with_name(f"{path.name}.json").exists():
            found.append({"file": path.name, "original": f"{FOLDER}/{path.name}", "why": "kept without a record"})
    yield from sorted(found, key=lambda each: (str(each.get("date")), str(each.get("original"))))


def _checked(record: Any, path: Path) -> dict[str, Any]:
    """Return a record if it is one; else one that says so."""
    remade = record.get("remade", []) if isinstance(record, dict) else None
    if isinstance(remade, list) and all(isinstance(each, dict) for each in remade):
        return dict(record)
    return {"file": path.name, "original": f"{FOLDER}/{path.stem}", "why": "its record is not valid"}


def describe(record: Mapping[str, Any]) -> str:
    """Return what a record says, in a sentence for log and verifier."""
    text = f"{record.get('file')}: {record.get('why')}; the original is {record.get('original')}"
    remade = record.get("remade") or []
    if remade:
        sources = dict.fromkeys(str(each.get("source")) for each in remade)
        text += f"; {len(remade)} line{'s' if len(remade) > 1 else ''} remade from {', '.join(sources)}"
    elif record.get("faults"):
        text += "; no line was made again"
    return text


def _write_record(run: Path, name: str, path: Path, sha256: str, record: Mapping[str, Any]) -> dict[str, Any]:
    content = {
        "file": name,
        "original": path.relative_to(run).as_posix(),
        "sha256": sha256,
        "date": datetime.now(UTC).isoformat(timespec="microseconds"),
        **record,
    }
    target = path.with_name(f"{path.name}.json")
    if not target.exists():
        publish(target, (json.dumps(content, indent=1) + "\n").encode())
    return content


def _originals(folder: Path, name: str) -> list[Path]:
    base = Path(name).name
    return [each for each in folder.glob(f"{base}.*") if each.name.removeprefix(f"{base}.").isdecimal()]


def _free(folder: Path, name: str) -> Path:
    numbers = [int(each.name.rpartition(".")[2]) for each in _originals(folder, name)]
    return folder / f"{Path(name).name}.{max(numbers, default=0) + 1}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
