"""A CLIP's architecture: what `config.json` says of it, and the names and shapes of its weights."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# ViT-bigG has 48 blocks of 1,664 columns; what is far beyond is no CLIP, and would take all memory.
_Size = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]
_NumBlocks = Annotated[int, Field(ge=1, le=100, strict=True)]
_FROZEN = ConfigDict(frozen=True, extra="ignore")


class TowerConfig(BaseModel):
    """What both towers have."""

    model_config = _FROZEN

    hidden_size: _Size
    intermediate_size: _Size
    num_hidden_layers: _NumBlocks = 12
    num_attention_heads: _Size
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Annotated[float, Field(gt=0, lt=1)] = 1e-5

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> "TowerConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide hidden_size {self.hidden_size}")
        return self


class VisionConfig(TowerConfig):
    """The image tower."""

    hidden_size: _Size = 768
    intermediate_size: _Size = 3072
    num_attention_heads: _Size = 12
    num_channels: Literal[3] = 3
    image_size: _Size = 224
    patch_size: _Size = 32


class TextConfig(TowerConfig):
    """The prompt tower."""

    hidden_size: _Size = 512
    intermediate_size: _Size = 2048
    num_attention_heads: _Size = 8
    vocab_size: _Size = 49408
    max_position_embeddings: _Size = 77


class ClipConfig(BaseModel):
    """Both towers. Keys, and the values of those that are left out, are those of the Hugging Face format."""

    model_config = _FROZEN

    vision_config: VisionConfig = VisionConfig()
    text_config: TextConfig = TextConfig()
    projection_dim: _Size = 512

    @model_validator(mode="before")
    @classmethod
    def _prefer_the_older_keys(cls, keys: Any) -> Any:
        """Let `vision_config_dict` and `text_config_dict` replace the newer keys, as the format defines it."""
        if not isinstance(keys, Mapping):
            return keys
        towers = {}
        for name in ("vision_config", "text_config"):
            older = keys.get(f"{name}_dict")
            tower = keys.get(name) if older is None else older
            towers[name] = {} if tower is None else tower
        return {**keys, **towers}


def weight_shapes(config: ClipConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by its name in the Hugging Face format."""
    vision, text = config.vision_config, config.text_config
    patch = (3, vision.patch_size, vision.patch_size)
    num_positions = (vision.image_size // vision.patch_size) ** 2 + 1
    return {
        "logit_scale": (),
        "vision_model.embeddings.class_embedding": (vision.hidden_size,),
        "vision_model.embeddings.patch_embedding.weight": (vision.hidden_size, *patch),
        "vision_model.embeddings.position_embedding.weight": (num_positions, vision.hidden_size),
        **_norm_shapes("vision_model.pre_layrnorm", vision.hidden_size),
        **_block_shapes("vision_model", vision),
        **_norm_shapes("vision_model.post_layernorm", vision.hidden_size),
        "visual_projection.weight": (config.projection_dim, vision.hidden_size),
        "text_model.embeddings.token_embedding.weight": (text.vocab_size, text.hidden_size),
        "text_model.embeddings.position_embedding.weight": (text.max_position_embeddings, text.hidden_size),
        **_block_shapes("text_model", text),
        **_norm_shapes("text_model.final_layer_norm", text.hidden_size),
        "text_projection.weight": (config.projection_dim, text.hidden_size),
    }


def _block_shapes(tower: str, config: TowerConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {}
    for index in range(config.num_hidden_layers):
        block = f"{tower}.encoder.layers.{index}"
        for name in "qkv":
            shapes |= _linear_shapes(f"{block}.self_attn.{name}_proj", width, width)
        shapes |= _linear_shapes(f"{block}.self_attn.out_proj", width, width)
        shapes |= _norm_shapes(f"{block}.layer_norm1", width)
        shapes |= _linear_shapes(f"{block}.mlp.fc1", inner, width)
        shapes |= _linear_shapes(f"{block}.mlp.fc2", width, inner)
        shapes |= _norm_shapes(f"{block}.layer_norm2", width)
    return shapes


def _linear_shapes(name: str, num_out: int, num_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (num_out, num_in), f"{name}.bias": (num_out,)}


def _norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
