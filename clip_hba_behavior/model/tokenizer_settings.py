"""Which tokens a tokenizer's settings name and add, in the order and by the rules of transformers 5.

The order decides the ids of tokens that the vocabulary lacks, and a token's properties decide what of a text
is taken for it. Later rules were laid over earlier ones as the files' format changed; all of them are here.
Source: transformers, `PreTrainedTokenizerBase._from_pretrained` and `__init__`, `TokenizersBackend.__init__`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clip_hba_behavior.model.tokenizer_files import TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import AddedToken

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CLIP_TOKENS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
_PROPERTIES = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
# With these, transformers would take the vocabulary from elsewhere; no CLIP has them.
_UNSUPPORTED = ("fast_tokenizer_files", "gguf_file", "init_inputs", "merges", "tokenizer_object", "vocab")


@dataclass(frozen=True)
class TokenizerSettings:
    """What the settings make of a vocabulary.

    Attributes:
        start_token: the text of the token that comes before each prompt.
        end_token: of the one that comes after it.
        unknown_token: of the one that stands for what the vocabulary lacks.
        added_tokens: all that are found in a text before it is split, in the order to add them.
        split_special_tokens: whether special tokens are not looked for in a text.
    """

    start_token: str
    end_token: str
    unknown_token: str
    added_tokens: "list[AddedToken]"
    split_special_tokens: bool


def tokenizer_settings(files: TokenizerFiles) -> TokenizerSettings:
    """Apply the rules to the files.

    Raises:
        ValueError: a setting is of another form, or one that this program does not know.
    """
    from tokenizers import AddedToken

    settings, added = _merge(files)
    named = {key: settings.get(key, _CLIP_TOKENS.get(key)) for key in _NAMED_TOKENS}
    named.update(_further_named_tokens(settings))
    extra = _list_of_extra(settings.get("extra_special_tokens", settings.get("additional_special_tokens")))
    for key, token in [*named.items(), *(("an extra special token", token) for token in extra)]:
        if not isinstance(token, str | AddedToken | None):
            raise ValueError(f"found {type(token).__name__} as {key}, expected a token")
    if not named["bos_token"] or not named["eos_token"]:
        raise ValueError("found no bos_token or no eos_token, which a CLIP tokenizer has")

    to_add: list[AddedToken | str] = list(added)
    present = {str(token) for token in added}
    for token in [*named.values(), *extra]:
        # `in` tells a text from a token of that text: both are added, and the later one's properties count
        if token is not None and str(token) not in present and token not in to_add:
            to_add.append(token)
    names = {str(token) for token in named.values() if token}
    split = settings.get("split_special_tokens", False)
    if not isinstance(split, bool):
        raise ValueError(f"found {type(split).__name__} as split_special_tokens, expected true or false")
    return TokenizerSettings(
        start_token=str(named["bos_token"]),
        end_token=str(named["eos_token"]),
        unknown_token=str(named["unk_token"]),
        added_tokens=[_made_special(token, names) for token in to_add],
        split_special_tokens=split,
    )


def _made_special(token: "AddedToken | str", names: set[str]) -> "AddedToken":
    from tokenizers import AddedToken

    if isinstance(token, str):
        return AddedToken(token, special=True)
    if str(token) in names:
        token.special = True
    return token


def _merge(files: TokenizerFiles) -> "tuple[dict[str, Any], list[AddedToken]]":
    """Merge the files, those of older kinds too; return the settings, and the added tokens by their ids."""
    settings = dict(files.config)
    for key in _UNSUPPORTED:
        if settings.get(key):
            raise ValueError(f"tokenizer_config.json: found the setting {key}, which this program does not know")
    if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
    # plain texts are kept apart here, so that they come after further tokens with properties
    texts = [key for key in settings if _is_further(key) and isinstance(settings[key], str)]
    further = {key: settings.pop(key) for key in texts}
    if isinstance(settings.get("extra_special_tokens"), dict):
        further.update(settings.pop("extra_special_tokens"))
    if further:
        settings["model_specific_special_tokens"] = further

    tokens: list[tuple[int, AddedToken]] = []  # with their ids; the last one of an id, or of a text, counts
    if "added_tokens_decoder" in settings:  # then the other lists do not count
        for index, fields in settings["added_tokens_decoder"].items():
            tokens.append((int(index), _added_token(fields)))
    else:
        _merge_special_tokens_map(settings, files.special_tokens_map)
        special = {str(settings[key]) for key in _NAMED_TOKENS if settings.get(key)}
        special.update(str(token) for token in _list_of_extra(settings.get("extra_special_tokens")))
        for content, index in files.more_tokens.items():
            is_special = content in special
            properties = {"content": content, "normalized": not is_special, "special": is_special}
            tokens.append((index, _added_token(properties)))
        for fields in files.added_tokens:
            if type(fields.get("id")) is not int:
                raise ValueError("tokenizer.json: found an added token without an id")
            tokens.append((fields["id"], _added_token(fields)))
    by_id, by_content = dict(tokens), {str(token): token for _, token in tokens}
    settings = {key: _revived(value) for key, value in settings.items()}
    for key in _NAMED_TOKENS:
        if settings.get(key) is not None:
            settings[key] = by_content.get(str(settings[key]), settings[key])
    return settings, [by_id[index] for index in sorted(by_id)]


def _merge_special_tokens_map(settings: dict[str, Any], special_tokens_map: dict[str, Any]) -> None:
    for key, value in special_tokens_map.items():
        if key == "extra_special_tokens" and isinstance(value, list):
            merged = list(_list_of_extra(settings.get(key)))
            for token in value:
                token = _added_token({**token, "special": True}) if isinstance(token, dict) else token
                if token not in merged:
                    merged.append(token)
            settings[key] = merged
        elif isinstance(value, dict) and key != "extra_special_tokens":
            settings[key] = _added_token({**value, "special": True})
        else:
            settings[key] = value
    if isinstance(settings.get("extra_special_tokens"), dict):
        settings.setdefault("model_specific_special_tokens", {}).update(settings.pop("extra_special_tokens"))


def _list_of_extra(tokens: Any) -> list[Any]:
    if not isinstance(tokens, list | None):
        raise ValueError("found extra_special_tokens that are no list")
    return tokens or []


def _is_further(key: str) -> bool:
    return key.endswith("_token") and key not in _NAMED_TOKENS


def _further_named_tokens(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens that have a name beyond the seven, such as `image_token`."""
    from tokenizers import AddedToken

    tokens = {key: token for key, token in settings.items() if _is_further(key)}
    explicit = settings.get("model_specific_special_tokens") or {}
    if not isinstance(explicit, dict):
        raise ValueError("found model_specific_special_tokens that are no object")
    return {key: token for key, token in tokens.items() if isinstance(token, str | AddedToken)} | explicit


def _added_token(fields: Any) -> "AddedToken":
    from tokenizers import AddedToken

    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise ValueError("found an added token that is no object with its content")
    return AddedToken(**{key: fields[key] for key in _PROPERTIES if key in fields})


def _revived(value: Any) -> Any:
    """Return a value with each `{"__type": "AddedToken", ...}` in it, at any depth, as that token."""
    if isinstance(value, dict):
        if value.get("__type") == "AddedToken":
            return _added_token(value)
        return {key: _revived(each) for key, each in value.items()}
    return [_revived(each) for each in value] if isinstance(value, list) else value
