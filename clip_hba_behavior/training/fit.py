"""Whether backbone, tokenizer, prompts and configuration fit each other: asked by a run, and by the data check."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clip_hba_behavior.config import Config
from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.backbone import load_backbone, resolve_backbone
from clip_hba_behavior.model.tokenizer import tokenize_prompts
from clip_hba_behavior.reproducibility.state.errors import BadInputError


@dataclass(frozen=True)
class ModelReport:
    """What `check_model` found.

    Attributes:
        backbone: its sizes, for a person.
        tokenizer: whether it fits.
        problems: sentences; none if all is well.
    """

    backbone: str
    tokenizer: str
    problems: tuple[str, ...]


def load_model_config(config: Config) -> ClipConfig:
    """Load the backbone, all of it, and return its sizes.

    Raises:
        BadInputError: it cannot be loaded.
    """
    return load_backbone(config.backbone, config.trust_backbone_file).config


def check_model(
    config: Config, backbone: ClipConfig | BadInputError, prompts: Sequence[str], num_images: int
) -> ModelReport:
    """Say what does not fit of a model, as a run would refuse it.

    Args:
        config: resolved.
        backbone: its sizes, or why it cannot be loaded: then its tokenizer cannot be told to fit either.
        prompts: one a dimension; none if they cannot be read.
        num_images: to train and test on; 0 if the table cannot be read.
    """
    if isinstance(backbone, BadInputError):
        return ModelReport("cannot be loaded", "not checked", (str(backbone),))
    vision, text = backbone.vision_config, backbone.text_config
    sizes = (
        f"{vision.num_hidden_layers} visual and {text.num_hidden_layers} text blocks, "
        f"images of {vision.image_size} x {vision.image_size}"
    )
    problems = layer_problems(config, backbone) + (split_problems(config, num_images) if num_images else [])
    try:
        tokens_of(prompts or ("a prompt",), config, backbone)
    except BadInputError as error:
        return ModelReport(sizes, "does not fit", (*problems, str(error)))
    return ModelReport(sizes, "fits the backbone" + ("" if prompts else "; no prompts to try"), tuple(problems))


def tokens_of(prompts: Sequence[str], config: Config, backbone: ClipConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and end positions of prompts; raises as `tokenize_prompts`."""
    text = backbone.text_config
    name = resolve_backbone(config.backbone)
    return tokenize_prompts(prompts, name, config.tokenizer, text.vocab_size, text.max_position_embeddings)


def layer_problems(config: Config, backbone: ClipConfig) -> list[str]:
    """Say where more DoRA layers are asked for than there are blocks."""
    towers = {"vision_layers": backbone.vision_config, "transformer_layers": backbone.text_config}
    return [
        f"{key} does not fit the backbone\n  found:    {getattr(config, key)}\n"
        f"  expected: at most {tower.num_hidden_layers}, the tower's number of blocks"
        for key, tower in towers.items()
        if getattr(config, key) > tower.num_hidden_layers
    ]


def split_problems(config: Config, num_images: int) -> list[str]:
    """Say where a split has nothing on one side."""
    num_train = int(config.train_portion * num_images)
    if num_train not in (0, num_images):
        return []
    return [
        f"train_portion {config.train_portion} leaves {num_train} of {num_images} images to train and "
        f"{num_images - num_train} to test\n  expected: at least one of each"
    ]
