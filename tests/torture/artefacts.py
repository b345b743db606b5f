"""What a run leaves behind, compared with what the uninterrupted one did."""

import re
from pathlib import Path

LEFT_BEHIND = re.compile(r"\.tmp$|\.pending$|^quarantine$|filling\.jsonl$")


def artefacts(run: Path) -> dict[str, bytes]:
    """Read everything that a run leaves behind: all names, and the bytes of what must repeat."""
    found = {}
    for directory in (run, Path(f"{run}.cache")):
        for path in sorted(directory.rglob("*")):
            name = str(path.relative_to(directory))
            if directory != run and path.parent.parent == directory:
                name = f"cache {path.parent.name}/{path.name}"
            repeats = re.search(r"\.(pth|csv|jsonl|bin)$|best\.json|index\.json|key\.json", name)
            found[name] = path.read_bytes() if repeats else b""
    return found


def differences(wanted: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Name each file that is missing, left behind, or not the same byte for byte."""
    lines = [f"missing: {name}" for name in wanted if name not in found]
    for name in found:
        if name not in wanted:
            what = "left behind" if LEFT_BEHIND.search(name) else "not in the uninterrupted run"
            lines.append(f"{what}: {name}")
        elif wanted[name] != found[name]:
            lines.append(f"differs: {name}")
    return lines
