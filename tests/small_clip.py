"""A small random CLIP whose weights are large enough to matter: transformers' model of it, and ours."""

import re
from collections.abc import Iterator

import torch
from transformers import CLIPConfig, CLIPModel

from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.clip import Clip, make_clip


def small_config(vocab_size: int = 120, hidden_act: str = "quick_gelu") -> CLIPConfig:
    tower = {
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "hidden_act": hidden_act,
    }
    return CLIPConfig(
        vision_config=tower | {"image_size": 64, "patch_size": 16, "projection_dim": 32},
        text_config=tower
        | {
            "vocab_size": vocab_size,
            "max_position_embeddings": 24,
            "eos_token_id": vocab_size - 1,
            "bos_token_id": vocab_size - 2,
            "pad_token_id": vocab_size - 1,
            "projection_dim": 32,
        },
        projection_dim=32,
    )


def clip_of(model: CLIPModel) -> Clip:
    """The same CLIP as this project computes it."""
    config = ClipConfig.model_validate(model.config.to_dict())
    return make_clip(config, model.named_parameters(), "transformers' model")


def small_clip(seed: int = 0, hidden_act: str = "quick_gelu") -> CLIPModel:
    return random_clip(small_config(hidden_act=hidden_act), seed)


def random_clip(config: CLIPConfig, seed: int = 0) -> CLIPModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config).eval().requires_grad_(False)
        for name, parameter in model.named_parameters():
            if "norm" not in name and "logit_scale" not in name:
                parameter.normal_(std=0.08)
    return model


def prompts(num_prompts: int = 66, longest: int = 11) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids padded with the end token, and each prompt's end position."""
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.full((num_prompts, longest), 119)
    ends = torch.randint(2, longest, (num_prompts,), generator=generator)
    ends[0] = longest - 1
    for row, end in zip(token_ids, ends, strict=True):
        row[0] = 118
        row[1:end] = torch.randint(0, 118, (int(end) - 1,), generator=generator)
    return token_ids, ends


def openai_names(model: CLIPModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights under the names and in the layout of OpenAI's files."""
    state = dict(model.named_parameters())
    simple = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    for name, value in state.items():
        if name in simple:
            yield simple[name], value
        elif name.endswith("_projection.weight"):
            yield ("visual.proj" if "visual" in name else "text_projection"), value.T.contiguous()
        elif match := re.fullmatch(r"(vision|text)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name):
            root = "visual.transformer" if match[1] == "vision" else "transformer"
            part = match[3].replace("layer_norm", "ln_").replace("fc1", "c_fc").replace("fc2", "c_proj")
            if part == "self_attn.q_proj":
                stem = name.replace("q_proj", "{}_proj")
                joint = torch.cat([state[stem.format(each)] for each in "qkv"])
                yield f"{root}.resblocks.{match[2]}.attn.in_proj_{match[4]}", joint
            elif "_proj" not in part.replace("c_proj", "").replace("out_proj", ""):
                yield f"{root}.resblocks.{match[2]}.{part.replace('self_attn', 'attn')}.{match[4]}", value
        else:
            stem, kind = name.rsplit(".", 1)
            stem = {
                "vision_model.pre_layrnorm": "visual.ln_pre",
                "vision_model.post_layernorm": "visual.ln_post",
                "text_model.final_layer_norm": "ln_final",
            }[stem]
            yield f"{stem}.{kind}", value
