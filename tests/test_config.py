from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.config import (
    DATA_KEYS,
    FREE_KEYS,
    Config,
    as_digested,
    as_recorded,
    make_config,
    parse_settings,
    read_config_file,
    respelled,
)
from clip_hba_behavior.reproducibility.state.errors import BadInputError

DATA = dict.fromkeys(DATA_KEYS, "somewhere")


def test_an_empty_configuration_is_the_recorded_runs_settings_on_the_synthetic_data_set() -> None:
    config = make_config({})
    assert (config.rank, config.vision_layers, config.transformer_layers) == (32, 2, 1)
    assert (config.lr, config.batch_size, config.train_portion, config.weight_decay) == (3e-4, 64, 0.8, 0.01)
    assert (config.early_stopping_patience, config.dora_dropout, config.augmentation) == (20, 0.0, [])
    assert config.csv_file is None


def test_a_new_configuration_has_rule_2_and_a_record_without_a_rule_had_rule_1() -> None:
    assert make_config({}).preprocessing == 2
    assert make_config(as_recorded({})).preprocessing == 1
    assert make_config(as_recorded({"preprocessing": 2})).preprocessing == 2


def test_the_earlier_spelling_of_precision_is_understood_and_written_nowhere() -> None:
    for keys, precision in (
        ({"tf32": True}, "tf32"),
        ({"tf32": False}, "float32"),
        ({"tf32": True, "precision": "tf32"}, "tf32"),
        ({"tf32": False, "precision": "bfloat16"}, "bfloat16"),
        ({"tf32": True, "arithmetic": "portable"}, "float32"),  # where it never had an effect
    ):
        for config in (make_config(keys), make_config(as_recorded(keys))):
            assert config.precision == precision
            assert "tf32" not in {**config.model_dump(), **config.trajectory()}
            assert "\ntf32:" not in config.to_yaml()
    assert make_config({}).trajectory()["precision"] == "float32"
    digested = [
        as_digested(make_config(keys).trajectory()) for keys in ({}, {"tf32": True}, {"precision": "bfloat16"})
    ]
    assert [(each.get("tf32"), each.get("precision")) for each in digested] == [
        (False, None),
        (True, None),
        (None, "bfloat16"),
    ]
    assert "precision" not in make_config({"arithmetic": "portable"}).trajectory()


def test_the_earlier_spelling_of_precision_takes_the_place_of_a_runs_own() -> None:
    own = make_config({"precision": "float32"}).model_dump()
    with pytest.raises(BadInputError, match="are both given"):
        make_config(own | {"tf32": True})
    assert make_config(own | respelled({"tf32": True})).precision == "tf32"
    assert respelled({"tf32": True, "precision": "bfloat16"}) == {"tf32": True, "precision": "bfloat16"}  # refused
    assert respelled({"tf32": 1, "rank": 2}) == {"tf32": 1, "rank": 2}  # refused


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"precision": "float16"}, "precision: found 'float16', expected 'float32', 'tf32' or 'bfloat16'"),
        ({"precision": "tf32", "arithmetic": "portable"}, "precision: tf32 cannot go with arithmetic: portable"),
        ({"precision": "bfloat16", "arithmetic": "portable"}, "leave precision out, or set arithmetic: native"),
        ({"tf32": True, "precision": "float32"}, "tf32: true and precision: float32 are both given"),
        ({"tf32": False, "precision": "tf32"}, "tf32: false and precision: tf32 are both given; keep precision"),
        ({"tf32": 1}, "tf32: found 1, expected true or false"),
        ({"epohcs": 3}, "epohcs: no such key; did you mean epochs?"),
        ({"arithmetic": "portable 2"}, "found 'portable 2', expected portable 1, the only definition that this"),
        ({"nonsense_key_xyz": 3}, "nonsense_key_xyz: no such key; see docs/configuration.md"),
        ({"learning_rate": 3}, "learning_rate: no such key; did you mean lr?"),
        ({"seed": 3}, "seed: no such key; did you mean random_seed?"),
        ({"batchsize": 3}, "batchsize: no such key; did you mean batch_size?"),
        ({"lr": 0}, "lr: found 0, expected greater than 0"),
        ({"lr": "fast"}, "lr: found 'fast', expected a valid number"),
        ({"lr": float("nan")}, "lr: found nan, expected a finite number"),
        ({"batch_size": 2.5}, "batch_size: found 2.5, expected a valid integer"),
        ({"batch_size": True}, "batch_size: found True, expected a valid integer"),
        ({"train_portion": 1.0}, "train_portion: found 1.0, expected less than 1"),
        ({"lr_schedule": "linear"}, "expected 'constant', 'cosine' or 'warmup_cosine'"),
        ({"augmentation": ["rotate"]}, "augmentation.0: found 'rotate'"),
        ({"augmentation": ["horizontal_flip", "horizontal_flip"]}, "names one twice"),
        (
            {"perturb_type": "random_targets"},
            "perturb_type: found 'random_targets', expected 'none', 'random_target'",
        ),
        (
            {"perturb_type": "random_target"},
            "perturb_type is random_target, so perturb_epoch, the first perturbed",
        ),
        ({"image_suffix": "jpg"}, "image_suffix: found 'jpg', expected a dot and letters or digits, such as .jpg"),
        ({"image_suffix": "./a.jpg"}, "image_suffix: found './a.jpg', expected a dot and letters or digits"),
        ({"preprocessing": 3}, "preprocessing: found 3, expected 1 or 2"),
        ({"preprocessing": True}, "preprocessing: found True, expected 1 or 2"),
        ({"perturb_type": "image_noise", "perturb_epoch": 0}, "perturb_epoch: found 0"),
        ({"fork_early_stopping": "on"}, "fork_early_stopping: found 'on', expected 'off', 'inherit' or 'fresh'"),
        ({"device": "tpu"}, "device: found 'tpu', expected auto, cpu, cuda or cuda:N"),
        ({"cuda": 7}, "cuda: found 7, expected -1, 0 or 1 (a GPU) or 2 (the CPU)"),
        ({"cuda": 0, "device": "cpu"}, "cuda and device are both given"),
        ({"csv_file": "a.csv"}, "csv_file given, but not img_dir"),
        ({"training_run": 3}, "baseline_dora_directory is needed"),
        ({"criterion": "mse"}, "criterion: the loss is always the mean squared error; remove the key"),
        ({"dora_parameters_path": "x"}, "set run_dir"),
        ({"random_seed": -1}, "random_seed: found -1"),
        ({"lr_schedule": "warmup_cosine", "epochs": 3}, "lr_warmup_epochs is 5, but the schedule ends at epoch 3"),
        ({"lr_min": 0.5}, "lr_min is 0.5, above lr"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_key_is_refused_with_its_value_and_what_is_allowed(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError) as refused:
        make_config(keys)
    assert message in str(refused.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(BadInputError, match=r"rank: (.|\n)*lr: "):
        make_config({"lr": -1, "rank": 0})


@pytest.mark.parametrize(("cuda", "device"), [(-1, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cpu")])
def test_the_old_integer_cuda_key_is_understood(cuda: int, device: str) -> None:
    assert make_config({"cuda": cuda}).device == device


@pytest.mark.parametrize("none", [None, "none", []])
def test_no_augmentation_is_said_in_several_ways(none: object) -> None:
    assert make_config({"augmentation": none}).augmentation == []


def test_the_yaml_of_a_configuration_reads_back_as_the_same(tmp_path: Path) -> None:
    config = make_config(DATA | {"lr": 3e-5, "augmentation": ["color_jitter"], "img_dir": Path("/a b/c")})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert make_config(read_config_file(tmp_path / "config.yaml")) == config


def test_numbers_in_scientific_notation_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 3e-4\nweight_decay: 1E-2\n")
    config = make_config(read_config_file(tmp_path / "config.yaml"))
    assert (config.lr, config.weight_decay) == (3e-4, 0.01)
    config = make_config(
        parse_settings(["lr=3.0e4", "lr_min=1e-3", "run_dir=1e5", "augmentation=[horizontal_flip]"])
    )
    assert (config.lr, config.lr_min, config.run_dir) == (3e4, 1e-3, "1e5")
    assert config.augmentation == ["horizontal_flip"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b\n", "expected one `key: value` a line"),
        ("a: [1\n", "is no YAML file"),
        ("a: !!python/object/apply:os.system ['touch ran']\n", "is no YAML file"),
        ("1: 2\n", "expected one `key: value` a line"),
        ("run_dir: 2020-13-45\n", "is no YAML file"),
        ("a: " + "[" * 5000, "is no YAML file"),
        ("lr: 1\nrank: 2\n'lr': 3\n", "config.yaml: the key lr is given twice, in line 1 and in line 3; keep one"),
        ("a: {b: 1, b: 1}\n", "the key b is given twice, in line 1 and in line 1"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(BadInputError, match=message):
        read_config_file(tmp_path / "config.yaml")
    assert not (tmp_path / "ran").exists()


def test_a_setting_without_a_value_is_refused() -> None:
    with pytest.raises(BadInputError, match="expected key=value"):
        parse_settings(["epochs"])


def test_a_key_that_is_set_twice_is_refused() -> None:
    with pytest.raises(BadInputError, match="--set lr=2: lr is set twice; keep one"):
        parse_settings(["lr=1", "lr=2"])


def test_free_keys_are_no_part_of_the_trajectory() -> None:
    base = make_config(DATA)
    other = {"epochs": 7, "num_workers": 3, "device": "cpu", "cache_dir": "x", "csv_file": "z"}
    assert make_config(DATA | other | {"run_dir": "y"}).trajectory() == base.trajectory()
    assert other.keys() <= FREE_KEYS <= Config.model_fields.keys()


def test_a_perturbation_and_what_a_fork_does_are_part_of_the_trajectory() -> None:
    keys = {"perturb_type": "random_target", "perturb_epoch": 3, "perturb_length": 2, "perturb_seed": 4}
    more = {"perturb_distribution": "target", "fork_early_stopping": "fresh", "fork_reseed": 5}
    assert (keys | more).items() <= make_config(keys | more).trajectory().items()
    assert make_config(keys | {"perturb_rule": "earlier"}).trajectory()["perturb_rule"] == "earlier"


@pytest.mark.parametrize(
    ("kind", "unused"),
    [
        ({"perturb_type": "none"}, {"perturb_epoch": 3, "perturb_length": 2, "perturb_seed": 3}),
        ({"perturb_type": "label_shuffle"}, {"perturb_distribution": "target"}),
        ({"perturb_type": "image_noise"}, {"perturb_distribution": "target", "perturb_rule": "earlier"}),
        ({"perturb_type": "uniform_images"}, {"perturb_seed": 3, "perturb_rule": "earlier"}),
        ({"perturb_type": "random_target", "perturb_rule": "earlier"}, {"perturb_distribution": "target"}),
    ],
    ids=lambda keys: next(iter(keys.values())),
)
def test_a_key_without_effect_counts_with_its_default(
    kind: dict[str, Any], unused: dict[str, Any], tmp_path: Path
) -> None:
    if kind["perturb_type"] != "none":
        kind = kind | {"perturb_epoch": 3}
    plain, config = make_config(kind), make_config(kind | unused)
    assert config.left_out() == unused
    assert plain.left_out() == {}
    assert config.trajectory() == plain.trajectory()
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert make_config(read_config_file(tmp_path / "config.yaml")) == plain


def test_a_key_without_effect_still_needs_a_value_that_can_be() -> None:
    with pytest.raises(BadInputError, match="perturb_seed: found -1"):
        make_config({"perturb_type": "uniform_images", "perturb_epoch": 3, "perturb_seed": -1})


@pytest.mark.parametrize(
    "key", ["lr", "batch_size", "rank", "random_seed", "num_threads", "eval_batch_size", "lr_schedule_epochs"]
)
def test_keys_that_shape_the_trajectory_count(key: str) -> None:
    base = make_config({})
    assert key not in FREE_KEYS
    changed = make_config({key: (getattr(base, key) or 1) * 2})
    assert changed.trajectory() != base.trajectory()


def test_every_key_has_a_description() -> None:
    assert all(field.description for field in Config.model_fields.values())
