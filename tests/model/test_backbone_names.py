from pathlib import Path

import pytest

from clip_hba_behavior.model.backbone_names import HUB_NAMES, refuse_no_tokenizer, resolve_backbone
from clip_hba_behavior.reproducibility.state.errors import BadInputError


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ViT-L/41", "ViT-L/14"),
        ("ViT-B-32", "ViT-B/32"),
        ("vit-l/14", "ViT-L/14"),
        ("ViTB32", "ViT-B/32"),
        ("vit_b_16", "ViT-B/16"),
        ("ViT-L/14@336", "ViT-L/14@336px"),
        ("ViT-L-14.pt", "ViT-L/14"),
    ],
)
def test_a_misspelt_published_name_is_answered_with_the_published_ones(name: str, meant: str) -> None:
    with pytest.raises(BadInputError) as refused:
        resolve_backbone(name)
    assert str(refused.value) == (
        f"there is no backbone {name}; did you mean {meant}?\n"
        "  OpenAI's names of vision transformers are ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px\n"
        "  give one of these, a directory in Hugging Face format, a name on its hub, or a .pt file"
    )


def test_a_published_name_of_another_kind_is_refused_too() -> None:
    with pytest.raises(BadInputError, match="there is no backbone RN50x16\n  OpenAI's names of vision transf"):
        resolve_backbone("RN50x16")


@pytest.mark.parametrize("name", ["openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14", "gpt2", "standin"])
def test_a_name_that_may_be_the_hubs_is_left_to_the_hub(name: str) -> None:
    assert resolve_backbone(name) == name
    refuse_no_tokenizer(name)


@pytest.mark.parametrize("name", ["./clip", "~/clip", "/no/such/clip", "models/vit/clip"])
def test_a_path_to_nothing_is_refused(name: str) -> None:
    with pytest.raises(BadInputError, match=r"there is no backbone .*: neither a directory nor a"):
        resolve_backbone(name)
    with pytest.raises(BadInputError, match="could not be loaded: there is no such directory"):
        refuse_no_tokenizer(name)


def test_a_file_or_directory_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B").mkdir()
    (tmp_path / "ViT-B/23").mkdir()
    (tmp_path / "ViT-L-14.pt").touch()
    for name in ("ViT-B/23", "ViT-L-14.pt"):
        assert resolve_backbone(name) == name
    refuse_no_tokenizer("ViT-B/23")


def test_openais_names_are_for_backbones_and_not_for_tokenizers() -> None:
    with pytest.raises(BadInputError, match=f"a name on the hub such as {HUB_NAMES['ViT-B/16']}"):
        refuse_no_tokenizer("ViT-B/16")
