"""The backbone's tokenizer: prompts to the token ids that transformers' CLIPTokenizer (5.x) gives.

As there, normalizer and pre-tokenizer are CLIP's own, whatever tokenizer.json says of them; vocabulary,
merges, added and special tokens are the files'. tests/model/test_tokenizer.py compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from clip_hba_behavior.model.backbone_names import refuse_no_tokenizer
from clip_hba_behavior.model.tokenizer_files import read_tokenizer_files
from clip_hba_behavior.model.tokenizer_settings import tokenizer_settings
from clip_hba_behavior.reproducibility.state.errors import BadInputError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# OpenAI's: the special tokens, English endings, words, single digits, and runs of anything else.
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True)
class PromptTokenizer:
    """A CLIP tokenizer.

    Attributes:
        backend: the library's object, set up.
        num_tokens: size of its vocabulary, with the added tokens.
        end_token: the id that every text's ids end with.
    """

    backend: "Tokenizer"
    num_tokens: int
    end_token: int

    def encode(self, text: str) -> list[int]:
        """Return a text's token ids, with the start and the end token; raises whatever the library does."""
        return list(self.backend.encode(text).ids)


def load_tokenizer(name: str) -> PromptTokenizer:
    """Load a CLIP tokenizer.

    Args:
        name: a directory with tokenizer.json, or with vocab.json and merges.txt; or a name on the hub.

    Raises:
        BadInputError: it is not there, or its files make no CLIP tokenizer.
    """
    try:
        return _load(name)
    except Exception as error:  # the libraries raise a dozen kinds, none their own
        raise BadInputError(
            f"tokenizer {name} could not be loaded: {_reason(error)}\n"
            "  name a directory in Hugging Face format or a model on the hub"
        ) from error


def _load(name: str) -> PromptTokenizer:
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    files = read_tokenizer_files(name)
    settings = tokenizer_settings(files)
    tokenizer = Tokenizer(
        models.BPE(
            vocab=files.vocabulary,
            merges=files.merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            unk_token=settings.unknown_token,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_tokens(settings.added_tokens)
    tokenizer.encode_special_tokens = settings.split_special_tokens
    start, end = (tokenizer.token_to_id(token) for token in (settings.start_token, settings.end_token))
    if start is None or end is None:
        raise ValueError("found no id for the start or the end token")
    tokenizer.post_processor = processors.RobertaProcessing(
        (settings.end_token, end), (settings.start_token, start), trim_offsets=False, add_prefix_space=False
    )
    return PromptTokenizer(tokenizer, tokenizer.get_vocab_size(), end)


def tokenize_prompts(
    prompts: Sequence[str], backbone_name: str, tokenizer_name: str | None, vocab_size: int, context_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenise prompts with the backbone's own tokenizer.

    Args:
        prompts: one a dimension.
        backbone_name: as `resolve_backbone` returns it: a directory, a hub name, or a weight file,
            which brings no tokenizer.
        tokenizer_name: a directory or hub name that is used instead.
        vocab_size: how many tokens the backbone has embeddings of.
        context_length: how many tokens of a prompt the backbone takes.

    Returns:
        Token ids `[prompts, tokens] int64`, as long as the longest prompt and padded with the end
        token (attention is causal, so what stands behind a prompt's end changes nothing), and the
        position of each prompt's end token `[prompts] int64`.

    Raises:
        BadInputError: no tokenizer, one of another vocabulary, or a prompt longer than the context.
    """
    if not tokenizer_name and Path(backbone_name).expanduser().is_file():
        raise BadInputError(
            f"backbone {backbone_name} is a weight file and brings no tokenizer\n"
            "  set tokenizer to a directory or hub name, such as openai/clip-vit-large-patch14"
        )
    name = tokenizer_name or backbone_name
    refuse_no_tokenizer(name)
    tokenizer = load_tokenizer(name)
    if tokenizer.num_tokens != vocab_size:
        raise _does_not_belong(name, f"{tokenizer.num_tokens} tokens", f"{vocab_size} tokens")
    try:
        rows = [tokenizer.encode(prompt) for prompt in prompts]
    except Exception as error:  # such as a character that is no token, where no token stands for such
        raise BadInputError(f"tokenizer {name} could not tokenise the prompts: {_reason(error)}") from error
    largest = max(max(row) for row in rows)
    if largest >= vocab_size:  # as many tokens as the backbone has, but their ids have gaps
        raise _does_not_belong(name, f"token id {largest}", f"token ids below {vocab_size}")
    longest = max(len(row) for row in rows)
    if longest > context_length:
        worst = next(prompt for prompt, row in zip(prompts, rows, strict=True) if len(row) == longest)
        raise BadInputError(
            f"a prompt is too long: {worst!r}\n  found:    {longest} tokens\n"
            f"  expected: at most {context_length}\n  shorten it"
        )
    token_ids = torch.tensor([row + [tokenizer.end_token] * (longest - len(row)) for row in rows])
    return token_ids, torch.tensor([len(row) - 1 for row in rows])


def _does_not_belong(name: str, found: str, expected: str) -> BadInputError:
    return BadInputError(
        f"tokenizer {name} does not belong to the backbone\n  found:    {found}\n  expected: {expected}\n"
        "  set tokenizer to the one that the backbone was trained with"
    )


def _reason(error: Exception) -> str:
    """Return the first line of what an error says; some say nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
