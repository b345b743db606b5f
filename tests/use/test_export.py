"""What is exported is opened by the libraries that it is for, and predicts what the run does."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from transformers import CLIPModel

import fresh_process
from clip_hba_behavior import BadInputError, load_model
from clip_hba_behavior.config import DATA_KEYS
from clip_hba_behavior.data.standin import standin_backbone_directory
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.errors import StoppedError
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.use import check_export, formats
from clip_hba_behavior.use import export as export_module
from clip_hba_behavior.use.alignment import alignment_of
from clip_hba_behavior.use.check_export import compare_export, drawn_images
from clip_hba_behavior.use.export import export_model
from clip_hba_behavior.use.formats import write_adapter, write_merged, write_preprocessing
from clip_hba_behavior.use.trained_model import TrainedModel
from fresh_process import Outcome
from small_clip import openai_names

ClipHba = Callable[..., Outcome]
WRITERS = {"peft": write_adapter, "merged": write_merged}
FORMATS = list(WRITERS)
HERE = Session(logging.getLogger("test"))
CLOSE = 1e-5  # of the largest prediction

pytestmark = [
    pytest.mark.system,
    pytest.mark.filterwarnings(  # PEFT 0.21 with transformers 5.23
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
    ),
]


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "alignment_of", partial(alignment_of, permutations=99, resamples=100))


@pytest.fixture(scope="module")
def certificate(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificate")
    arguments = ["verify", "checkpoints", finished_run, "--epochs", "2", "--json", directory / "certificate.json"]
    words = [str(each) for each in arguments]
    assert fresh_process.call(fresh_process.clip_hba, words, output=directory / "output.txt").code == 0
    return directory / "certificate.json"


def last(run: Path) -> Path:
    return run / "dora_params" / "epoch2_dora_params.pth"


def drawn_model(**keys: Any) -> TrainedModel:
    """A model whose adapters matter, without training."""
    model = load_model(config=keys, device="cpu")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for layer in model.dora_layers().values():
            layer.draw_initial_factors()
            layer.m *= 1 + 0.2 * torch.rand_like(layer.m)
    return model


def write(model: TrainedModel, format: str, directory: Path) -> Path:
    directory.mkdir()
    WRITERS[format](model, directory)
    write_preprocessing(model, directory)
    return directory


def snippet(card: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(code)


@pytest.mark.parametrize("format", FORMATS)
def test_the_snippet_of_the_card_predicts_what_the_run_does(
    format: str,
    finished_run: Path,
    certificate: Path,
    clip_hba: ClipHba,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    arguments = ("--epoch", "2", "--format", format, "--out", out, "--certificate", certificate)
    done = clip_hba("export", finished_run, *arguments)
    assert done.code == 0, done.output
    assert re.search(
        r"loaded back by .*transformers [\d.]+: predictions of 48 images differ by at most", done.output
    )
    assert f"The {format} model is in {out}" in done.output

    card = (out / "README.md").read_text(encoding="utf-8")
    checkpoint = read_checkpoint(last(finished_run))
    assert f"`{checkpoint.state_digest}`" in card
    for name, digest in json.loads((finished_run / "environment.json").read_text())["digests"].items():
        assert f"| {name} | `{digest}` |" in card
    assert str(checkpoint.whole_state().metrics["test_loss"]) in card
    assert re.search(r"95 % interval of rho, .* \| -?0\.\d{4} to -?0\.\d{4} \|", card)
    assert "portable arithmetic, whose bits are the same on every machine" in card
    assert re.search(
        r"Certificate: certificates/certificate.json .* this state is reproducible at level L\d", card
    )
    assert "clip-hba train training_config.yaml --run-dir runs/run-again" in card
    assert (out / "certificates" / "certificate.json").read_bytes() == certificate.read_bytes()
    config = yaml.safe_load((out / "training_config.yaml").read_text(encoding="utf-8"))
    assert config == yaml.safe_load((finished_run / "config.yaml").read_text()) | {
        "cache_dir": None,
        "run_dir": None,
    }
    assert "a run's best epoch is chosen by it" in card
    assert "is the least that 9,999 permutations can give |" in card
    assert "there is\nno human data" not in card
    assert "knows nothing of photographs" in card
    assert ("`clip_hba_behavior.data.standin.standin_backbone_directory()` returns where." in card) == (
        format == "peft"
    )

    source = finished_run.parent / "data" / "images" / "heldout_0000.png"
    Image.open(source).resize((90, 70)).save(out / "image.jpg")
    monkeypatch.chdir(out)
    found: dict[str, Any] = {}
    exec(compile(snippet(out / "README.md"), "card", "exec"), found)
    expected = load_model(last(finished_run), device="cpu").predict([out / "image.jpg"])
    difference = np.abs(found["predictions"].numpy() - expected).max()
    assert difference <= CLOSE * np.abs(expected).max()

    if format == "merged":
        clip = found["model"]
        with torch.no_grad():
            image = clip.get_image_features(**found["pixels"]).pooler_output
        image = (image / image.norm(dim=-1, keepdim=True)).numpy()
        prompts = np.load("prompt_embeddings.npy")
        by_prompts = np.exp(clip.logit_scale.item()) * image @ prompts.T
        assert np.abs(by_prompts - expected).max() <= CLOSE * np.abs(expected).max()


@pytest.mark.parametrize(
    "keys",
    [
        {"rank": 8, "vision_layers": 1, "transformer_layers": 3},
        {"rank": 8, "vision_layers": 3, "transformer_layers": 1},
        {"rank": 8, "vision_layers": 3, "transformer_layers": 3, "arithmetic": "portable"},
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_any_rank_and_number_of_layers_goes_there_and_back(
    format: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    model = drawn_model(**keys)
    directory = write(model, format, tmp_path / "out")
    predictions, comparison = compare_export(model, directory, format, drawn_images(model), lambda *_: None)
    assert comparison.missing == ()
    assert comparison.largest_difference <= CLOSE * np.abs(predictions).max()
    plain = load_model(config=keys, device="cpu")
    others, _ = compare_export(plain, write(plain, format, tmp_path / "plain"), format, drawn_images(model), print)
    assert np.abs(others - predictions).max() > 1  # so an adapter that was not applied would be seen


def test_a_backbone_in_openais_format_is_exported_too(tmp_path: Path) -> None:
    backbone = standin_backbone_directory()
    weights = tmp_path / "clip.pt"
    theirs = CLIPModel.from_pretrained(backbone)
    torch.save({name: value.detach() for name, value in openai_names(theirs)}, weights)
    model = drawn_model(backbone=str(weights), tokenizer=str(backbone), rank=4)
    same = drawn_model(backbone=str(backbone), rank=4)
    for format in FORMATS:
        directory = write(model, format, tmp_path / format)
        predictions, comparison = compare_export(model, directory, format, drawn_images(model), lambda *_: None)
        assert comparison.largest_difference <= CLOSE * np.abs(predictions).max()
    merged = CLIPModel.from_pretrained(tmp_path / "merged").state_dict()
    write(same, "merged", tmp_path / "same")
    assert all(
        torch.equal(value, merged[name])
        for name, value in CLIPModel.from_pretrained(tmp_path / "same").state_dict().items()
    )


@pytest.mark.parametrize(("format", "spoilt"), [("peft", "lora_B"), ("merged", "visual_projection")])
def test_what_predicts_otherwise_is_refused_and_leaves_nothing(
    format: str, spoilt: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = formats._write_tensors

    def spoil(path: Path, tensors: dict[str, torch.Tensor]) -> None:
        honest(path, {name: value + (1e-3 if spoilt in name else 0.0) for name, value in tensors.items()})

    monkeypatch.setattr(formats, "_write_tensors", spoil)
    with pytest.raises(StoppedError, match=r"predicts otherwise than the run, by .*transformers"):
        export_model(last(finished_run), format, tmp_path / "new" / "out", None, None, HERE)
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_it_says_that_nothing_was_checked(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_export, "find_spec", lambda name: None if name == "peft" else True)
    comparison = export_model(last(finished_run), "peft", tmp_path / "out", None, None, HERE)
    assert str(comparison) == "not loaded back: peft is not installed"
    assert "Not loaded back: peft is not installed." in (tmp_path / "out" / "README.md").read_text()


def test_without_the_held_out_images_drawn_ones_are_compared(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = {"img_dir": str(tmp_path / "nowhere")}
    comparison = export_model(last(finished_run), "merged", tmp_path / "out", None, keys, HERE)
    assert comparison.num_images == 8
    assert "The held-out images are not at hand, so drawn ones are compared" in caplog.text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "There is no interval: the held-out images were not at hand." in card
    assert "as the run recorded it" in card


def test_the_same_model_gives_the_same_bytes(finished_run: Path, tmp_path: Path) -> None:
    for format in FORMATS:
        for name in ("one", "two"):
            export_model(last(finished_run), format, tmp_path / f"{format}_{name}", None, None, HERE)
        one, two = (sorted(tmp_path.glob(f"{format}_{name}/*")) for name in ("one", "two"))
        assert [(path.name, path.read_bytes()) for path in one] == [(path.name, path.read_bytes()) for path in two]
        assert {oct(path.stat().st_mode)[-3:] for path in one} == {"644"}


def test_a_certificate_of_another_state_is_refused(finished_run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    epochs = [{"epoch": 2, "recorded_digest": "0" * 64, "word": "reproducible"}]
    content = {"certificate": "verification", "format_version": 1, "epochs": epochs, "claim": None}
    other.write_text(json.dumps(content))
    with pytest.raises(BadInputError, match="is no certificate of this state"):
        export_model(last(finished_run), "peft", tmp_path / "out", other, None, HERE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("word", "level"), [("reproducible", " at level L0 (all)"), ("not reproducible", "")])
def test_a_state_that_does_not_hold_gets_no_level_of_other_epochs(
    word: str, level: str, finished_run: Path, tmp_path: Path
) -> None:
    checkpoint = read_checkpoint(last(finished_run))
    epochs = [{"epoch": 2, "recorded_digest": checkpoint.state_digest, "word": word}]
    claim = {"level": "L0", "meaning": "all"}
    content = {"certificate": "verification", "format_version": 1, "epochs": epochs, "claim": claim}
    (tmp_path / "c.json").write_text(json.dumps(content))
    (sentence,) = export_module._certificates(RunDirectory(finished_run), checkpoint, tmp_path / "c.json").values()
    assert sentence.endswith(f": this state is {word}{level}")


def test_the_card_tells_the_settings_of_the_run_not_those_given_to_the_export(
    finished_run: Path, tmp_path: Path
) -> None:
    keys = {"random_seed": 77, "lr": 0.5, "arithmetic": "native", "tf32": True}
    export_model(last(finished_run), "peft", tmp_path / "out", None, keys, HERE)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "lr 0.0003, batch_size 8, random_seed 1\n" in card
    assert "portable arithmetic" in card


def test_the_card_of_the_synthetic_data_set_says_so_and_its_command_names_the_run_from_here(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(finished_run, tmp_path / "runs" / "mine")
    keys = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    data = {key: keys.pop(key) for key in DATA_KEYS}
    (run / "config.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    export_model(last(run), "merged", tmp_path / "out", None, data, HERE)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "It was trained on the synthetic data set of clip_hba_behavior" in card
    assert "there is\nno human data in this model" in card
    assert "It knows nothing of photographs.\n\nThese are complete weights" in card
    assert "- synthetic-data\n" in card
    for wrong in ("human RDM", "human-behavior", "SPoSE", str(tmp_path)):
        assert wrong not in card
    command = "clip-hba verify checkpoints runs/mine --json runs/mine/certificate.json"
    assert f"Where this was exported, `{command}` makes one." in card


def test_the_config_of_an_old_run_is_complete(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("preprocessing: 2\n", ""))
    export_model(last(run), "peft", tmp_path / "out", None, None, HERE)
    assert "preprocessing: 1\n" in (tmp_path / "out" / "training_config.yaml").read_text()


def test_wrong_requests_are_told(finished_run: Path, clip_hba: ClipHba, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    for arguments, reason in (
        (("--format", "onnx", "--out", tmp_path / "new"), "--format onnx: expected peft or merged"),
        (("--format", "peft", "--out", tmp_path / "taken"), "is there already, and is not replaced"),
        (("--format", "peft", "--out", tmp_path / "new", "--epoch", "7"), "give --epoch one of those"),
        (
            ("--format", "peft", "--out", tmp_path / "new", "--certificate", tmp_path / "no"),
            "there is no such file",
        ),
    ):
        done = clip_hba("export", finished_run, *arguments)
        assert done.code == 2
        assert reason in done.output
    assert not (tmp_path / "new").exists()
