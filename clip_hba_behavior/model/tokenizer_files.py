"""The files of a CLIP tokenizer: found in a directory or on the Hugging Face hub, and read within bounds."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_hba_behavior.model.backbone_names import is_a_path
from clip_hba_behavior.model.hub import PretrainedFiles
from clip_hba_behavior.reproducibility.state.untrusted import MIB, open_text, quote, shown

MAX_BYTES = 64 * MIB  # CLIP's largest file, tokenizer.json, has some 4 MiB

_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "merges.txt")
_SETTINGS_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say, checked for its form and not yet applied.

    Attributes:
        vocabulary: each token's id.
        merges: the pairs of tokens that become one, the first of them first.
        added_tokens: tokenizer.json's list of them; empty if the vocabulary is from vocab.json.
        config: tokenizer_config.json's content; empty if there is none.
        special_tokens_map: special_tokens_map.json's content; empty if there is none.
        more_tokens: ids by token, from added_tokens.json; empty if there is none.
    """

    vocabulary: dict[str, int]
    merges: list[tuple[str, str]]
    added_tokens: list[dict[str, Any]]
    config: dict[str, Any]
    special_tokens_map: dict[str, Any]
    more_tokens: dict[str, int]


def find_tokenizer_files(name: str) -> dict[str, Path]:
    """Find a tokenizer's files: tokenizer.json or else vocab.json and merges.txt, and its settings.

    Args:
        name: a directory, or a name on the hub; what the hub's cache holds is not downloaded again.

    Returns:
        The paths of those that there are, by name.

    Raises:
        OSError: there is no such directory, or a file cannot be had.
        ValueError: the hub cannot have a tokenizer of that name.
    """
    directory = Path(name).expanduser()
    if directory.is_file():
        raise OSError("found a file, expected a directory or a name on the hub")
    if not directory.is_dir() and is_a_path(name):
        raise OSError("there is no such directory")
    files = PretrainedFiles(str(directory) if directory.is_dir() else name)
    found: dict[str, Path] = {}
    for each in _VOCABULARY_FILES + _SETTINGS_FILES:
        if each in _VOCABULARY_FILES and "tokenizer.json" in found:
            continue  # it holds what the other two do
        path = files.find(each)
        if path is not None:
            found[each] = path
    return found


def read_tokenizer_files(name: str) -> TokenizerFiles:
    """Read a tokenizer's files.

    Args:
        name: as of `find_tokenizer_files`.

    Raises:
        OSError: there is no such directory, or a file is missing, too large or cannot be had.
        ValueError: a file has content of another form, or a name that the hub cannot have.
    """
    found = find_tokenizer_files(name)
    vocabulary, merges, added_tokens = _read_vocabulary(found)
    config, special_tokens_map, more_tokens = (
        _read_object(found[each]) if each in found else {} for each in _SETTINGS_FILES
    )
    if not all(type(index) is int for index in more_tokens.values()):
        raise ValueError("added_tokens.json: found an id that is no integer")
    return TokenizerFiles(vocabulary, merges, added_tokens, config, special_tokens_map, more_tokens)


def _read_vocabulary(found: dict[str, Path]) -> tuple[dict[str, int], list[tuple[str, str]], list[dict[str, Any]]]:
    """Read vocabulary, merges and added tokens. As in transformers, tokenizer.json counts before the two."""
    if "tokenizer.json" in found:
        source = "tokenizer.json"
        content = _read_object(found[source])
        model, added_tokens = content.get("model"), content.get("added_tokens")
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
            raise ValueError(f"{source}: found no model of type 'BPE', which a CLIP tokenizer has")
        vocabulary, merges = model.get("vocab"), model.get("merges")
        if not isinstance(merges, list):
            raise ValueError(f"{source}: found no list of merges")
        if not isinstance(added_tokens, list) or not all(isinstance(each, dict) for each in added_tokens):
            raise ValueError(f"{source}: found no list of added tokens")
    elif "vocab.json" in found and "merges.txt" in found:
        source = "vocab.json"
        vocabulary, added_tokens = _read_object(found[source]), []
        # splitlines would split at more characters
        lines = _read_text(found["merges.txt"]).removesuffix("\n").split("\n")
        merges = [line.removesuffix("\r") for line in lines if not line.startswith("#version")]
    else:
        absent = " and ".join(each for each in ("vocab.json", "merges.txt") if each not in found)
        raise OSError(f"found no tokenizer.json, and in its place no {absent}")
    return _checked_vocabulary(vocabulary, source), [_pair(merge) for merge in merges], added_tokens


def _checked_vocabulary(vocabulary: object, source: str) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise ValueError(f"{source}: found no vocabulary, expected an object with an id for each token")
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < 2**32:
            raise ValueError(
                f"{source}: found {quote(index)} as the id of {shown(token)}, expected an integer from 0"
            )
    return vocabulary


def _pair(merge: object) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"found the merge {quote(merge)}, expected two tokens")
    return parts[0], parts[1]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path.name}: found {type(content).__name__}, expected a JSON object")
    return content


def _read_text(path: Path) -> str:
    try:
        with open_text(path, MAX_BYTES, newline="") as file:
            return file.read()
    except OSError as error:
        raise OSError(f"{path.name}: {error}") from error
