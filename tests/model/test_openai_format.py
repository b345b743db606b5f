"""OpenAI's files are made here in their own format, from a small CLIP: the real ones cannot be had."""

from pathlib import Path

import pytest
import torch
from torch import nn

from clip_hba_behavior.model.architecture import weight_shapes
from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from small_clip import clip_of, openai_names, small_clip


def save_script(weights: dict[str, torch.Tensor], path: Path) -> None:
    """A real TorchScript archive whose state dict has these dotted names."""
    root = nn.Module()
    for name, value in weights.items():
        *parents, last = name.split(".")
        module = root
        for parent in parents:
            if not hasattr(module, parent):
                module.add_module(parent, nn.Module())
            module = getattr(module, parent)
        module.register_parameter(last, nn.Parameter(value, requires_grad=False))
    root.register_buffer("input_resolution", torch.tensor(64))
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(root).save(str(path))


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return dict(openai_names(small_clip()))


def test_a_bare_state_dict_gives_the_weights_of_the_hugging_face_model(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "clip.pt")
    loaded = load_backbone(str(tmp_path / "clip.pt"))
    assert loaded.digest() == clip_of(small_clip()).digest()
    assert {name: weight.shape for name, weight in loaded.weights.items()} == weight_shapes(loaded.config)


def test_half_precision_weights_are_converted_before_they_are_digested(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save({name: value.half() for name, value in weights.items()}, tmp_path / "half.pt")
    torch.save({name: value.half().float() for name, value in weights.items()}, tmp_path / "float.pt")
    half, full = (load_backbone(str(tmp_path / name)) for name in ("half.pt", "float.pt"))
    assert {value.dtype for value in half.weights.values()} == {torch.float32}
    assert half.digest() == full.digest()


def test_an_unknown_archive_with_code_is_refused_unless_permitted(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "script.pt"
    save_script(weights, path)
    with pytest.raises(BadInputError, match=r"it carries code(.|\n)*trust_backbone_file: true"):
        load_backbone(str(path))
    loaded = load_backbone(str(path), trust_backbone_file=True)
    assert loaded.digest() == clip_of(small_clip()).digest()


def test_a_resnet_is_refused_by_name(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(weights | {"visual.layer1.0.conv1.weight": torch.zeros(1)}, tmp_path / "rn50.pt")
    with pytest.raises(BadInputError, match="a CLIP with a ResNet"):
        load_backbone(str(tmp_path / "rn50.pt"))


def test_a_file_of_other_weights_is_refused(weights: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(BadInputError, match="holds no OpenAI CLIP: it lacks"):
        load_backbone(str(tmp_path / "other.pt"))
    torch.save(weights | {"extra.weight": torch.zeros(3)}, tmp_path / "more.pt")
    with pytest.raises(BadInputError, match=r"unknown weight extra\.weight"):
        load_backbone(str(tmp_path / "more.pt"))
    del weights["visual.transformer.resblocks.1.ln_1.weight"]
    torch.save(weights, tmp_path / "less.pt")
    with pytest.raises(BadInputError, match="layer_norm1"):
        load_backbone(str(tmp_path / "less.pt"))


def test_the_recorded_state_dict_equals_the_recorded_directory(reference: Path) -> None:
    directory = load_backbone(str(reference / "backbone"))
    file = load_backbone(str(reference / "tiny_clip_openai_format.pt"))
    assert file.digest() == directory.digest()
