"""The sizes of CLIP that are timed."""

from typing import Any

# width, blocks, patch of the image tower; width, blocks of the text tower; embedding
SIZES = {
    "small": ((128, 6, 32), (128, 4), 64),
    "ViT-B/32": ((768, 12, 32), (512, 12), 512),
    "ViT-L/14": ((1024, 24, 14), (768, 12), 768),
}


def architecture_keys(size: str, **of_text: int) -> dict[str, Any]:
    """Return what `config.json` says of a size; the vocabulary's keys are the caller's."""
    (width, blocks, patch), (text_width, text_blocks), embedding = SIZES[size]
    return {
        "model_type": "clip",
        "vision_config": {
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "num_hidden_layers": blocks,
            "num_attention_heads": width // 64,
            "patch_size": patch,
            "image_size": 224,
        },
        "text_config": {
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "num_hidden_layers": text_blocks,
            "num_attention_heads": text_width // 64,
            "max_position_embeddings": 77,
            **of_text,
        },
        "projection_dim": embedding,
    }
