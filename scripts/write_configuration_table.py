"""Writes docs/configuration.md from the fields of `Config`, so that the page and the code agree.

Run from anywhere: `python scripts/write_configuration_table.py`. A test compares the page with this script's.
"""

import json
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import FREE_KEYS, RETIRED_KEYS, Config

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by scripts/write_configuration_table.py. Change the fields in config.py, then run it again. -->

A configuration is a YAML file with one `key: value` a line. Every key has a default, so a file names only
what it changes. `clip-hba train CONFIG.yaml --set key=value` overrides a key; the value is YAML, so a list is
`--set 'augmentation=[horizontal_flip, color_jitter]'`. `--set` may be given several times.

- Nothing is guessed: an unknown key, one given twice, a wrong type or value is refused with exit code 2, and
  nothing is written.
- The five data keys (`csv_file` to `prompts_file`) go together: all of them, or none for the synthetic data set.
- `backbone` has a default too, the small CLIP that comes with it. Name your own when you name your data.
- Paths are relative to the directory in which the command is started; `~` is the home directory.
- `clip-hba train CONFIG.yaml --dry-run` prints the configuration with every default filled in, and stops. A run
  keeps the same text as `config.yaml` in its directory.

## Every key

A dash means that the key is empty (`null`) by default.

"""

OLD_KEYS = """\

## Keys of earlier configurations

`cuda`, an integer, still works in place of `device`: `-1` is `cuda` (the first GPU), `0` is `cuda:0`, `1` is
`cuda:1`, and `2` is `cpu`. Giving both `cuda` and `device` is refused. `augmentation: none` means an empty list.

These keys are refused, each with the reason:

| Key | Why |
|---|---|
"""


def configuration_page() -> str:
    """Return the whole page."""
    schemas = Config.model_json_schema()["properties"]
    rows = ["| Key | Type, allowed values | Default | What it does |", "|---|---|---|---|"]
    for key, field in Config.model_fields.items():
        cells = (f"`{key}`", _allowed(schemas[key]), _default(field.default), field.description or "")
        rows.append(f"| {' | '.join(_escaped(cell) for cell in cells)} |")
    free = [key for key in Config.model_fields if key in FREE_KEYS]
    resume = (
        "\n## What a resumed run may change\n\n"
        "`clip-hba resume RUN_DIR --set key=value` takes the keys below; any other must stay as it was. Data and\n"
        "backbone may lie elsewhere, but must have the same content: their digests are\n"
        f"compared.\n\n{', '.join(f'`{key}`' for key in free)}\n"
    )
    retired = [f"| `{key}` | {why} |" for key, why in RETIRED_KEYS.items()]
    return INTRODUCTION + "\n".join(rows) + "\n" + resume + OLD_KEYS + "\n".join(retired) + "\n"


def _allowed(schema: dict[str, Any]) -> str:
    """Say in words what a field's JSON schema lets through."""
    if "anyOf" in schema:  # a type or null; the default tells that it may be empty
        return " or ".join(_allowed(each) for each in schema["anyOf"] if each["type"] != "null")
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        return f"list of {_allowed(schema['items'])}"
    words = {"string": "text", "integer": "integer", "number": "number", "boolean": "`true`, `false`"}
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    return ", ".join([words[schema["type"]], *(f"{limits[key]} {schema[key]}" for key in limits if key in schema)])


def _escaped(cell: str) -> str:
    """Keep a cell from ending early, or from being read as HTML."""
    return cell.replace("|", "\\|").replace("<", "&lt;")


def _default(value: object) -> str:
    return "-" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(configuration_page(), encoding="utf-8")
