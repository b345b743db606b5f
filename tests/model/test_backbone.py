import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, CLIPConfig

from clip_hba_behavior.model import backbone as backbone_module
from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.backbone import load_backbone, resolve_backbone
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from small_clip import clip_of, small_clip


def test_a_directory_in_hugging_face_format_is_loaded_in_float32(tmp_path: Path) -> None:
    small_clip().half().save_pretrained(tmp_path)
    loaded = load_backbone(str(tmp_path))
    assert {value.dtype for value in loaded.weights.values()} == {torch.float32}
    assert not any(value.requires_grad for value in loaded.weights.values())
    assert loaded.digest() == clip_of(small_clip().half()).digest()


def test_weights_have_the_digest_that_transformers_names_and_values_gave_them() -> None:
    """`weights_digest` of every recorded run."""
    model = small_clip(hidden_act="gelu")
    used_as = {"vision": ["gelu", 2, 1e-5], "text": ["gelu", 2, 1e-5]}
    expected = digest({"weights": dict(model.named_parameters()), "used_as": used_as})
    assert clip_of(model).digest() == expected
    assert clip_of(small_clip()).digest() != expected


def test_every_weight_file_of_the_hugging_face_format_gives_the_same_weights(tmp_path: Path) -> None:
    expected = clip_of(small_clip()).digest()
    small_clip().save_pretrained(tmp_path / "one")
    small_clip().save_pretrained(tmp_path / "sharded", max_shard_size="200KB")
    pickled = tmp_path / "pickled"
    shutil.copytree(tmp_path / "one", pickled)
    (pickled / "model.safetensors").unlink()
    torch.save(small_clip().state_dict(), pickled / "pytorch_model.bin")
    half = tmp_path / "pickled_parts"
    half.mkdir()
    shutil.copy(tmp_path / "one/config.json", half)
    weights = dict(small_clip().named_parameters())
    parts = {"pytorch_model-1.bin": list(weights)[::2], "pytorch_model-2.bin": list(weights)[1::2]}
    for part, names in parts.items():
        torch.save({name: weights[name] for name in names}, half / part)
    weight_map = {name: part for part, names in parts.items() for name in names}
    (half / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    old_form = tmp_path / "old_form"
    old_form.mkdir()
    shutil.copy(tmp_path / "one/config.json", old_form)
    torch.save(weights, old_form / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    within = {f"clip.{name}": weight.detach() for name, weight in weights.items()} | {"head": torch.zeros(2)}
    within_another, pickled_within = tmp_path / "within_another", tmp_path / "pickled_within"
    for directory in (within_another, pickled_within):
        directory.mkdir()
        shutil.copy(tmp_path / "one/config.json", directory)
    save_file(within, within_another / "model.safetensors")
    torch.save(within, pickled_within / "pytorch_model.bin")

    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    names = ("one", "sharded", "pickled", "pickled_parts", "old_form", "within_another", "pickled_within")
    for name in names:
        assert load_backbone(str(tmp_path / name)).digest() == expected, name


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    small_clip().save_pretrained(tmp_path / "model", max_shard_size="200KB")
    index = tmp_path / "model/model.safetensors.index.json"
    content = json.loads(index.read_text())
    part = content["weight_map"]["logit_scale"]
    (tmp_path / "model" / part).rename(tmp_path / part)
    content["weight_map"] = {
        name: f"../{part}" if file == part else file for name, file in content["weight_map"].items()
    }
    index.write_text(json.dumps(content))
    with pytest.raises(BadInputError, match="names a file that is not beside it"):
        load_backbone(str(tmp_path / "model"))


def test_a_pickled_weight_file_runs_no_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Canary:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("code ran",)

    small_clip().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"logit_scale": Canary()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BadInputError, match=r"pytorch_model\.bin is refused: it names __builtin__ print"):
        load_backbone(str(tmp_path))
    old_form = tmp_path / "pytorch_model.bin"
    torch.save({"logit_scale": Canary()}, old_form, _use_new_zipfile_serialization=False)
    with pytest.raises(
        BadInputError, match=r"pytorch_model\.bin is no CLIP weight file: Weights only load failed"
    ):
        load_backbone(str(tmp_path))
    assert "code ran" not in capfd.readouterr().out


def test_a_torn_weight_file_of_the_old_form_is_named(tmp_path: Path) -> None:
    small_clip().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    path = tmp_path / "pytorch_model.bin"
    torch.save(dict(small_clip().named_parameters()), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for size in (30, 2000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInputError, match=r"pytorch_model\.bin is no CLIP weight file"):
            load_backbone(str(tmp_path))


def test_a_hub_name_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache as `huggingface_hub` lays it out; there is no network here."""
    repository = tmp_path / "models--someone--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    small_clip().save_pretrained(repository / "snapshots" / ("0" * 40))
    script = (
        "import sys; from clip_hba_behavior.model.backbone import load_backbone\n"
        "print(load_backbone(sys.argv[1]).digest())"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, "someone/clip"],
        env=os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == clip_of(small_clip()).digest()


def test_the_older_config_keys_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    small_clip(hidden_act="gelu").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for tower in ("text_config", "vision_config"):
        config[f"{tower}_dict"] = config[tower]
        config[tower] = {"hidden_size": 7}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours, theirs = load_backbone(str(tmp_path)).config, CLIPConfig.from_pretrained(tmp_path)
    for tower in ("text_config", "vision_config"):
        for key, value in getattr(ours, tower).model_dump().items():
            assert value == getattr(theirs, tower).to_dict()[key], key
    assert ours.projection_dim == theirs.projection_dim == 32


def test_defaults_of_the_architecture_are_transformers_own() -> None:
    theirs = CLIPConfig().to_dict()
    ours = ClipConfig().model_dump()
    for tower in ("text_config", "vision_config"):
        for key, value in ours[tower].items():
            assert value == theirs[tower][key], key


@pytest.mark.parametrize(
    ("tower", "key", "value", "message"),
    [
        ("vision_config", "hidden_act", "relu", "vision_config.hidden_act in config.json\n  found:    'relu'"),
        ("text_config", "num_hidden_layers", 10**9, "text_config.num_hidden_layers"),
        ("text_config", "hidden_size", "128", "text_config.hidden_size"),
        ("vision_config", "num_attention_heads", 3, "3 heads do not divide hidden_size 128"),
        ("vision_config", "patch_size", 32, "has a weight of another shape than its architecture says"),
    ],
)
def test_an_architecture_that_cannot_be_computed_is_refused(
    tower: str, key: str, value: object, message: str, tmp_path: Path
) -> None:
    small_clip().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[tower][key] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInputError) as refused:
        load_backbone(str(tmp_path))
    assert message in str(refused.value)


def test_weights_lie_in_aligned_memory_of_their_own(tmp_path: Path) -> None:
    """A kernel's bits may depend on the alignment, and a file's layout must not."""
    small_clip().save_pretrained(tmp_path)
    weights = load_backbone(str(tmp_path)).weights.values()
    assert all(weight.data_ptr() % 64 == 0 for weight in weights)
    assert len({weight.untyped_storage().data_ptr() for weight in weights}) == len(weights)


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
