import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from transformers import CLIPTokenizer

from clip_hba_behavior.model import tokenizer_files
from clip_hba_behavior.model.hub import pretrained_files
from clip_hba_behavior.model.tokenizer import load_tokenizer
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_tokenizers import END, START, write_tokenizer

TOKENS = [*"ab#", *(f"{letter}</w>" for letter in "ab#"), "ab", "ab</w>", "##</w>", START, END]
MERGES = [("a", "b"), ("a", "b</w>"), ("#", "#</w>")]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refusal(name: object) -> str:
    with pytest.raises(BadInputError) as caught:
        load_tokenizer(str(name))
    lines = str(caught.value).split("\n")
    assert lines[0].startswith(f"tokenizer {name} could not be loaded: ")
    assert lines[1:] == ["  name a directory in Hugging Face format or a model on the hub"]
    return lines[0].split("could not be loaded: ")[1]


def test_merges_are_read_with_both_kinds_of_line_ends(tmp_path: Path) -> None:
    name = write_tokenizer(tmp_path, TOKENS, MERGES, "vocab.json")
    unix = load_tokenizer(name).encode("ab abab ##")
    assert unix == [9, 7, 6, 7, 8, 10]
    merges = (tmp_path / "merges.txt").read_bytes()
    (tmp_path / "merges.txt").write_bytes(merges.replace(b"\n", b"\r\n"))
    assert (
        load_tokenizer(name).encode("ab abab ##")
        == unix
        == CLIPTokenizer.from_pretrained(name)("ab abab ##")["input_ids"]
    )
    (tmp_path / "merges.txt").write_bytes(merges.removesuffix(b"\n"))
    assert load_tokenizer(name).encode("ab abab ##") == unix


def test_the_home_directory_may_be_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_tokenizer(tmp_path / "clip", TOKENS, MERGES)
    assert load_tokenizer("~/clip").num_tokens == 11


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none") == "there is no such directory"
    assert refusal("./models/clip") == "there is no such directory"
    assert refusal(tmp_path) == "found no tokenizer.json, and in its place no vocab.json and merges.txt"
    (tmp_path / "vocab.json").write_text("{}")
    assert refusal(tmp_path) == "found no tokenizer.json, and in its place no merges.txt"
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "file") == "found a file, expected a directory or a name on the hub"


def test_a_link_to_nothing_is_not_taken_for_a_file_left_out(tmp_path: Path) -> None:
    name = write_tokenizer(tmp_path, TOKENS, MERGES)
    (tmp_path / "tokenizer_config.json").symlink_to("gone")
    assert refusal(name).startswith("tokenizer_config.json: [Errno 2] No such file")


@pytest.mark.parametrize("filename", ["tokenizer.json", "vocab.json", "merges.txt"])
def test_a_file_of_another_kind_or_too_large_is_refused(
    filename: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_tokenizer(
        tmp_path, TOKENS, MERGES, "tokenizer.json" if filename == "tokenizer.json" else "vocab.json"
    )
    monkeypatch.setattr(tokenizer_files, "MAX_BYTES", 10)
    assert "bytes, expected at most 10" in refusal(name)
    monkeypatch.undo()
    (tmp_path / filename).unlink()
    os.mkfifo(tmp_path / filename)
    assert refusal(name) == f"{filename}: found a pipe, expected a regular file"


DAMAGE: dict[str, tuple[object, str]] = {
    "no object": ([], "found list, expected a JSON object"),
    "empty": ({}, "found no model of type 'BPE'"),
    "another model": ({"model": {"type": "WordPiece"}}, "found no model of type 'BPE'"),
    "no merges": ({"model": {"vocab": {"a": 0}}, "added_tokens": []}, "found no list of merges"),
    "no added tokens": ({"model": {"vocab": {"a": 0}, "merges": []}}, "found no list of added tokens"),
    "no vocabulary": ({"model": {"vocab": {}, "merges": []}, "added_tokens": []}, "found no vocabulary"),
    "a list as vocabulary": ({"model": {"vocab": ["a"], "merges": []}, "added_tokens": []}, "found no vocabulary"),
    "an id below zero": (
        {"model": {"vocab": {"a": -1}, "merges": []}, "added_tokens": []},
        "tokenizer.json: found -1 as the id of a, expected an integer from 0",
    ),
    "a merge of three": (
        {"model": {"vocab": {"a": 0}, "merges": ["a a a"]}, "added_tokens": []},
        "found the merge 'a a a', expected two tokens",
    ),
    "a merge of no tokens": (
        {"model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}, "added_tokens": []},
        "Token `b` out of vocabulary",
    ),
    "an added token without an id": (
        {"model": {"vocab": {"a": 0}, "merges": []}, "added_tokens": [{"content": "b"}]},
        "found an added token without an id",
    ),
}


@pytest.mark.parametrize(("content", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_tokenizer_json_of_another_form_is_refused(content: object, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert message in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b'{"model": ' + b"9" * 5000 + b"}"])
@pytest.mark.parametrize("filename", ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"])
def test_what_is_no_json_is_refused(filename: str, content: bytes, tmp_path: Path) -> None:
    name = write_tokenizer(tmp_path, TOKENS, MERGES)
    (tmp_path / filename).write_bytes(content)
    assert refusal(name).startswith(f"{filename} is not readable as JSON: ")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": 5}, "found int as eos_token, expected a token"),
        ({"eos_token": None}, "found no bos_token or no eos_token"),
        ({"bos_token": ""}, "found no bos_token or no eos_token"),
        ({"bos_token": {"content": START}}, "found dict as bos_token, expected a token"),
        ({"bos_token": {"__type": "AddedToken"}}, "found an added token that is no object with its content"),
        ({"extra_special_tokens": 5}, "found extra_special_tokens that are no list"),
        ({"split_special_tokens": 1}, "found int as split_special_tokens, expected true or false"),
        ({"vocab": {"a": 0}}, "found the setting vocab, which this program does not know"),
        ({"added_tokens_decoder": {"0": "a"}}, "found an added token that is no object with its content"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "invalid literal for int"),
        (
            {"added_tokens_decoder": {"0": {"content": "a", "lstrip": 1}}},
            "'int' object is not an instance of 'bool'",
        ),
    ],
)
def test_settings_of_another_form_are_refused(config: dict[str, object], message: str, tmp_path: Path) -> None:
    assert message in refusal(write_tokenizer(tmp_path, TOKENS, MERGES, tokenizer_config=config))


@pytest.mark.parametrize("filename", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_damaged_file_is_read_or_refused_and_nothing_else(filename: str, tmp_path: Path) -> None:
    files = "vocab.json" if filename in ("vocab.json", "merges.txt") else "tokenizer.json"
    name = write_tokenizer(tmp_path, TOKENS, MERGES, files, tokenizer_config={"eos_token": END, "pad_token": "!"})
    intact = (tmp_path / filename).read_bytes()
    generator = random.Random(filename)
    refused = 0
    for _ in range(200):
        content = bytearray(intact)
        start = generator.randrange(len(content))
        content[start : start + generator.choice((0, 1, 1, 30))] = generator.randbytes(generator.choice((0, 1, 2)))
        (tmp_path / filename).write_bytes(content)
        try:
            load_tokenizer(name)
        except BadInputError:
            refused += 1
    assert refused > 20


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Fill a cache of the hub with a model of one commit."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def fill(name: str, files: str, **settings: dict[str, object]) -> Path:
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text(COMMIT)
        write_tokenizer(repository / "snapshots" / COMMIT, TOKENS, MERGES, files, **settings)
        return repository

    return fill


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab.json", "both"])
def test_offline_a_tokenizer_comes_from_the_hubs_cache(files: str, hub: Callable[..., Path]) -> None:
    hub("openai/clip", files, tokenizer_config={"pad_token": "<pad>"})
    expected, found = CLIPTokenizer.from_pretrained("openai/clip"), load_tokenizer("openai/clip")
    assert found.num_tokens == len(expected) == 12
    assert found.encode("abab <pad>") == expected("abab <pad>")["input_ids"]


def test_offline_what_the_hubs_cache_lacks_is_named(hub: Callable[..., Path]) -> None:
    assert refusal("openai/clip") == "found no tokenizer.json, and in its place no vocab.json and merges.txt"
    assert refusal("openai/cl?p").startswith("Repo id must")


def test_without_a_connection_a_file_is_absent_only_if_the_cache_knows(
    hub: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's library cannot tell a file that is not there from one it could not ask for."""
    repository = hub("openai/clip", "tokenizer.json")
    asked = []

    def unconnected(name: str, filename: str, revision: str | None) -> str:
        asked.append(filename)
        path = repository / "snapshots" / COMMIT / filename
        if not path.exists():
            raise LocalEntryNotFoundError("no connection")
        return str(path)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unconnected)
    assert "the hub cannot be reached, and its cache does not hold tokenizer_config.json" in refusal("openai/clip")
    (repository / ".no_exist" / COMMIT).mkdir(parents=True)
    for filename in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (repository / ".no_exist" / COMMIT / filename).touch()
    asked.clear()
    assert load_tokenizer("openai/clip").num_tokens == 11
    assert asked == ["tokenizer.json"]


def test_what_was_read_from_the_hubs_cache_is_found_without_the_hub(
    hub: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer has no config.json: the hub would be asked for it, which may be out of reach."""
    repository = hub("openai/clip", "tokenizer.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("the hub is asked"))
    snapshot = repository / "snapshots" / COMMIT
    expected = {repository / "refs/main", snapshot, snapshot / "tokenizer.json"}
    assert set(pretrained_files("openai/clip")) == expected
    assert list(pretrained_files(str(snapshot))) == [snapshot, snapshot / "tokenizer.json"]
    (repository / "refs/main").unlink()
    assert list(pretrained_files("openai/clip")) == [repository / "refs/main"], "nothing to be kept by"


def test_all_files_are_of_the_commit_of_the_first(
    hub: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub("openai/clip", "vocab.json", tokenizer_config={})
    asked = []
    download = huggingface_hub.hf_hub_download

    def record(name: str, filename: str, revision: str | None) -> str:
        asked.append((filename, revision))
        return download(name, filename, revision=revision)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", record)
    load_tokenizer("openai/clip")
    assert asked[:3] == [("tokenizer.json", None), ("vocab.json", None), ("merges.txt", COMMIT)]
    assert {revision for _, revision in asked[2:]} == {COMMIT}
