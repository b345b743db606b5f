"""`clip-hba data check` and the same faults in `train`: what is said of data that a user may bring."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_hba_behavior.data.standin import standin_backbone_directory
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome
from run_tools import differences, trained, write_config

ClipHba = Callable[..., Outcome]


@pytest.fixture
def data(standin_data: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(standin_data, tmp_path / "data"))


@pytest.fixture
def keys(small_config: dict[str, Any], data: Path, standin_data: Path, tmp_path: Path) -> dict[str, Any]:
    replaced = {
        key: value.replace(str(standin_data), str(data)) if isinstance(value, str) else value
        for key, value in small_config.items()
    }
    return replaced | {"epochs": 1, "run_dir": str(tmp_path / "run")}


def test_unusual_images_are_told_with_how_they_are_read_and_are_no_problem(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    values = np.random.Generator(np.random.Philox(1)).integers(256, 2**16, (64, 64), dtype=np.uint16)
    Image.fromarray(values).save(data / "images/drawn_0000.png")
    shutil.copyfile(data / "images/drawn_0001.png", data / "images/drawn_0002.png")
    for rule, read_as in ((2, "the upper 8 bits are read"), (1, "values above 255 are cut to white")):
        config = write_config(tmp_path / "config.yaml", keys, preprocessing=rule)
        outcome = clip_hba("data", "check", config)
        assert outcome.code == 0, outcome.output
        assert "image modes:           107 RGB, 1 I;16" in outcome.output
        assert "equal images:          1" in outcome.output
        assert f"1 image 16-bit grey (drawn_0000.png): by preprocessing {rule} {read_as}" in outcome.output
        assert "- 1 image with the bytes of another: drawn_0001.png = drawn_0002.png" in outcome.output
        assert f"one-coloured images:   {2 - rule}" in outcome.output
        assert outcome.output.endswith("no problems\n")


def test_held_out_rows_in_another_order_are_told_in_the_head_of_the_log_and_are_a_problem_of_the_check(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    outcome = clip_hba("train", config, "--set", f"run_dir={tmp_path / 'right'}")
    assert outcome.code == 0, outcome.output
    assert "order" not in outcome.output

    header, *rows = (data / "inference48.csv").read_text().splitlines(keepends=True)
    (data / "inference48.csv").write_text("".join([header, *rows[7:], *rows[:7]]))
    outcome = clip_hba("train", config)
    assert outcome.code == 0, outcome.output
    log = (tmp_path / "run/training_log.txt").read_text()
    assert outcome.output.index("look to be in the wrong order") < outcome.output.index("Epoch 1/1")
    assert f"the rows of {data / 'inference48.csv'} look to be in the wrong order" in log
    assert "expected: above 95 % of the random orders" in log
    assert "the run goes on, but its behavioral RSA would mean nothing" in log
    outcome = clip_hba("resume", tmp_path / "run", "--set", "epochs=2")
    assert outcome.code == 0, outcome.output
    assert "wrong order" not in outcome.output  # it was said when the run began

    outcome = clip_hba("data", "check", config)
    assert outcome.code == 1, outcome.output
    assert "look to be in the wrong order" in outcome.output
    assert "expected: at least 0.5" in outcome.output


def test_the_backbone_and_its_tokenizer_are_checked_with_the_words_of_a_run(
    clip_hba: ClipHba, keys: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    outcome = clip_hba("data", "check", config)
    assert outcome.code == 0, outcome.output
    assert "backbone:              4 visual and 4 text blocks, images of 64 x 64" in outcome.output
    assert "tokenizer:             fits the backbone" in outcome.output
    assert "small images:          0" in outcome.output

    clip = Path(shutil.copytree(standin_backbone_directory(), tmp_path / "clip"))
    (clip / "tokenizer.json").write_text("{}")
    bare = Path(shutil.copytree(standin_backbone_directory(), tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    for changes, message in (
        ({"backbone": "ViT-L/41"}, "there is no backbone ViT-L/41; did you mean ViT-L/14?"),
        ({"backbone": str(bare)}, "could not be loaded: it has no model.safetensors"),
        ({"tokenizer": str(tmp_path / "none")}, "could not be loaded: there is no such directory"),
        ({"backbone": str(clip)}, f"tokenizer {clip} could not be loaded"),
        (
            {"vision_layers": 99},
            "vision_layers does not fit the backbone\n  found:    99\n  expected: at most 4",
        ),
        ({"transformer_layers": 5}, "transformer_layers does not fit the backbone\n  found:    5"),
        ({"train_portion": 0.001}, "train_portion 0.001 leaves 0 of 60 images to train"),
    ):
        config = write_config(tmp_path / "config.yaml", keys, **changes)
        outcome = clip_hba("train", config)
        assert outcome.code == 2, outcome.output
        assert message in outcome.output
        assert not (tmp_path / "run").exists()
        outcome = clip_hba("data", "check", config)
        assert outcome.code == 1, outcome.output
        assert message in outcome.output
        assert "\n1 problem:\n" in outcome.output
        assert "image modes:           108 RGB" in outcome.output  # the rest is checked all the same


def test_prompts_that_the_backbone_cannot_take_are_found(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    prompts = (data / "prompts.txt").read_text().splitlines()
    (data / "prompts.txt").write_text("\n".join(["red " * 100, *prompts[1:]]) + "\n")
    outcome = clip_hba("data", "check", write_config(tmp_path / "config.yaml", keys))
    assert outcome.code == 1, outcome.output
    assert "images of 64 x 64; the small CLIP that comes with the package, as no other backbone is named\n" in (
        outcome.output
    )
    assert "tokenizer:             does not fit" in outcome.output
    assert "a prompt is too long" in outcome.output
    (data / "prompts.txt").unlink()
    outcome = clip_hba("data", "check", write_config(tmp_path / "config.yaml", keys))
    assert "tokenizer:             fits the backbone; no prompts to try" in outcome.output


def test_semicolons_and_tabs_are_read_and_give_the_same_run(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    runs = [trained(clip_hba, tmp_path, keys, "commas")]
    digests = [RunDirectory(runs[0]).read_environment()["digests"]]
    for name, delimiter in (("semicolons", ";"), ("tabs", "\t")):
        for table in ("annotations.csv", "inference48.csv"):
            (data / name).mkdir(exist_ok=True)
            (data / name / table).write_text((data / table).read_text().replace(",", delimiter))
        tables = {
            "csv_file": str(data / name / "annotations.csv"),
            "inference_csv_file": str(data / name / "inference48.csv"),
        }
        outcome = clip_hba("data", "check", write_config(tmp_path / "config.yaml", keys | tables))
        assert outcome.code == 0, outcome.output
        runs.append(trained(clip_hba, tmp_path, keys | tables, name))
        digests.append(RunDirectory(runs[-1]).read_environment()["digests"])
    assert digests == [digests[0]] * 3
    assert differences(runs[0], runs[1]) == differences(runs[0], runs[2]) == []


def test_decimal_commas_and_another_delimiter_are_refused_by_name(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    table = data / "annotations.csv"
    text = table.read_text()
    for content, message in (
        (
            text.replace(",", ";").replace(".", ",").replace(",png", ".png"),
            "is written with a decimal comma\n  expected: a finite number\n"
            "  export the table again with decimal points",
        ),
        (
            text.replace(",", "|"),
            f"{table}: columns image_name, 0, 1, 2, 3, ... (67 in all) missing\n"
            "  found:    one column, '|image_name|0|1|",
        ),
    ):
        table.write_text(content)
        for arguments, code in ((("train", config), 2), (("data", "check", config), 1)):
            outcome = clip_hba(*arguments)
            assert outcome.code == code, outcome.output
            assert message in outcome.output
        assert not (tmp_path / "run").exists()


def test_images_under_another_suffix_are_told_and_found_by_image_suffix(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    plain = trained(clip_hba, tmp_path, keys, "plain")
    old = trained(clip_hba, tmp_path, keys, "old")
    text = (old / "config.yaml").read_text()
    assert "image_suffix: null\n" in text
    (old / "config.yaml").write_text(text.replace("image_suffix: null\n", ""))  # as before there was the key
    tables = {}
    for key, suffix in (("csv_file", ".jpg"), ("inference_csv_file", "")):
        table = Path(keys[key])
        tables[key] = str(table.with_name(f"other_{table.name}"))
        Path(tables[key]).write_text(table.read_text().replace(".png", suffix))
    config = write_config(tmp_path / "config.yaml", keys | tables)
    for arguments, code in ((("train", config), 2), (("data", "check", config), 1)):
        outcome = clip_hba(*arguments)
        assert outcome.code == code, outcome.output
        first = data / "images/drawn_0000.png"
        assert (
            f"{data / 'images'}: 108 of 108 images are missing: drawn_0000.jpg, drawn_0001.jpg, drawn_0002.jpg, "
            "drawn_0003.jpg, drawn_0004.jpg, ...\n"
            f"  found:    108 of them under another name, such as {first} for 'drawn_0000.jpg'\n"
            "  expected: each image flat in that directory or in one folder a concept\n"
            "  set image_suffix: .png in the configuration; or rename the files, or correct the names in the "
            "tables\n"
        ) in outcome.output
    outcome = clip_hba("data", "check", write_config(config, keys | tables, image_suffix=".png"))
    assert outcome.code == 0, outcome.output
    other = trained(clip_hba, tmp_path, keys | tables, "other", image_suffix=".png")
    assert (
        RunDirectory(other).read_environment()["digests"]["images"]
        == (RunDirectory(plain).read_environment()["digests"]["images"])
    )
    assert clip_hba("verify", "checkpoints", other).code == 0

    moved = Path(shutil.copytree(data / "images", tmp_path / "moved"))
    for path in moved.iterdir():
        path.rename(path.with_suffix(".PNG"))
    where = ("--set", f"img_dir={moved}", "--set", "image_suffix=.PNG")
    for run, settings in ((plain, ()), (old, where)):
        outcome = clip_hba("resume", run, "--set", "epochs=2", *settings)
        assert outcome.code == 0, outcome.output
    assert differences(plain, old) == []


def test_a_fault_of_all_rows_is_told_once_with_three_examples(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    table = data / "annotations.csv"
    text = table.read_text()
    table.write_text(text.replace(",drawn_", ",/my/images/drawn_"))
    names = table.read_text().splitlines()[1:4]
    message = (
        "60 times the same problem, such as\n"
        + "".join(
            f"    {table}, line {line}: image name {row.split(',')[1]!r} has a path separator\n"
            for line, row in enumerate(names, start=2)
        )
        + "  expected: a file name such as aardvark_01b.jpg\n"
        "  give the names alone, and their directory as img_dir\n"
    )
    outcome = clip_hba("train", config)
    assert outcome.code == 2, outcome.output
    assert message in outcome.output
    assert len(outcome.output.splitlines()) < 12
    outcome = clip_hba("data", "check", config)
    assert outcome.code == 1, outcome.output
    assert f"1 problem:\n- {message}" in outcome.output

    shutil.copyfile(data / "prompts.txt", data / "images/drawn_0000.png")
    for path in (data / "images").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    table.write_text(text)
    outcome = clip_hba("data", "check", config)
    assert outcome.code == 1, outcome.output
    assert "unreadable images:     108\n" in outcome.output
    assert (
        f"2 problems:\n- {data / 'images/drawn_0000.png'}: the image cannot be read: it is no JP" in outcome.output
    )
    assert "\n- 107 times the same problem, such as\n" in outcome.output


def test_tables_in_other_encodings_and_formats_are_refused_by_name(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", keys)
    table = data / "annotations.csv"
    text = table.read_text()
    for content, message in (
        (text.encode("utf-16"), "it is UTF-16 text, not UTF-8 text\n  save it as UTF-8"),
        (text.replace("drawn_0003", "größe").encode("latin-1"), "it is not UTF-8 text: byte 0xf6 after '"),
        (gzip.compress(text.encode()), "it is compressed by gzip, not UTF-8 text\n  decompress it"),
    ):
        table.write_bytes(content)
        for arguments, code in ((("train", config), 2), (("data", "check", config), 1)):
            outcome = clip_hba(*arguments)
            assert outcome.code == code, outcome.output
            assert f"{table}: {message}" in outcome.output


def test_held_out_images_that_are_trained_on_are_told_at_the_head_of_a_run(
    clip_hba: ClipHba, keys: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    held_out = (data / "inference48.csv").read_text().splitlines()
    table = data / "annotations.csv"
    table.write_text(table.read_text() + held_out[1] + "\n")
    config = write_config(tmp_path / "config.yaml", keys)
    message = (
        f"1 image stands in both {table} and {data / 'inference48.csv'}: {held_out[1].split(',')[1]}; "
        "held-out images must not be trained on\n  remove them from one of the tables"
    )
    outcome = clip_hba("data", "check", config)
    assert outcome.code == 1, outcome.output
    assert f"\n1 problem:\n- {message}\n" in outcome.output
    outcome = clip_hba("train", config)
    assert outcome.code == 0, outcome.output
    assert f"{message}\n  the run goes on, but its behavioral RSA is of images that it may" in outcome.output
    assert outcome.output.index(message) < outcome.output.index("Epoch 1/1")
    assert message in (tmp_path / "run/training_log.txt").read_text()
