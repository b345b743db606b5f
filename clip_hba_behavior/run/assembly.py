"""A run put together: its data and backbone read, its trainer built."""

import dataclasses
import logging
from pathlib import Path
from typing import Any, TypeVar

import torch

from clip_hba_behavior.config import DATA_KEYS, ORIGIN_KEYS, PERTURB_KEYS, STANDIN, Config, make_config
from clip_hba_behavior.data.check import DataReport, check_data
from clip_hba_behavior.data.standin import data_keys, standin_backbone_directory, write_standin_dataset
from clip_hba_behavior.model.architecture import ClipConfig
from clip_hba_behavior.model.clip import Clip
from clip_hba_behavior.model.clip_hba import CLIPHBA
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.environment import device_model
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import (
    apply_numerics,
    check_float64_products,
    check_sdpa_backend,
    resolve_device,
    rounds_to_tf32,
)
from clip_hba_behavior.run.environment import describe_environment
from clip_hba_behavior.run.kept import Kept
from clip_hba_behavior.run.log import LOGGER_NAME, SECONDS_BETWEEN_LINES, session
from clip_hba_behavior.run.request import FORK_KEYS
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training import seed_protocol
from clip_hba_behavior.training.fit import check_model, load_model_config
from clip_hba_behavior.training.inputs import Inputs, load_inputs, operations_of
from clip_hba_behavior.training.trainer import Trainer, num_threads_here


def is_synthetic(config: Config) -> bool:
    """Whether a configuration means the synthetic data set: ask it of a run's recorded one."""
    return config.csv_file is None


def with_standin(config: Config) -> Config:
    """Put the synthetic data set's files where no data or no backbone is named."""
    values: dict[str, Any] = {}
    if is_synthetic(config):
        directory = Path(str(config.cache_dir)) / "standin"
        if put_back := write_standin_dataset(directory):
            some = ", ".join(put_back[:5]) + (f" and {len(put_back) - 5} more" if len(put_back) > 5 else "")
            logging.getLogger(LOGGER_NAME).warning(
                "The synthetic data set in %s had been changed; as drawn again: %s", directory, some
            )
        values |= data_keys(directory)
    if config.backbone == STANDIN:
        values["backbone"] = str(standin_backbone_directory())
    return make_config(config.model_dump() | values)


def check_data_of(config: Config) -> DataReport:
    """Check the data that a configuration names, without any the synthetic one's, and that the model fits them."""
    with session() as here:
        data = with_standin(resolve_config(make_config(config.model_dump() | {"device": "cpu"})))
        backbone: ClipConfig | BadInputError
        try:
            backbone = load_model_config(data)
        except BadInputError as error:
            backbone = error
        report = check_data(
            *(Path(str(getattr(data, key))) for key in DATA_KEYS),
            image_suffix=data.image_suffix,
            rule=data.preprocessing,
            image_size=backbone.vision_config.image_size if isinstance(backbone, ClipConfig) else 224,
            progress=lambda done, total: here.interruptible().report("opening images", done, total),
        )
    model = check_model(data, backbone, report.prompts, report.num_train_images)
    which = "; the small CLIP that comes with the package, as no other backbone is named"
    if config.backbone != STANDIN or is_synthetic(config):
        which = ""
    lines = (f"backbone:              {model.backbone}{which}", f"tokenizer:             {model.tokenizer}")
    return dataclasses.replace(report, model=lines, problems=(*report.problems, *model.problems))


Model = TypeVar("Model", bound=CLIPHBA)
# What the forks of a sweep differ in, none of which `load_inputs` asks for.
_SHAPING_NO_INPUTS = {*PERTURB_KEYS, *FORK_KEYS, *ORIGIN_KEYS, "epochs", "early_stopping_patience"}


def build_model(
    config: Config,
    backbone: Clip,
    end_positions: torch.Tensor,
    kind: type[Model] = CLIPHBA,  # type: ignore[assignment]
) -> Model:
    """Make the model of a configuration; its low-rank factors are zero until drawn or loaded.

    Args:
        config: with the keys that shape the model.
        backbone: on its device.
        end_positions: `[66] int64`, each prompt's end token, there too.
        kind: of the model.
    """
    return kind(
        backbone,
        config.vision_layers,
        config.transformer_layers,
        config.rank,
        config.dora_dropout,
        end_positions,
        operations=operations_of(config, is_suffix=True),
        prompt_operations=operations_of(config, is_suffix=True),
    )


def _read_inputs(config: Config, device: torch.device, session: Session) -> Inputs:
    """Load the inputs, and say at what rate features were computed, where they were."""
    inputs = load_inputs(with_standin(config), device, session.report)
    filling = inputs.image_cache.filling
    if filling is not None and filling.num_rows:
        rate, share = filling.num_rows / filling.seconds, inputs.waiting / filling.seconds
        # Several workers hide what one after the other costs; a little is not worth starting them.
        advice = "; num_workers reads them in processes of their own"
        is_slow = filling.seconds > SECONDS_BETWEEN_LINES and share > 1 / 4 and not config.num_workers
        session.logger.info(
            "Computed the features of %d images in %.1f s, %.1f per second; %.0f %% of it waiting for images%s",
            filling.num_rows,
            filling.seconds,
            rate,
            100 * share,
            advice if is_slow else "",
        )
    return inputs


def build_trainer(
    config: Config, session: Session, kept: Kept[Inputs] | None = None
) -> tuple[Trainer, dict[str, Any]]:
    """Make the trainer with the run's split; its parameters are drawn, or restored, afterwards.

    Args:
        config: resolved.
        session: told of the progress in reading images and computing features.
        kept: the inputs of an earlier run of this process, if it may have the same.

    Returns:
        The trainer, and the description of the environment.

    Raises:
        BadInputError: data, backbone or device cannot be used.
    """
    device = resolve_device(config.device)
    session = session.interruptible()
    if config.is_portable():
        check_float64_products(device)
    else:
        check_sdpa_backend(config.sdpa_backend, device)
    if config.precision == "tf32" and not rounds_to_tf32(device):
        session.logger.warning(
            "precision: tf32 changes nothing on %s, which has none: products stay in float32", device_model(device)
        )
    apply_numerics(num_threads_here(config), config.deterministic, config.precision == "tf32")
    inputs = (kept or Kept()).get(
        tuple(config.model_dump(exclude=_SHAPING_NO_INPUTS).items()),
        lambda: _read_inputs(config, device, session),
        lambda inputs: inputs.files,
    )
    model: CLIPHBA = build_model(config, inputs.backbone.upper(), inputs.end_positions)
    split = seed_protocol.begin(config.random_seed, inputs.num_images(), config.train_portion)
    return Trainer(config, model, inputs, split), describe_environment(config, inputs)
