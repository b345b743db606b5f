"""A trained model in the formats of PEFT and of Hugging Face's transformers."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip_hba_behavior.config import Config
from clip_hba_behavior.model.backbone_names import HUB_NAMES, resolve_backbone
from clip_hba_behavior.model.dora import ALPHA, DoRALinear
from clip_hba_behavior.model.openai_format import hugging_face_name
from clip_hba_behavior.model.tokenizer_files import find_tokenizer_files
from clip_hba_behavior.use.trained_model import TrainedModel

PROMPTS_NAME = "prompts.txt"


def write_adapter(model: TrainedModel, directory: Path) -> None:
    """Write what `PeftModel.from_pretrained(clip, directory)` puts onto transformers' `CLIPModel`.

    PEFT scales each row of `W + (alpha/r) B A` to the length in `lora_magnitude_vector`; here it is each column of
    `D + (alpha/r) delta_D_B delta_D_A`, with D the rows of W divided by their lengths S. So `A = delta_D_B.T` and
    `B = (delta_D_A S).T` give the same weight, but for the 1e-8 that is added to the norms here.
    """
    tensors: dict[str, torch.Tensor] = {}
    modules = []
    for name, layer in model.dora_layers().items():
        weight = weight_name(name)
        module = weight.removesuffix(".weight")
        modules.append(module)
        lengths = layer.operations.norm(model.backbone.weights[weight])
        factors = {
            "lora_A.weight": layer.delta_D_B.T,
            "lora_B.weight": (layer.delta_D_A * lengths).T,
            "lora_magnitude_vector": layer.m,
        }
        tensors |= {f"base_model.model.{module}.{key}": value for key, value in factors.items()}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base_name(model.config),
        "inference_mode": True,
        "target_modules": modules,
        "r": model.config.rank,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": True,
    }
    _write_json(directory / "adapter_config.json", config)
    _write_tensors(directory / "adapter_model.safetensors", tensors)


def write_merged(model: TrainedModel, directory: Path) -> None:
    """Write a directory that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` open.

    Its weights are the backbone's, with the adapted ones in the place of those that were adapted. Beside them
    stand the embeddings of the 66 prompts, `[66, embedding] float32` of length one: for whoever needs the images'
    side alone.
    """
    adapted = {weight_name(name): _adapted(layer) for name, layer in model.dora_layers().items()}
    _write_json(directory / "config.json", transformers_config(model))
    _write_tensors(directory / "model.safetensors", {**model.backbone.weights, **adapted})
    for name, path in find_tokenizer_files(tokenizer_name(model.config)).items():
        (directory / name).write_bytes(path.read_bytes())
    content = io.BytesIO()
    np.save(content, model.embed_prompts().numpy(), allow_pickle=False)
    (directory / "prompt_embeddings.npy").write_bytes(content.getvalue())


def write_preprocessing(model: TrainedModel, directory: Path) -> None:
    """Write the 66 prompts, one a line, and how an image becomes pixels: what both formats need."""
    (directory / PROMPTS_NAME).write_bytes("".join(f"{prompt}\n" for prompt in model.prompts).encode())
    preprocessing, bilinear = model.preprocessing, 2
    side = {"height": preprocessing.image_size, "width": preprocessing.image_size}
    settings = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": side,
        "resample": bilinear,
        "do_center_crop": False,
        "crop_size": side,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing.mean,
        "image_std": preprocessing.std,
    }
    _write_json(directory / "preprocessor_config.json", settings)


def transformers_config(model: TrainedModel) -> dict[str, Any]:
    """Return the backbone's architecture as the content of a `config.json` of transformers."""
    architecture = model.backbone.config
    together = {"projection_dim": architecture.projection_dim}
    start, end = model.token_ids[0, 0].item(), model.token_ids[0, int(model.end_positions[0])].item()
    tokens = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        **together,
        "logit_scale_init_value": model.backbone.weights["logit_scale"].item(),
        "text_config": {
            "model_type": "clip_text_model",
            **architecture.text_config.model_dump(),
            **together,
            **tokens,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            **architecture.vision_config.model_dump(),
            **together,
        },
    }


def base_name(config: Config) -> str | None:
    """Return what transformers opens as the backbone; None where it is a weight file of OpenAI's."""
    name = HUB_NAMES.get(config.backbone, config.backbone)
    return None if Path(name).is_file() else name


def tokenizer_name(config: Config) -> str:
    """Return the directory, or the name on the hub, of the backbone's tokenizer."""
    return config.tokenizer or resolve_backbone(config.backbone)


def weight_name(layer: str) -> str:
    """Return what the Hugging Face format calls the weight of a DoRA layer of the guide's name."""
    return hugging_face_name(f"{layer.removeprefix('clip_model.')}.weight")


@torch.no_grad()
def _adapted(layer: DoRALinear) -> torch.Tensor:
    return layer.adapted_weight()


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path, {"format": "pt"})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
