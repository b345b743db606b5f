"""The pretrained CLIP: found by name, loaded completely, in float32; and its tokenizer."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from clip_hba_behavior.model.openai_format import load_openai_file
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError

# OpenAI's names for its ViT models, and where Hugging Face keeps the same weights.
HUB_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def resolve_backbone(name: str) -> str:
    """Turn OpenAI's name of a model into its downloaded `.pt` file, if there is one, or its hub name."""
    if name not in HUB_NAMES:
        return name
    downloaded = Path.home() / ".cache" / "clip" / (name.replace("/", "-").replace("@", "-") + ".pt")
    return str(downloaded) if downloaded.is_file() else HUB_NAMES[name]


def load_backbone(name: str, trust_backbone_file: bool = False) -> CLIPModel:
    """Load a ViT CLIP in float32 on the CPU, in evaluation mode.

    Args:
        name: a directory in Hugging Face format, a name on the Hugging Face hub, one of OpenAI's
            names (`ViT-L/14`), or one of OpenAI's `.pt` files.
        trust_backbone_file: see `load_openai_file`.

    Raises:
        BadInputError: it is not there, is no CLIP, or lacks weights.
    """
    name = resolve_backbone(name)
    path = Path(name).expanduser()
    if path.is_file():
        model = load_openai_file(path, trust_backbone_file)
    else:
        model = _load_hugging_face(str(path) if path.is_dir() else name)
    return model.float().eval().requires_grad_(False)


def _load_hugging_face(name: str) -> CLIPModel:
    config_file = Path(name) / "config.json"
    if Path(name).is_dir():
        try:
            kind = json.loads(config_file.read_text()).get("model_type")
        except (OSError, ValueError, AttributeError) as error:
            raise BadInputError(f"backbone {name} has no readable config.json: {error}") from error
        if kind != "clip":
            raise BadInputError(
                f"backbone {name} is no CLIP\n  found:    model_type {kind!r} in config.json\n"
                "  expected: model_type 'clip'\n  name a CLIP model in Hugging Face format"
            )
    elif name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise BadInputError(f"there is no backbone {name}: neither a directory nor a .pt file")
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # what is missing is said below, once
    try:
        model, loading = CLIPModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    except Exception as error:  # the library raises a dozen kinds, none its own
        reason = str(error).strip().splitlines()
        raise BadInputError(
            f"backbone {name} could not be loaded: {reason[0] if reason else type(error).__name__}\n"
            "  name a directory in Hugging Face format, a model on the hub, or OpenAI's .pt file"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    absent = sorted(loading["missing_keys"]) + sorted(str(each) for each in loading["mismatched_keys"])
    if absent:
        raise BadInputError(
            f"backbone {name} lacks {len(absent)} weights of a CLIP, the first: {absent[0]}\n"
            "  get the model again; its file is incomplete"
        )
    return model


def weights_digest(backbone: CLIPModel) -> str:
    """Return the digest of all weights after conversion to float32, the same for every file format.

    With them goes what decides how they are used and shows in no weight's shape.
    """
    towers = {"vision": backbone.config.vision_config, "text": backbone.config.text_config}
    used_as = {
        name: [tower.hidden_act, tower.num_attention_heads, float(tower.layer_norm_eps)]
        for name, tower in towers.items()
    }
    return digest({"weights": dict(backbone.named_parameters()), "used_as": used_as})


def tokenize_prompts(
    prompts: Sequence[str], backbone_name: str, tokenizer_name: str | None, backbone: CLIPModel
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenise prompts with the backbone's own tokenizer.

    Args:
        prompts: one a dimension.
        backbone_name: its directory or hub name; a `.pt` file brings no tokenizer.
        tokenizer_name: a directory or hub name that is used instead.
        backbone: its config gives the vocabulary's size and the context's length.

    Returns:
        Token ids `[prompts, tokens] int64`, as long as the longest prompt and padded with the end
        token (attention is causal, so what stands behind a prompt's end changes nothing), and the
        position of each prompt's end token `[prompts] int64`.

    Raises:
        BadInputError: no tokenizer, one of another vocabulary, or a prompt longer than the context.
    """
    name = tokenizer_name or resolve_backbone(backbone_name)
    if tokenizer_name is None and Path(name).is_file():
        raise BadInputError(
            f"backbone {name} is a weight file and brings no tokenizer\n"
            "  set tokenizer to a directory or hub name, such as openai/clip-vit-large-patch14"
        )
    try:
        tokenizer = CLIPTokenizer.from_pretrained(name)
    except Exception as error:  # the library raises a dozen kinds, none its own
        raise BadInputError(
            f"tokenizer {name} could not be loaded: {str(error).strip().splitlines()[0]}"
        ) from error
    text_config = backbone.config.text_config
    # Given files it does not know, transformers builds a tokenizer of two tokens without a word.
    if len(tokenizer) != text_config.vocab_size:
        raise BadInputError(
            f"tokenizer {name} does not belong to the backbone\n"
            f"  found:    {len(tokenizer)} tokens\n  expected: {text_config.vocab_size} tokens\n"
            "  set tokenizer to the one that the backbone was trained with"
        )
    rows = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    longest = max(len(row) for row in rows)
    if longest > text_config.max_position_embeddings:
        worst = next(prompt for prompt, row in zip(prompts, rows, strict=True) if len(row) == longest)
        raise BadInputError(
            f"a prompt is too long: {worst!r}\n  found:    {longest} tokens\n"
            f"  expected: at most {text_config.max_position_embeddings}\n  shorten it"
        )
    end = tokenizer.eos_token_id
    token_ids = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    return token_ids, torch.tensor([len(row) - 1 for row in rows])
