"""OpenAI's own CLIP files: the TorchScript archive and the bare state dict."""

import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.clip import Clip, make_clip
from clip_hba_behavior.reproducibility.state import safe_load
from clip_hba_behavior.reproducibility.state.archive import open_archive
from clip_hba_behavior.reproducibility.state.errors import BadInputError

# SHA-256 of the files that OpenAI published, as their download addresses carry them.
PUBLISHED_DIGESTS = {
    "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af": "ViT-B/32",
    "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f": "ViT-B/16",
    "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836": "ViT-L/14",
    "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02": "ViT-L/14@336px",
}

_BLOCK_NAMES = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_TOP_NAMES = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
# Numbers that the TorchScript archives carry beside the weights.
_NOT_WEIGHTS = {"input_resolution", "context_length", "vocab_size"}
_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)\.(weight|bias)")
_IN_PROJECTION = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")


def load_openai_file(path: Path, trust_backbone_file: bool) -> Clip:
    """Load one of OpenAI's `.pt` files as float32.

    Args:
        path: a TorchScript archive, or a file made by `torch.save` of the state dict.
        trust_backbone_file: open a TorchScript archive although its SHA-256 is not a published one.

    Raises:
        BadInputError: an archive that carries code and is not known, or no ViT CLIP.
    """
    if _carries_code(path):
        weights = _read_script(path, trust_backbone_file)
    else:
        weights = safe_load.load(path, "CLIP weight file")
    weights = {name: value for name, value in weights.items() if name not in _NOT_WEIGHTS}
    if "visual.layer1.0.conv1.weight" in weights:
        raise BadInputError(f"{path} holds a CLIP with a ResNet; this project needs a ViT CLIP, such as ViT-L/14")
    wanted = {
        "visual.conv1.weight",
        "visual.proj",
        "token_embedding.weight",
        "text_projection",
        "logit_scale",
    }
    missing = wanted - weights.keys()
    if missing:
        raise BadInputError(f"{path} holds no OpenAI CLIP: it lacks {', '.join(sorted(missing))}")
    try:
        config = _config_from_shapes(weights)
        converted = _convert(weights)
    except Exception as error:  # shapes and names that fit no model fail anywhere
        reason = str(error)[:2000] or type(error).__name__
        raise BadInputError(f"{path} holds no OpenAI CLIP: {reason}") from error
    return make_clip(config, converted, f"{path} holds no OpenAI CLIP: it")


def _carries_code(path: Path) -> bool:
    """Tell a TorchScript archive from a file made by `torch.save`."""
    with open_archive(path, "CLIP weight file") as (_, archive):
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())


def _read_script(path: Path, trust_backbone_file: bool) -> dict[str, torch.Tensor]:
    with open_archive(path, "CLIP weight file") as (file, _):
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in PUBLISHED_DIGESTS and not trust_backbone_file:
        raise BadInputError(
            f"{path} is a TorchScript archive: it carries code, and it is not one that OpenAI published\n"
            f"  its SHA-256: {found}\n"
            "  set trust_backbone_file: true if you know where it comes from, or use the Hugging Face format"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is how these files are stored
        try:
            script = torch.jit.load(str(path), map_location="cpu")
        except RuntimeError as error:
            raise BadInputError(
                f"{path} is a damaged TorchScript archive: {str(error).splitlines()[0]}"
            ) from error
        return dict(script.state_dict())


def _config_from_shapes(weights: Mapping[str, torch.Tensor]) -> ClipConfig:
    """Derive the architecture: heads have 64 dimensions."""
    if empty := [name for name, weight in weights.items() if weight.numel() == 0]:
        raise ValueError(f"weight {empty[0]} is empty")
    vision_width, _, patch_size, _ = weights["visual.conv1.weight"].shape
    grid = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
    vocabulary, text_width = weights["token_embedding.weight"].shape
    embedding = weights["text_projection"].shape[1]

    def tower(prefix: str, width: int) -> dict[str, object]:
        blocks = {name.split(".resblocks.")[1].split(".")[0] for name in weights if name.startswith(prefix)}
        return {
            "hidden_size": width,
            "intermediate_size": weights[f"{prefix}0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": len(blocks),
            "num_attention_heads": width // 64,
            "hidden_act": "quick_gelu",
        }

    vision = tower("visual.transformer.resblocks.", vision_width)
    text = tower("transformer.resblocks.", text_width)
    num_positions = weights["positional_embedding"].shape[0]
    return ClipConfig.model_validate(
        {
            "vision_config": vision | {"patch_size": patch_size, "image_size": patch_size * grid},
            "text_config": text | {"vocab_size": vocabulary, "max_position_embeddings": num_positions},
            "projection_dim": embedding,
        }
    )


def _convert(weights: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    """Rename every weight; the joint input projection is cut into query, key and value."""
    converted: list[tuple[str, torch.Tensor]] = []
    for name, weight in weights.items():
        value = weight.detach().float()
        if name in _TOP_NAMES:
            converted.append((_TOP_NAMES[name], value))
        elif name in _TRANSPOSED:
            converted.append((_TRANSPOSED[name], value.T.contiguous()))
        elif match := _IN_PROJECTION.fullmatch(name):
            tower = "vision_model" if match[1] else "text_model"
            for part, each in zip("qkv", value.chunk(3), strict=True):
                target = f"{tower}.encoder.layers.{match[2]}.self_attn.{part}_proj.{match[3]}"
                converted.append((target, each.contiguous()))
        else:
            converted.append((hugging_face_name(name), value))
    return converted


def hugging_face_name(name: str) -> str:
    """Return what the Hugging Face format calls a weight of a block, such as `transformer.resblocks.3.ln_1.bias`.

    Raises:
        KeyError: it is none.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise KeyError(f"unknown weight {name}")
    tower = "vision_model" if match[1] else "text_model"
    return f"{tower}.encoder.layers.{match[2]}.{_BLOCK_NAMES[match[3]]}.{match[4]}"
