"""CLIP tokenizers for tests: a vocabulary in CLIP's layout, its files in every format, and hard texts."""

import functools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

START, END = "<|startoftext|>", "<|endoftext|>"

# First and last code point of stretches of scripts, marks, signs, blanks and controls.
STRETCHES = [
    *[(0x20, 0x7E), (0xA0, 0x17F), (0x180, 0x24F), (0x250, 0x2AF), (0x370, 0x3FF), (0x400, 0x4FF), (0x530, 0x58F)],
    *[(0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xB80, 0xBFF), (0xE00, 0xE7F)],
    *[(0xF00, 0xFFF), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137F), (0x13A0, 0x13FF), (0x1780, 0x17FF)],
    *[(0x1E00, 0x1FFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x10400, 0x1044F)],
    *[(0x1D400, 0x1D7FF), (0x20000, 0x2A6DF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF)],
    *[(0x300, 0x36F), (0x1AB0, 0x1AFF), (0x20D0, 0x20FF), (0xFE20, 0xFE2F), (0x3099, 0x309A)],
    *[(0x00, 0x1F), (0x7F, 0x9F), (0x2000, 0x206F), (0x2070, 0x218B), (0x2190, 0x22FF), (0x2460, 0x24FF)],
    *[(0x1F1E6, 0x1F1FF), (0x1F300, 0x1FAFF), (0xE000, 0xF8FF), (0xE0000, 0xE007F), (0xFFF9, 0xFFFF)],
]
BLANKS = (
    " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u180e\u2000\u2003\u2009\u200a\u200b"
    "\u2028\u2029\u202f\u205f\u3000\ufeff"
)
JOINED = [  # into one picture: families, flags, colours of skin, keys
    *["\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466", "\U0001f3f3\ufe0f\u200d\U0001f308"],
    *["\U0001f44d\U0001f3fd", "\U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5", "\u2764\ufe0f\u200d\U0001f525"],
    *[
        "1\ufe0f\u20e3",
        "\u261d\U0001f3fb",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    ],
]
UNUSUAL = [  # in lower case of another length, or composed and decomposed
    *[
        "\u0130stanbul",
        "STRASSE \u1e9e",
        "\u039f\u0394\u039f\u03a3",
        "\u212a \u212b \u2126",
        "\u01c5 \ufb01 \ufb03",
    ],
    *["e\u0301\u0323", "\uac01 \u1100\u1161\u11a8", "\u0344", "\u0915\u093c", ">\u0338"],
]
SPECIAL = [
    *[START, END, "<|EndOfText|>", "<|STARTOFTEXT|>", "<|endoftext|", "|endoftext|>", "< |endoftext|>"],
    *["<|endoftext|>\u0338", "<|end\u00adoftext|>", "<|endofte\u0301xt|>", "\uff1c|endoftext|\uff1e"],
    *[END + START, f"{END} " * 3, f"{END}s", f"a{START}b", f"<|{END}|>"],
    *["<|image|>", "<|Image|>", "<pad>", "<PAD>", "!", "!!", "red", "RED ", " circles"],
]
WORDS = [
    *["a", "photo", "of", "red", "circles", "man-made", "it's", "I'm", "THEY'RE", "we've", "he'd", "she'll"],
    *["Don'T", "'sixty", "1984", "3.14", "na\u00efve"],
]


@functools.cache
def texts(count: int) -> list[str]:
    """Draw texts that a tokenizer could get wrong; the first is empty and the second is very long."""
    generator = random.Random(0)
    fixed = ["", "long " * 3000, *JOINED, *UNUSUAL, *SPECIAL, BLANKS]
    return (fixed + ["".join(_pieces(generator)) for _ in range(count)])[:count]


def _pieces(generator: random.Random) -> Iterator[str]:
    for _ in range(generator.choice((1, 1, 2, 3, 5, 8, 20))):
        kind = generator.random()
        if kind < 0.3:
            first, last = generator.choice(STRETCHES)
            yield "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 8)))
        elif kind < 0.4:
            yield chr(generator.choice((generator.randrange(0xD800), generator.randrange(0xE000, 0x110000))))
        elif kind < 0.5:
            marks = "".join(chr(generator.randint(0x300, 0x36F)) for _ in range(generator.randint(1, 3)))
            yield generator.choice("aeEoOnszyAuU<>|=") + marks
        elif kind < 0.65:
            word = generator.choice(WORDS)
            yield generator.choice((word, word.upper(), word.title()))
        elif kind < 0.8:
            yield generator.choice(SPECIAL)
        elif kind < 0.9:
            yield generator.choice(JOINED + UNUSUAL)
        yield "".join(generator.choices(BLANKS, k=generator.choice((0, 0, 1, 1, 2))))


@functools.cache
def clip_vocabulary(num_merges: int = 6000) -> tuple[list[str], list[tuple[str, str]]]:
    """Train a vocabulary in CLIP's layout: 256 bytes, the same at a word's end, merges, start and end token."""
    generator = random.Random(1)
    scripts = [range(first, last) for first, last in STRETCHES[:24]]
    words = WORDS * 3 + [
        "".join(chr(generator.choice(script)) for _ in range(generator.randint(2, 6)))
        for script in scripts
        for _ in range(60)
    ]
    lines = [" ".join(generator.choices(words, k=12)) for _ in range(2000)]
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainee.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=num_merges + 512, initial_alphabet=symbols, end_of_word_suffix="</w>", show_progress=False
    )
    trainee.train_from_iterator(lines, trainer)
    merges = [(left, right) for left, right in json.loads(trainee.to_str())["model"]["merges"]]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(left + right for left, right in merges)]
    return [*dict.fromkeys(tokens), START, END], merges


def added(content: str, **properties: object) -> dict[str, object]:
    """Return an added token as tokenizer.json and tokenizer_config.json write it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **plain, "special": True, **properties}


def write_tokenizer(
    directory: Path,
    tokens: list[str],
    merges: list[tuple[str, str]],
    files: str = "tokenizer.json",
    listed: list[dict[str, object]] | None = None,
    **settings: dict[str, object],
) -> str:
    """Write a tokenizer's files.

    Args:
        directory: where to; made if it is not there.
        tokens: in the order of their ids.
        merges: pairs of tokens.
        files: `tokenizer.json`, `vocab.json` for that and merges.txt, or `both`.
        listed: tokenizer.json's added tokens; start and end token if None.
        settings: content of further files, by their name without `.json`.

    Returns:
        The directory, as a name of a tokenizer.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ids = {token: index for index, token in enumerate(tokens)}
    if files in ("tokenizer.json", "both"):
        if listed is None:
            listed = [{"id": ids[token], **added(token)} for token in (START, END)]
        model = {
            "type": "BPE",
            "end_of_word_suffix": "</w>",
            "vocab": ids,
            "merges": [" ".join(each) for each in merges],
        }
        content = {"version": "1.0", "added_tokens": listed, "model": model}
        content |= dict.fromkeys(
            ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
        )
        (directory / "tokenizer.json").write_text(json.dumps(content))
    if files in ("vocab.json", "both"):
        (directory / "vocab.json").write_text(json.dumps(ids))
        lines = ["#version: 0.2", *(" ".join(each) for each in merges)]
        (directory / "merges.txt").write_text("\n".join(lines) + "\n")
    for name, content in settings.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return str(directory)
