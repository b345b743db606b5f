from collections.abc import Mapping

import pytest
import torch
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel

from clip_hba_behavior.model.clip_hba import CLIPHBA, DORA_PARAMETERS, FrozenPrefix
from clip_hba_behavior.model.operations import NativeOperations
from small_clip import clip_of, prompts, small_clip

# Architectures of OpenAI's models, with random weights: the pretrained ones cannot be had here.
REAL_SIZES = {
    "ViT-B/32": {
        "vision_config": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
            "patch_size": 32,
        },
        "text_config": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
        "projection_dim": 512,
    },
    "ViT-L/14": {
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        "text_config": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "projection_dim": 768,
    },
}


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.fixture(params=[(1, 1), (2, 1), (1, 2), (2, 2), (3, 3)], ids=lambda layers: f"{layers[0]}+{layers[1]}")
def layers(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


def build(
    layers: tuple[int, int], oracle: CLIPModel, images: torch.Tensor
) -> tuple[CLIPHBA, torch.Tensor, torch.Tensor]:
    """A model with drawn factors, and the frozen features of some images and 66 prompts."""
    backbone = clip_of(oracle)
    token_ids, ends = prompts()
    model = CLIPHBA(backbone, *layers, rank=4, dora_dropout=0.0, end_positions=ends)
    torch.manual_seed(1)
    for layer in model.dora_layers().values():
        layer.draw_initial_factors()
    class_tokens = torch.zeros(len(images), dtype=torch.int64)
    image_features = FrozenPrefix(backbone, "vision", layers[0], NativeOperations())(images, class_tokens)
    prompt_features = FrozenPrefix(backbone, "text", layers[1], NativeOperations())(token_ids, ends)
    return model, image_features, prompt_features


def small_images() -> torch.Tensor:
    return torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def full_forward(model: CLIPHBA, oracle: CLIPModel, images: torch.Tensor) -> torch.Tensor:
    """The same prediction by transformers' own forward over complete towers, all positions and all tokens."""
    token_ids, _ = prompts()
    padded = torch.full((len(token_ids), oracle.config.text_config.max_position_embeddings), 119)
    padded[:, : token_ids.shape[1]] = token_ids
    weights = {}
    for name, layer in model.dora_layers().items():
        tower = "vision_model" if ".visual." in name else "text_model"
        block = name.split("resblocks.")[1].split(".")[0]
        weights[f"{tower}.encoder.layers.{block}.self_attn.out_proj.weight"] = layer.adapted_weight()
    outputs = torch.func.functional_call(oracle, weights, kwargs={"input_ids": padded, "pixel_values": images})
    return outputs.logits_per_image


def differences(layers: tuple[int, int], oracle: CLIPModel, images: torch.Tensor) -> Mapping[str, float]:
    """Relative differences to transformers' full forward: of the predictions, and of each gradient."""
    model, image_features, prompt_features = build(layers, oracle, images)
    targets = torch.rand(len(images), 66) * 20
    predictions = model(image_features, prompt_features)
    functional.mse_loss(predictions, targets).backward()
    gradients = {name: value.grad.clone() for name, value in model.dora_parameters().items()}
    model.zero_grad()
    expected = full_forward(model, oracle, images)
    functional.mse_loss(expected, targets).backward()

    assert len(gradients) == 3 * sum(layers)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    return {"predictions": relative_difference(predictions, expected)} | {
        name: relative_difference(gradients[name], value.grad) for name, value in model.dora_parameters().items()
    }


@pytest.mark.parametrize("hidden_act", ["quick_gelu", "gelu"])
def test_predictions_and_gradients_equal_transformers_full_forward(
    layers: tuple[int, int], hidden_act: str
) -> None:
    found = differences(layers, small_clip(hidden_act=hidden_act), small_images())
    assert max(found.values()) < 1e-5, found


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("size", "hidden_act"), [("ViT-B/32", "quick_gelu"), ("ViT-B/32", "gelu"), ("ViT-L/14", "quick_gelu")]
)
def test_real_sizes_equal_transformers_full_forward(size: str, hidden_act: str) -> None:
    keys = {
        key: value | {"hidden_act": hidden_act} if isinstance(value, dict) else value
        for key, value in REAL_SIZES[size].items()
    }
    keys["text_config"] |= {"eos_token_id": 119, "bos_token_id": 118, "pad_token_id": 119}
    oracle = CLIPModel(CLIPConfig(**keys)).eval().requires_grad_(False)
    images = torch.randn(3, 3, 224, 224)
    for num_layers in (1, 2, 3):
        found = differences((num_layers, num_layers), oracle, images)
        assert max(found.values()) < 1e-5, (num_layers, found)


@pytest.mark.parametrize("other", ["gelu", "quick_gelu"])
def test_another_activation_is_told_apart(other: str) -> None:
    found = small_clip(hidden_act="quick_gelu" if other == "gelu" else "gelu")
    model, image_features, prompt_features = build((1, 1), found, small_images())
    expected = full_forward(model, small_clip(hidden_act=other), small_images())
    assert relative_difference(model(image_features, prompt_features), expected) > 1e-5


def test_full_forward_of_other_weights_is_told_apart(layers: tuple[int, int]) -> None:
    model, image_features, prompt_features = build(layers, small_clip(), small_images())
    expected = full_forward(model, small_clip(), small_images())
    with torch.no_grad():
        next(iter(model.dora_parameters().values()))[0] *= 1.01
    assert relative_difference(model(image_features, prompt_features), expected) > 1e-5


def test_trainable_parameters_stand_under_the_guides_names() -> None:
    model, _, _ = build((2, 1), small_clip(), small_images())
    expected = [
        f"clip_model.{tower}resblocks.{block}.attn.out_proj.{parameter}"
        for tower, blocks in (("visual.transformer.", (1, 2)), ("transformer.", (2,)))
        for block in blocks
        for parameter in DORA_PARAMETERS
    ]
    assert list(model.dora_parameters()) == expected
    assert list(model.state_dict()) == expected
    assert [name for name, value in model.named_parameters() if value.requires_grad] == expected


def test_the_guides_snippet_loads_a_checkpoint_into_the_model() -> None:
    model, image_features, prompt_features = build((2, 1), small_clip(), small_images())
    checkpoint = {name: value.detach().clone() for name, value in model.dora_parameters().items()}
    before = model(image_features, prompt_features)
    other, _, _ = build((2, 1), small_clip(), small_images())
    with torch.no_grad():
        for value in other.dora_parameters().values():
            value.zero_()
    loaded = other.load_state_dict(checkpoint | {"rng_state": {}}, strict=False)
    assert loaded.unexpected_keys == ["rng_state"]
    assert torch.equal(other(image_features, prompt_features), before)


def test_only_the_token_that_is_read_is_kept_where_one_block_is_trained() -> None:
    _, image_features, prompt_features = build((1, 1), small_clip(), small_images())
    assert image_features.shape == (5, 2, 1, 128)
    assert prompt_features.shape == (66, 2, 1, 128)
    _, image_features, prompt_features = build((2, 2), small_clip(), small_images())
    assert image_features.shape == (5, 2, 17, 128)
    assert prompt_features.shape == (66, 2, 11, 128)
