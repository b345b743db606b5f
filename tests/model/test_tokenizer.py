"""The oracle is transformers' CLIPTokenizer; the package itself does without transformers here."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from clip_hba_behavior.data.standin import PROMPTS, standin_backbone_directory
from clip_hba_behavior.model.tokenizer import load_tokenizer, tokenize_prompts
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_tokenizers import END, START, added, clip_vocabulary, texts, write_tokenizer

VOCAB_SIZE, CONTEXT_LENGTH = 636, 32  # of the package's own CLIP


def assert_equal_to_transformers(name: str, count: int) -> list[list[int]]:
    """Compare all that a run takes from a tokenizer; return the ids."""
    expected, found = CLIPTokenizer.from_pretrained(name), load_tokenizer(name)
    assert found.num_tokens == len(expected)
    assert found.end_token == expected.eos_token_id
    ids = [found.encode(text) for text in texts(count)]
    for text, ours, theirs in zip(texts(count), ids, expected(texts(count))["input_ids"], strict=True):
        assert ours == theirs, repr(text[:300])
    return ids


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests after these fork; the library complains if it was parallel before."""
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def test_ids_of_the_packages_own_tokenizer_equal_those_of_transformers() -> None:
    assert_equal_to_transformers(str(standin_backbone_directory()), 10_000)


def test_ids_of_the_recorded_runs_tokenizer_equal_those_of_transformers(reference: Path) -> None:
    if not (reference / "backbone/tokenizer.json").is_file():
        pytest.skip("the recorded reference run has no tokenizer")
    assert_equal_to_transformers(str(reference / "backbone"), 10_000)


def typed(content: str, **properties: object) -> dict[str, object]:
    """Return an added token as older versions of tokenizer_config.json write it."""
    return {"__type": "AddedToken", **plain(content, normalized=True), **properties}


def plain(content: str, **properties: object) -> dict[str, object]:
    """Return an added token as special_tokens_map.json writes it."""
    return {key: value for key, value in added(content, **properties).items() if key != "special"}


NAMES = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
SETTINGS: dict[str, dict[str, dict[str, object]]] = {
    "none": {},
    "of transformers 5": {"tokenizer_config": {**NAMES, "backend": "tokenizers", "model_max_length": 77}},
    "of OpenAI's models": {
        "tokenizer_config": {
            **{key: typed(token) for key, token in NAMES.items() if key != "pad_token"},
            **{"pad_token": END, "add_prefix_space": False, "errors": "replace", "do_lower_case": True},
            **{"name_or_path": "./clip", "model_max_length": 77, "special_tokens_map_file": "./map.json"},
        },
        "special_tokens_map": {
            **{key: plain(token, normalized=True) for key, token in NAMES.items() if key != "pad_token"},
            "pad_token": END,
        },
    },
    "of transformers 4": {
        "tokenizer_config": {
            **{**NAMES, "pad_token": "!", "additional_special_tokens": []},
            "added_tokens_decoder": {
                "0": added("!"),
                "6641": added(START, normalized=True),
                "6642": added(END, normalized=False),
            },
        },
        "special_tokens_map": {"eos_token": "not read"},
    },
    "a new padding token": {"tokenizer_config": {**NAMES, "pad_token": "<pad>"}},
    "a padding token of the vocabulary": {"special_tokens_map": {"pad_token": "!"}},
    "no padding token": {"tokenizer_config": {"pad_token": None}},
    "another end token": {"tokenizer_config": {"eos_token": "<|image|>", "bos_token": typed("<pad>")}},
    "new special tokens": {"tokenizer_config": {"additional_special_tokens": ["<|image|>", typed("<pad>")]}},
    "special tokens with names": {
        "tokenizer_config": {"image_token": "<|image|>", "extra_special_tokens": {"first_token": "<pad>"}},
        "special_tokens_map": {"last_token": plain("red", rstrip=True)},
    },
    "extra special tokens twice": {
        "tokenizer_config": {"extra_special_tokens": ["<pad>"]},
        "special_tokens_map": {"extra_special_tokens": [plain("<|image|>", normalized=True), "<pad>"]},
    },
    "special tokens split": {"tokenizer_config": {"eos_token": typed(END), "split_special_tokens": True}},
    "properties left out": {
        "tokenizer_config": {"eos_token": {"__type": "AddedToken", "content": END}},
        "special_tokens_map": {"bos_token": {"content": START}},
    },
    "settings without effect": {
        "tokenizer_config": {"do_lower_case": False, "add_bos_token": False, "add_eos_token": False},
    },
    "added_tokens.json": {
        "added_tokens": {"<|image|>": 6643, END: 6642, " circles": 6644},
        "special_tokens_map": {"eos_token": END},
    },
    "one id twice": {
        "tokenizer_config": {"eos_token": typed("<pad>", single_word=True)},
        "added_tokens": {"<pad>": 6642},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json", "both"])
def test_ids_of_a_clip_vocabulary_equal_those_of_transformers(
    files: str, settings: dict[str, dict[str, object]], tmp_path: Path
) -> None:
    tokens, merges = clip_vocabulary()
    count = 10_000 if settings is SETTINGS["of OpenAI's models"] else 300
    assert_equal_to_transformers(write_tokenizer(tmp_path, tokens, merges, files, **settings), count)


@pytest.mark.parametrize("present", [[], [START], [END]])
def test_ids_without_the_special_tokens_in_the_vocabulary_equal_those_of_transformers(
    present: list[str], tmp_path: Path
) -> None:
    tokens, merges = clip_vocabulary()
    tokens = [*tokens[:-2], *present]
    assert_equal_to_transformers(write_tokenizer(tmp_path / "vocab", tokens, merges, "vocab.json"), 300)
    listed = [{"id": index, **added(token)} for index, token in ((7, END), (3, START))]
    assert_equal_to_transformers(write_tokenizer(tmp_path / "json", tokens, merges, listed=listed), 300)


def test_added_tokens_with_every_property_equal_those_of_transformers(tmp_path: Path) -> None:
    tokens, merges = clip_vocabulary()
    generator = random.Random(0)
    for number in range(15):
        listed = [
            {"id": index, **{key: generator.random() < 0.5 for key in added("")}, "content": content}
            for index, content in enumerate(["red", "<|image|>", " circles", "<pad>", "!", "\xe9", END, START])
        ]
        name = write_tokenizer(tmp_path / str(number), tokens, merges, listed=listed)
        assert_equal_to_transformers(name, 300)


def test_the_comparison_fails_if_a_merge_is_missing(tmp_path: Path) -> None:
    tokens, merges = clip_vocabulary()
    complete = write_tokenizer(tmp_path / "complete", tokens, merges)
    crippled = write_tokenizer(tmp_path / "crippled", tokens, merges[1:])
    assert assert_equal_to_transformers(complete, 300) != assert_equal_to_transformers(crippled, 300)


def test_the_comparison_fails_if_a_token_is_no_longer_special(tmp_path: Path) -> None:
    tokens, merges = clip_vocabulary()
    with_image = write_tokenizer(tmp_path / "with", tokens, merges, tokenizer_config={"image_token": "<|image|>"})
    without = write_tokenizer(tmp_path / "without", tokens, merges)
    assert assert_equal_to_transformers(with_image, 300) != assert_equal_to_transformers(without, 300)


ONLY_WHAT_IS_NEEDED = """
import sys
from clip_hba_behavior.data.standin import standin_backbone_directory
from clip_hba_behavior.model.tokenizer import load_tokenizer
assert not {"tokenizers", "huggingface_hub", "transformers"} & sys.modules.keys()
load_tokenizer(str(standin_backbone_directory()))
assert not {"huggingface_hub", "transformers"} & sys.modules.keys()
"""


def test_libraries_are_imported_when_they_are_needed_and_transformers_never() -> None:
    subprocess.run([sys.executable, "-c", ONLY_WHAT_IS_NEEDED], check=True)


def test_prompts_are_tokenised_to_the_longest_with_their_end_positions() -> None:
    directory = standin_backbone_directory()
    tokens = json.loads((directory / "config.json").read_text())["text_config"]
    token_ids, ends = tokenize_prompts(PROMPTS, str(directory), None, VOCAB_SIZE, CONTEXT_LENGTH)
    assert token_ids.shape == (66, int(ends.max()) + 1)
    assert token_ids.dtype == ends.dtype == torch.int64
    for row, end in zip(token_ids, ends, strict=True):
        assert row[0] == tokens["bos_token_id"]
        assert (row[end:] == tokens["eos_token_id"]).all()
        assert (row[:end] != tokens["eos_token_id"]).all()


def test_a_tokenizer_that_is_named_is_used_instead_of_the_backbones(tmp_path: Path) -> None:
    weights = tmp_path / "clip.pt"
    weights.touch()
    name = str(standin_backbone_directory())
    named, _ = tokenize_prompts(PROMPTS, str(weights), name, VOCAB_SIZE, CONTEXT_LENGTH)
    assert torch.equal(named, tokenize_prompts(PROMPTS, name, None, VOCAB_SIZE, CONTEXT_LENGTH)[0])


def test_a_weight_file_needs_a_tokenizer_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    path.touch()
    with pytest.raises(BadInputError, match="is a weight file and brings no tokenizer\n  set tokenizer to"):
        tokenize_prompts(PROMPTS, str(path), None, VOCAB_SIZE, CONTEXT_LENGTH)
    with pytest.raises(BadInputError, match=r"tokenizer .*clip\.pt could not be loaded: found a file"):
        tokenize_prompts(PROMPTS, "unused", str(path), VOCAB_SIZE, CONTEXT_LENGTH)


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(
        BadInputError, match=r"does not belong to the backbone\n  found:    636 tokens\n  expected: 120 tokens"
    ):
        tokenize_prompts(PROMPTS, "unused", str(standin_backbone_directory()), 120, CONTEXT_LENGTH)


def test_token_ids_beyond_the_backbones_embeddings_are_refused(tmp_path: Path) -> None:
    name = str(shutil.copytree(standin_backbone_directory(), tmp_path / "gap"))
    content = json.loads((tmp_path / "gap/tokenizer.json").read_text())
    content["model"]["vocab"]["<|endoftext|>"] = 99999
    (tmp_path / "gap/tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(BadInputError, match=r"found:    token id 99999\n  expected: token ids below 636"):
        tokenize_prompts(PROMPTS, "unused", name, VOCAB_SIZE, CONTEXT_LENGTH)


def test_the_two_token_tokenizer_that_transformers_builds_in_silence_is_refused(tmp_path: Path) -> None:
    name = str(shutil.copytree(standin_backbone_directory(), tmp_path / "half"))
    (tmp_path / "half/tokenizer.json").unlink()
    assert len(CLIPTokenizer.from_pretrained(name)) == 2
    with pytest.raises(BadInputError, match=r"could not be loaded: found no tokenizer\.json, and in its place no"):
        tokenize_prompts(PROMPTS, "unused", name, VOCAB_SIZE, CONTEXT_LENGTH)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    name = str(standin_backbone_directory())
    with pytest.raises(
        BadInputError, match=r"a prompt is too long: 'word .*\n  found:    \d+ tokens\n  expected:"
    ):
        tokenize_prompts(["word " * 200, *PROMPTS[1:]], name, None, VOCAB_SIZE, CONTEXT_LENGTH)


def test_a_prompt_that_the_vocabulary_cannot_hold_is_refused(tmp_path: Path) -> None:
    name = write_tokenizer(tmp_path, ["a</w>", START, END], [], tokenizer_config={"unk_token": "no token"})
    assert load_tokenizer(name).encode("a a") == [1, 0, 0, 2]
    with pytest.raises(BadInputError, match="could not tokenise the prompts"):
        tokenize_prompts(["b"], name, None, 4, CONTEXT_LENGTH)
