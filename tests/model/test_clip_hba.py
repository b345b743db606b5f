import pytest
import torch
from torch.nn import functional

from clip_hba_behavior.model.clip_hba import CLIPHBA, DORA_PARAMETERS, FrozenPrefix
from small_clip import prompts, small_clip


def relative_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


@pytest.fixture(params=[(1, 1), (2, 1), (1, 2), (2, 2), (3, 3)], ids=lambda layers: f"{layers[0]}+{layers[1]}")
def layers(request: pytest.FixtureRequest) -> tuple[int, int]:
    return request.param


def build(layers: tuple[int, int]) -> tuple[CLIPHBA, torch.Tensor, torch.Tensor]:
    """A model with drawn factors, and the frozen features of 5 images and 66 prompts."""
    backbone = small_clip()
    token_ids, ends = prompts()
    model = CLIPHBA(backbone, *layers, rank=4, dora_dropout=0.0, end_positions=ends)
    torch.manual_seed(1)
    for layer in model.dora_layers().values():
        layer.draw_initial_factors()
    images = torch.randn(5, 3, 64, 64)
    image_features = FrozenPrefix(backbone, "vision", layers[0], "math")(images, torch.zeros(5, dtype=torch.int64))
    prompt_features = FrozenPrefix(backbone, "text", layers[1], "math")(token_ids, ends)
    return model, image_features, prompt_features


def full_forward(model: CLIPHBA) -> torch.Tensor:
    """The same prediction by transformers' own forward over whole towers, 77 positions and all tokens."""
    backbone = small_clip()
    token_ids, _ = prompts()
    padded = torch.full((len(token_ids), 24), 119)
    padded[:, : token_ids.shape[1]] = token_ids
    torch.manual_seed(1)
    for layer in model.dora_layers().values():
        torch.empty(layer.delta_D_A.shape).uniform_()
        torch.empty(layer.delta_D_B.shape).uniform_()
    images = torch.randn(5, 3, 64, 64)
    weights = {}
    for name, layer in model.dora_layers().items():
        tower = "vision_model" if ".visual." in name else "text_model"
        block = name.split("resblocks.")[1].split(".")[0]
        weights[f"{tower}.encoder.layers.{block}.self_attn.out_proj.weight"] = layer.adapted_weight()
    outputs = torch.func.functional_call(backbone, weights, kwargs={"input_ids": padded, "pixel_values": images})
    return outputs.logits_per_image


def test_predictions_and_gradients_equal_transformers_full_forward(layers: tuple[int, int]) -> None:
    model, image_features, prompt_features = build(layers)
    targets = torch.rand(5, 66) * 20

    predictions = model(image_features, prompt_features)
    functional.mse_loss(predictions, targets).backward()
    gradients = {name: value.grad.clone() for name, value in model.dora_parameters().items()}
    model.zero_grad()
    expected = full_forward(model)
    functional.mse_loss(expected, targets).backward()

    assert relative_difference(predictions, expected) < 1e-5
    assert len(gradients) == 3 * sum(layers)
    for name, value in model.dora_parameters().items():
        assert relative_difference(gradients[name], value.grad) < 1e-5, name
        assert value.grad.abs().max() > 0, name


def test_full_forward_of_other_weights_is_told_apart(layers: tuple[int, int]) -> None:
    model, image_features, prompt_features = build(layers)
    expected = full_forward(model)
    with torch.no_grad():
        next(iter(model.dora_parameters().values()))[0] *= 1.01
    assert relative_difference(model(image_features, prompt_features), expected) > 1e-5


def test_trainable_parameters_stand_under_the_guides_names() -> None:
    model, _, _ = build((2, 1))
    expected = [
        f"clip_model.{tower}resblocks.{block}.attn.out_proj.{parameter}"
        for tower, blocks in (("visual.transformer.", (1, 2)), ("transformer.", (2,)))
        for block in blocks
        for parameter in DORA_PARAMETERS
    ]
    assert list(model.dora_parameters()) == expected
    assert set(expected) <= model.state_dict().keys()
    assert [name for name, value in model.named_parameters() if value.requires_grad] == expected


def test_the_guides_snippet_loads_a_checkpoint_into_the_model() -> None:
    model, image_features, prompt_features = build((2, 1))
    checkpoint = {name: value.detach().clone() for name, value in model.dora_parameters().items()}
    before = model(image_features, prompt_features)
    other, _, _ = build((2, 1))
    with torch.no_grad():
        for value in other.dora_parameters().values():
            value.zero_()
    loaded = other.load_state_dict(checkpoint | {"rng_state": {}}, strict=False)
    assert loaded.unexpected_keys == ["rng_state"]
    assert torch.equal(other(image_features, prompt_features), before)


def test_only_the_token_that_is_read_is_kept_where_one_block_is_trained() -> None:
    _, image_features, prompt_features = build((1, 1))
    assert image_features.shape == (5, 2, 1, 128)
    assert prompt_features.shape == (66, 2, 1, 128)
    _, image_features, prompt_features = build((2, 2))
    assert image_features.shape == (5, 2, 17, 128)
    assert prompt_features.shape == (66, 2, 11, 128)
