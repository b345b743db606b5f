"""The configuration: every key typed, documented and checked; unknown keys are refused."""

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.untrusted import open_text, quote, shown
from clip_hba_behavior.wrong_keys import explain

STANDIN = "standin"
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
BatchOrder = Literal["earlier", "later", "later_persistent"]
PreprocessingRule = Literal[1, 2]
Arithmetic = Literal["native", "portable"]
Precision = Literal["float32", "tf32", "bfloat16"]
# The newest definition of portable arithmetic; `exact.DEFINITION`, without importing torch.
PORTABLE: Literal["portable 1"] = "portable 1"
PerturbType = Literal["none", "random_target", "label_shuffle", "image_noise", "uniform_images", "reorder"]
PerturbDistribution = Literal["normal", "target"]
PerturbRule = Literal["philox", "earlier"]
DATA_KEYS = ("csv_file", "img_dir", "inference_csv_file", "RDM48_triplet_dir", "prompts_file")
# where data and backbone are
WHERE_KEYS = (*DATA_KEYS, "image_suffix", "backbone", "tokenizer", "trust_backbone_file")

PERTURB_KEYS = (
    "perturb_type",
    "perturb_epoch",
    "perturb_length",
    "perturb_seed",
    "perturb_distribution",
    "perturb_rule",
)
_UNUSED_BY: dict[PerturbType, tuple[str, ...]] = {
    "none": PERTURB_KEYS[1:],
    "random_target": (),
    "label_shuffle": ("perturb_distribution",),
    "image_noise": ("perturb_distribution", "perturb_rule"),
    "uniform_images": ("perturb_seed", "perturb_distribution", "perturb_rule"),
    "reorder": ("perturb_distribution", "perturb_rule"),
}

# Keys that do not shape a run's trajectory, in any arithmetic. Paths count by
# the digests of what is there, which are recorded and compared on their own.
FREE_KEYS = {
    *WHERE_KEYS,
    "epochs",
    "early_stopping_patience",
    "num_workers",
    "device",
    "cache_dir",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "tracking",
}
# Keys that shape nothing in portable arithmetic.
NATIVE_KEYS = {"num_threads", "deterministic", "precision", "sdpa_backend", "eval_batch_size", "chunk_size"}
# Keys that say where a run is and which state it began with; they are the run's own for good.
ORIGIN_KEYS = {"run_dir", "training_run", "baseline_dora_directory"}
_MAX_BYTES = 2**16  # of YAML; a configuration with every key has 2,000
_MAX_SHOWN = 20
# What PyYAML raises on a value that its tag or form does not fit, beside its own errors.
_YAML_ERRORS = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# Keys of earlier configurations that have no place here, and what became of them.
RETIRED_KEYS = {
    "criterion": "the loss is always the mean squared error",
    "logger": "the log goes to training_log.txt in the run directory",
    "checkpoint_path": "the best epoch is named in best.json in the run directory",
    "dora_parameters_path": "checkpoints go to dora_params/ in the run directory: set run_dir",
    "training_res_path": "results go to training_res.csv in the run directory: set run_dir",
}
# What a run that was made before a key came did in its place, where that is not the key's default now.
_BEFORE_THE_KEY = {"preprocessing": 1}


class Config(BaseModel):
    """One run's configuration. Without any key it trains on the synthetic data set."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    csv_file: str | None = Field(
        None,
        description="Annotation CSV: an index column, image_name, columns 0-65. Default: the synthetic data set.",
    )
    img_dir: str | None = Field(None, description="Directory of the images, flat or in one folder a concept.")
    inference_csv_file: str | None = Field(
        None, description="CSV of the 48 held-out images, rows in the order of the human RDM."
    )
    RDM48_triplet_dir: str | None = Field(None, description="The file RDM48_triplet.mat with the human 48x48 RDM.")
    prompts_file: str | None = Field(None, description="Text file with 66 prompts, one a line.")
    image_suffix: str | None = Field(
        None,
        description="Suffix of the image files, such as .jpg, if it is not that of the names in the tables: it "
        "replaces .jpg, .png and the like at a name's end, and is added to a name without.",
    )

    backbone: str = Field(
        STANDIN,
        description="A ViT CLIP: directory or hub name in Hugging Face format, OpenAI's name (ViT-L/14) "
        "or .pt file; `standin` is the small one that comes with the package.",
    )
    tokenizer: str | None = Field(
        None, description="Directory or hub name of the tokenizer, where the backbone is a .pt file."
    )
    trust_backbone_file: bool = Field(
        False, description="Open a TorchScript .pt that OpenAI did not publish. It can run code."
    )
    vision_layers: Positive = Field(2, description="How many of the last visual blocks get a DoRA layer.")
    transformer_layers: Positive = Field(1, description="How many of the last text blocks get a DoRA layer.")
    rank: Positive = Field(32, description="Rank of the DoRA factors.")
    dora_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Probability with which an entry of the low-rank update is dropped in training."
    )

    epochs: NotNegative = Field(500, description="Train up to this epoch.")
    batch_size: Positive = Field(64, description="Images per training step.")
    train_portion: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.8, description="Share of the images that train; the rest test."
    )
    lr: Annotated[float, Field(gt=0)] = Field(3e-4, description="Learning rate (with a schedule: its peak).")
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="AdamW's weight decay.")
    lr_schedule: Literal["constant", "cosine", "warmup_cosine"] = Field(
        "constant", description="How the learning rate depends on the epoch."
    )
    lr_min: Annotated[float, Field(ge=0)] = Field(0.0, description="Where a schedule's descent ends.")
    lr_warmup_epochs: Positive = Field(5, description="Epochs of warmup_cosine's rise.")
    lr_schedule_epochs: Positive | None = Field(
        None,
        description="The descent's last epoch. Default: `epochs` at the start; extending a run keeps it.",
    )
    early_stopping_patience: Positive = Field(
        20, description="Stop after this many epochs without a better test loss."
    )
    random_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        1, description="Seeds split, initial parameters, batch orders and augmentation."
    )
    batch_order: BatchOrder = Field(
        "earlier",
        description="Which version of the earlier pipeline's shuffling the batch order follows: `earlier` draws "
        "from torch's global generator; `later` from a generator of the train loader's own, seeded once; "
        "`later_persistent` is `later` with worker processes that live on from epoch to epoch.",
    )
    preprocessing: PreprocessingRule = Field(
        2,
        description="The rule by which an image file becomes 8-bit RGB: `2` turns it as EXIF says, scales 16 bits "
        "to 8 and lays transparency over white; `1`, the rule of runs that record none, does not; see "
        "own_data.md.",
    )
    augmentation: list[Literal["random_resized_crop", "horizontal_flip", "color_jitter"]] = Field(
        [], description="What training images undergo; none by default."
    )

    perturb_type: PerturbType = Field(
        "none",
        description="What training undergoes for some epochs: targets drawn at random, targets swapped within "
        "the batch, images of noise, images of one grey, or the same images and targets in another order; see "
        "PERTURBATIONS.md.",
    )
    perturb_epoch: Positive | None = Field(
        None, description="The first perturbed epoch, counted from 1; needed unless perturb_type is none."
    )
    perturb_length: Positive = Field(1, description="How many epochs are perturbed.")
    perturb_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(0, description="Seeds the perturbation's draws.")
    perturb_distribution: PerturbDistribution = Field(
        "normal",
        description="What random_target draws: `normal` numbers with mean and standard deviation of the training "
        "targets, or values of these themselves (`target`).",
    )
    perturb_rule: PerturbRule = Field(
        "philox",
        description="Whose draws: `philox`, the same on every machine; `earlier`, those of the earlier pipeline's "
        "later version, for random_target and label_shuffle.",
    )
    training_run: Positive = Field(
        1,
        description="Start with this epoch, from the state after the epoch before it in baseline_dora_directory.",
    )
    baseline_dora_directory: str | None = Field(
        None,
        description="Directory of the baseline's checkpoints: this run is a fork of it. Needed where training_run "
        "is above 1.",
    )
    fork_early_stopping: Literal["off", "inherit", "fresh"] = Field(
        "off",
        description="Whether early stopping ends a fork: never, by the baseline's counters (`inherit`), or by "
        "counters that begin with the fork (`fresh`).",
    )
    fork_reseed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        None, description="Give a fork other random streams than its baseline's, seeded with this and the epoch."
    )

    checkpoint_every_steps: Positive | None = Field(
        None, description="Also save the state within an epoch, each time after this many of its steps."
    )
    keep_checkpoints: str = Field(
        "all",
        description="Which epochs' checkpoints stay: `all`, `last N`, `every N` or `best`. The first, the newest, "
        "the best, and those that a fork began with stay in any case.",
    )

    tracking: Literal["tensorboard"] | None = Field(
        None,
        description="Also write each point into an event file for TensorBoard, in `tensorboard/` in the run "
        "directory; needs the extra `tensorboard`; see TRACKING.md.",
    )

    arithmetic: Literal["native", "portable", "portable 1"] = Field(
        "native",
        description="`native` is torch's, whose bits depend on processor, threads and versions; `portable` has "
        "the same bits on every machine, and takes about two to four times as long; recorded with the "
        "number of its definition, `portable 1`; see PORTABLE.md.",
    )
    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda or cuda:N.")
    num_workers: NotNegative = Field(
        0, description="Processes that read images, before the first epoch and augmented ones; changes no bit."
    )
    num_threads: Positive | None = Field(
        None, description="CPU threads of one operation; changes bits. Default: the cores at the start."
    )
    deterministic: bool = Field(True, description="Use only operations that repeat their bits.")
    precision: Precision = Field(
        "float32",
        description="What native arithmetic multiplies in: `float32`; `tf32`, to which a GPU rounds the inputs of "
        "products; `bfloat16`, for products by frozen weights in training and evaluation; see PRECISION.md.",
    )
    tf32: bool | None = Field(
        None, exclude=True, description="Earlier spelling: `true` is `precision: tf32`, `false` is `float32`."
    )
    sdpa_backend: Literal["math", "flash", "efficient"] = Field("math", description="Attention kernel.")
    eval_batch_size: Positive = Field(64, description="Images per forward pass in evaluation; changes bits.")
    chunk_size: Positive = Field(32, description="Images per pass through the frozen part; changes bits.")
    cache_dir: str | None = Field(
        None,
        description="Where frozen features are kept. Default: clip_hba_behavior in the user's cache directory.",
    )
    run_dir: str | None = Field(None, description="The run's directory. Default: runs/seed<random_seed>.")

    @model_validator(mode="before")
    @classmethod
    def _understand_other_spellings(cls, given: Any) -> Any:
        """Take the integer `cuda` key of earlier configurations (-1, 0, 1 a GPU, 2 the CPU), and `3e-4`.

        YAML 1.1 takes a number with an exponent and no dot for a text.
        """
        if not isinstance(given, dict):
            return given
        given = dict(given)
        for key, value in given.items():
            if isinstance(value, str) and key in cls.model_fields and not _can_be_a_path(value):
                raise ValueError(f"{key}: found {quote(value)}, expected no NUL and no half of a surrogate pair")
            if type(value) is int and key in cls.model_fields and abs(value) >= 2**63:
                raise ValueError(f"{key}: found {quote(value)}, expected a number of at most 63 bits")
            if isinstance(value, str) and key in cls.model_fields and cls.model_fields[key].annotation is float:
                with suppress(ValueError):
                    given[key] = float(value)
        if "cuda" in given:
            cuda = given.pop("cuda")
            names = {-1: "cuda", 0: "cuda:0", 1: "cuda:1", 2: "cpu"}
            if type(cuda) is not int or cuda not in names:
                raise ValueError(
                    f"cuda: found {quote(cuda)}, expected -1, 0 or 1 (a GPU) or 2 (the CPU); or use device"
                )
            if "device" in given:
                raise ValueError("cuda and device are both given; keep device")
            given["device"] = names[cuda]
        if type(given.get("tf32")) is bool:
            _understand_tf32(given)
        if given.get("augmentation") in (None, "none") and "augmentation" in given:
            given["augmentation"] = []
        return {key: os.fspath(value) if isinstance(value, Path) else value for key, value in given.items()}

    @field_validator("preprocessing", mode="before")
    @classmethod
    def _rule_is_a_number(cls, rule: Any) -> Any:
        if type(rule) is bool:  # which Python takes for 0 or 1
            raise ValueError("expected 1 or 2")
        return rule

    @field_validator("arithmetic", mode="before")
    @classmethod
    def _definition_is_known(cls, arithmetic: Any) -> Any:
        if isinstance(arithmetic, str) and re.fullmatch(r"portable \d+", arithmetic) and arithmetic != PORTABLE:
            raise ValueError(
                f"expected {PORTABLE}, the only definition that this version of the package computes by; "
                "use the version that made the run"
            )
        return arithmetic

    @field_validator("arithmetic")
    @classmethod
    def _definition_is_named(cls, arithmetic: str) -> str:
        return PORTABLE if arithmetic == "portable" else arithmetic

    @field_validator("image_suffix")
    @classmethod
    def _suffix_has_its_dot(cls, suffix: str | None) -> str | None:
        if suffix is not None and not re.fullmatch(r"\.[A-Za-z0-9]+", suffix):
            raise ValueError("expected a dot and letters or digits, such as .jpg")
        return suffix

    @field_validator("device")
    @classmethod
    def _device_is_known(cls, device: str) -> str:
        kind, _, index = device.partition(":")
        if device not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
            raise ValueError("expected auto, cpu, cuda or cuda:N")
        return device

    @field_validator("keep_checkpoints")
    @classmethod
    def _policy_is_known(cls, policy: str) -> str:
        word, _, number = policy.partition(" ")
        counts = word in ("last", "every") and number.isdecimal() and int(number) > 0
        if policy not in ("all", "best") and not counts:
            raise ValueError("expected all, best, last N or every N")
        return policy

    @model_validator(mode="after")
    def _keys_go_together(self) -> "Config":
        given = [key for key in DATA_KEYS if getattr(self, key) is not None]
        if given and len(given) < len(DATA_KEYS):
            absent = [key for key in DATA_KEYS if key not in given]
            raise ValueError(
                f"{', '.join(given)} given, but not {', '.join(absent)}; "
                "give all five, or none for the synthetic data set"
            )
        if self.training_run > 1 and self.baseline_dora_directory is None:
            raise ValueError(f"training_run is {self.training_run}, so baseline_dora_directory is needed")
        last = self.lr_schedule_epochs or self.epochs
        if self.lr_schedule == "warmup_cosine" and self.lr_warmup_epochs > last > 0:
            raise ValueError(f"lr_warmup_epochs is {self.lr_warmup_epochs}, but the schedule ends at epoch {last}")
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min is {self.lr_min}, above lr, which is {self.lr}")
        if self.perturb_type != "none" and self.perturb_epoch is None:
            raise ValueError(
                f"perturb_type is {self.perturb_type}, so perturb_epoch, the first perturbed epoch, is needed"
            )
        if self.is_portable() and self.perturb_type == "random_target" and self.perturb_rule == "earlier":
            raise ValueError(
                "perturb_rule: earlier with perturb_type: random_target draws torch's normal numbers, which "
                "differ between machines, so it cannot go with arithmetic: portable; set perturb_rule: philox"
            )
        if self.is_portable() and self.precision != "float32":
            raise ValueError(
                f"precision: {self.precision} cannot go with arithmetic: portable, whose products are exact; "
                "leave precision out, or set arithmetic: native"
            )
        if len(set(self.augmentation)) < len(self.augmentation):
            raise ValueError(f"augmentation: {quote(self.augmentation)} names one twice")
        return self

    def arithmetic_kind(self) -> Arithmetic:
        """Return `native`, or `portable` whatever the number of its definition."""
        return "native" if self.arithmetic == "native" else "portable"

    def is_portable(self) -> bool:
        """Whether the run's bits are to be the same on every machine."""
        return self.arithmetic_kind() == "portable"

    def without_effect(self) -> set[str]:
        """Return the keys of draws that this kind of perturbation does not make."""
        if self.perturb_type == "random_target" and self.perturb_rule == "earlier":
            return {"perturb_distribution"}  # it knew the normal one alone
        return set(_UNUSED_BY[self.perturb_type])

    def left_out(self) -> dict[str, Any]:
        """Return the keys that were given a value although they have no effect here, with that value."""
        given = self.model_dump(include=self.without_effect())
        return {key: value for key, value in given.items() if value != type(self).model_fields[key].default}

    def effective(self) -> dict[str, Any]:
        """Return every key with its value; one that has no effect counts with its default."""
        return self.model_dump() | {key: type(self).model_fields[key].default for key in self.left_out()}

    def free_keys(self) -> set[str]:
        """Return the keys that may be changed when the run is resumed: they do not shape its trajectory."""
        return FREE_KEYS | (NATIVE_KEYS if self.is_portable() else set())

    def trajectory(self) -> dict[str, Any]:
        """Return the keys that shape the trajectory, with their values."""
        free = self.free_keys() | ORIGIN_KEYS
        return {key: value for key, value in self.effective().items() if key not in free}

    def to_yaml(self) -> str:
        """Return the configuration as YAML, every key with the value that it counts with."""
        return yaml.safe_dump(self.effective(), sort_keys=False, allow_unicode=True)


def _understand_tf32(given: dict[str, Any]) -> None:
    """Put `precision` in the place of its earlier spelling; in portable arithmetic that never counted."""
    is_tf32, precision = given.pop("tf32"), given.get("precision")
    meant = "tf32" if is_tf32 and not str(given.get("arithmetic", "")).startswith("portable") else "float32"
    if precision is not None and (precision == "tf32") != is_tf32:
        raise ValueError(f"tf32: {str(is_tf32).lower()} and precision: {precision} are both given; keep precision")
    given.setdefault("precision", meant)


def _can_be_a_path(text: str) -> bool:
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


class _TwiceError(BadInputError):
    """A mapping gives a key twice: one of the values would be dropped."""


class _PlainLoader(yaml.SafeLoader):
    """Builds plain values, and drops none; an alias may stand for one value only: few lines stay few values."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and not isinstance(node, yaml.ScalarNode):
            raise yaml.YAMLError("an alias stands for a list or a mapping; write the values out")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for name, line in ((key.value, key.start_mark.line + 1) for key, _ in node.value):
            if isinstance(name, str) and name in lines:
                raise _TwiceError(
                    f"the key {shown(name)} is given twice, in line {lines[name]} and in line {line}; keep one"
                )
            lines[str(name)] = line
        return super().construct_mapping(node, deep)


def make_config(given: Mapping[str, Any]) -> Config:
    """Check a mapping and make a configuration of it.

    Raises:
        BadInputError: names every wrong key with its value and what is allowed.
    """
    retired = [f"{key}: {why}; remove the key" for key, why in RETIRED_KEYS.items() if key in given]
    if retired:
        raise BadInputError("the configuration has keys of an earlier version\n  " + "\n  ".join(retired))
    try:
        return Config.model_validate(dict(given))
    except ValidationError as error:
        details = error.errors()
        lines = [explain(detail, Config.model_fields, "docs/configuration.md") for detail in details[:_MAX_SHOWN]]
        lines += [f"and {len(details) - _MAX_SHOWN} more"] if len(details) > _MAX_SHOWN else []
        raise BadInputError("the configuration is wrong\n  " + "\n  ".join(lines)) from None


def as_recorded(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the keys that a run, or a checkpoint of any age, records, with what holds where it records none.

    A key that is still absent then had its default's effect.
    """
    return respelled({**keys, **{key: value for key, value in _BEFORE_THE_KEY.items() if key not in keys}})


def respelled(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return keys with `precision` for its earlier spelling, so that they can take the place of a run's own."""
    found = dict(keys)
    if type(found.get("tf32")) is bool and "precision" not in found:
        _understand_tf32(found)
    return found


def as_digested(trajectory: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a trajectory as their digest is taken: one digest for what is spelt otherwise since."""
    keys = dict(trajectory)
    if keys.get("precision") in ("float32", "tf32"):
        keys["tf32"] = keys.pop("precision") == "tf32"
    return keys


def read_config_file(path: Path, purpose: str = "configuration file") -> dict[str, Any]:
    """Read a YAML file that holds one mapping of keys to plain values.

    Args:
        path: of the file.
        purpose: what the file is, for a person whose path leads nowhere.

    Raises:
        BadInputError: no such file, not YAML, no mapping, or a key is given twice.
    """
    try:
        with open_text(path, _MAX_BYTES) as file:
            text = file.read()
    except FileNotFoundError:
        raise BadInputError(f"there is no {purpose} {path}") from None
    except UnicodeDecodeError as error:
        raise BadInputError(f"{path} cannot be read: it is not UTF-8 text: {error}\n  save it as UTF-8") from None
    except OSError as error:
        raise BadInputError(f"{path} cannot be read: {error}") from None
    try:
        content = yaml.load(text, _PlainLoader)
    except _TwiceError as error:
        raise BadInputError(f"{path}: {error}") from None
    except _YAML_ERRORS as error:
        reason = " ".join(str(error).split())[:1000] or type(error).__name__
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
            mark = error.problem_mark
            reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
        raise BadInputError(f"{path} is no YAML file: {reason}") from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise BadInputError(f"{path} is no configuration: expected one `key: value` a line")
    return content


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Read `key=value` settings from the command line; values are YAML.

    Raises:
        BadInputError: a setting without `=`, a key that is set twice, or a value that is no YAML.
    """
    parsed: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise BadInputError(f"--set {shown(setting)}: expected key=value")
        if key.strip() in parsed:
            raise BadInputError(f"--set {shown(setting)}: {shown(key.strip())} is set twice; keep one")
        try:
            if len(text) > _MAX_BYTES:
                raise ValueError
            parsed[key.strip()] = yaml.load(text, _PlainLoader)
        except _TwiceError as error:
            raise BadInputError(f"--set {shown(setting)}: {error}") from None
        except _YAML_ERRORS:
            raise BadInputError(f"--set {shown(setting)}: the value is no YAML") from None
    return parsed
