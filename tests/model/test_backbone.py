import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from clip_hba_behavior.data.standin import PROMPTS, standin_backbone_directory
from clip_hba_behavior.model import backbone as backbone_module
from clip_hba_behavior.model.backbone import load_backbone, resolve_backbone, tokenize_prompts, weights_digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from small_clip import small_clip


def test_a_directory_in_hugging_face_format_is_loaded_in_float32(tmp_path: Path) -> None:
    small_clip().half().save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert not any(value.requires_grad for value in loaded.parameters())
    assert weights_digest(loaded) == weights_digest(small_clip().half().float())


def test_loading_draws_nothing_that_a_run_would_miss(tmp_path: Path) -> None:
    """A run seeds or restores its generators after loading; this keeps it that way even if it did not."""
    small_clip().save_pretrained(tmp_path)
    before = torch.get_rng_state()
    load_backbone(str(tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(BadInputError, match="is no CLIP\n  found:    model_type 'bert'"):
        load_backbone(str(tmp_path))


def test_a_directory_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"no readable config\.json"):
        load_backbone(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(BadInputError, match="could not be loaded"):
        load_backbone(str(tmp_path))


def test_missing_weights_are_refused_rather_than_drawn(tmp_path: Path) -> None:
    model = small_clip()
    weights = model.state_dict()
    del weights["visual_projection.weight"]
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(BadInputError, match=r"lacks 1 weights of a CLIP, the first: visual_projection\.weight"):
        load_backbone(str(tmp_path))


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub() -> None:
    with pytest.raises(BadInputError, match=r"there is no backbone \./models/clip"):
        load_backbone("./models/clip")


def test_a_hub_name_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(BadInputError, match="backbone openai/clip-vit-large-patch14 could not be loaded"):
        load_backbone("ViT-L/14")


def test_openais_name_means_its_downloaded_file_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone_module.Path, "home", lambda: tmp_path)
    assert resolve_backbone("ViT-L/14") == "openai/clip-vit-large-patch14"
    downloaded = tmp_path / ".cache/clip/ViT-L-14.pt"
    downloaded.parent.mkdir(parents=True)
    downloaded.touch()
    assert resolve_backbone("ViT-L/14") == str(downloaded)


def test_prompts_are_tokenised_to_the_longest_with_their_end_positions() -> None:
    name = str(standin_backbone_directory())
    model = load_backbone(name)
    token_ids, ends = tokenize_prompts(PROMPTS, name, None, model)
    end_token = model.config.text_config.eos_token_id
    assert token_ids.shape == (66, int(ends.max()) + 1)
    for row, end in zip(token_ids, ends, strict=True):
        assert row[0] == model.config.text_config.bos_token_id
        assert (row[end:] == end_token).all()
        assert (row[:end] != end_token).all()


def test_a_weight_file_needs_a_tokenizer_named(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    path.touch()
    with pytest.raises(BadInputError, match="brings no tokenizer\n  set tokenizer to"):
        tokenize_prompts(PROMPTS, str(path), None, small_clip())


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(
        BadInputError, match=r"does not belong to the backbone\n  found:    \d+ tokens\n  expected: 120"
    ):
        tokenize_prompts(PROMPTS, "unused", str(standin_backbone_directory()), small_clip())


def test_the_two_token_tokenizer_that_transformers_builds_in_silence_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "half"
    shutil.copytree(standin_backbone_directory(), directory)
    (directory / "tokenizer.json").unlink()
    with pytest.raises(BadInputError, match="tokenizer"):
        tokenize_prompts(PROMPTS, "unused", str(directory), load_backbone(str(standin_backbone_directory())))


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    name = str(standin_backbone_directory())
    with pytest.raises(BadInputError, match="a prompt is too long"):
        tokenize_prompts(["word " * 200, *PROMPTS[1:]], name, None, load_backbone(name))
