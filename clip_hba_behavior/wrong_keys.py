"""What a person is told of wrong keys and values of a file: what was found, what is expected or meant."""

import difflib
from collections.abc import Collection
from typing import Any

from clip_hba_behavior.reproducibility.state.untrusted import quote, shown

# What other programs call a key, where no likeness tells.
_OTHER_NAMES = {
    "learning_rate": "lr",
    "seed": "random_seed",
    "bs": "batch_size",
    "patience": "early_stopping_patience",
    "wd": "weight_decay",
    "model": "backbone",
    "output_dir": "run_dir",
    "image_dir": "img_dir",
    "workers": "num_workers",
    "threads": "num_threads",
}
# What is expected, where pydantic says it in words of its own.
_EXPECTED = {
    "list_type": "expected a list, such as [a, b]",
    "dict_type": "expected keys with values, as in {key: value}",
    "model_type": "expected keys with values, as in {key: value}",
    "bool_type": "expected true or false",
    "string_type": "expected a text",
}


def explain(detail: Any, keys: Collection[str], page: str) -> str:
    """Return what is wrong with one value of a file, for a person.

    Args:
        detail: one of a `ValidationError`'s errors.
        keys: those that there are where the value is.
        page: where they are described.
    """
    location = shown(".".join(str(part) for part in detail["loc"]))
    if detail["type"] == "extra_forbidden":
        near = suggestion(str(detail["loc"][-1]), keys)
        return f"{location}: no such key; {f'did you mean {near}?' if near else f'see {page}'}"
    if detail["type"] == "missing":
        return f"{location}: not given, and needed; see {page}"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected").rstrip(".")
    message = _EXPECTED.get(detail["type"], message)
    return f"{location}: found {quote(detail['input'])}, {message}" if location else message


def suggestion(key: str, keys: Collection[str]) -> str | None:
    """Return the key that is probably meant by one that is not there; None if nothing is like it."""
    other_name = _OTHER_NAMES.get(key.lower().replace("-", "_"))
    if other_name in keys:
        return other_name
    return next(iter(difflib.get_close_matches(key, keys, n=1)), None)
