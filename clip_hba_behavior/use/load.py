"""The model of a run, of one of its checkpoints, or of a configuration, ready to predict."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip_hba_behavior.config import Config, make_config, respelled
from clip_hba_behavior.data.things import read_prompts
from clip_hba_behavior.model.backbone import load_backbone
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.numerics import resolve_device
from clip_hba_behavior.reproducibility.state.snapshot import restore_parameters
from clip_hba_behavior.run.assembly import build_model, with_standin
from clip_hba_behavior.run.checkpoint import Checkpoint, read_checkpoint, read_named
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.resolution import resolve_config
from clip_hba_behavior.training.fit import layer_problems, tokens_of
from clip_hba_behavior.use.trained_model import TrainedModel


def load_model(
    source: str | os.PathLike[str] | None = None,
    *,
    config: Config | Mapping[str, Any] | None = None,
    device: str = "auto",
) -> TrainedModel:
    """Load CLIP-HBA with the parameters of a run or a checkpoint, in evaluation mode.

    `model.predict(paths)` gives predictions for image files, `model.embed(pixels)` for their pixels. Called, the
    model maps frozen image features `[batch, 2, tokens, width] float32` and prompt features, `[66, 2, tokens,
    width] float32`, to predictions `[batch, 66] float32`. Its `state_dict` holds the trainable parameters under
    the names that checkpoints have, so `model.load_state_dict(checkpoint, strict=False)` puts another's into it.
    No random stream is drawn from, and numerics stay as they are.

    Args:
        source: a run's directory, for its best epoch as `best.json` names it; or a checkpoint file. None for
            the model of `config` before training: CLIP itself, its low-rank factors zero.
        config: keys of a configuration. Beside a run, or a checkpoint in one, those that are others than the
            run's, such as where the backbone is now. A checkpoint that is in no run needs those that shape the
            model: `backbone`, `prompts_file` with the other data keys, `vision_layers`, `transformer_layers`,
            `rank`.
        device: where the model computes: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Returns:
        The model; its trainable parameters require gradients.

    Raises:
        BadInputError: neither was given; there is no such run or checkpoint, or it is damaged; backbone or
            prompts cannot be read, or are not those that the run recorded; or the parameters do not fit.
    """
    given = (
        config.model_dump(include=config.model_fields_set)
        if isinstance(config, Config)
        else respelled(config or {})
    )
    if source is None and config is None:
        raise BadInputError("load_model: give a run's directory, a checkpoint file, or config=")
    run, checkpoint = (None, None) if source is None else _read(Path(source).expanduser().absolute())
    if run is None and config is None:
        raise BadInputError(
            f"{source} is in no run, so nothing says which model it is of\n"
            "  say it: load_model(checkpoint, config={'backbone': ..., 'rank': ..., ...})"
        )
    theirs = {} if run is None else run.read_config().model_dump()
    resolved = with_standin(resolve_config(make_config(theirs | given | {"device": device})))
    where = resolve_device(resolved.device)
    backbone = load_backbone(resolved.backbone, resolved.trust_backbone_file)
    for problem in layer_problems(resolved, backbone.config):
        raise BadInputError(problem)
    prompts = read_prompts(Path(str(resolved.prompts_file)))
    token_ids, end_positions = tokens_of(prompts, resolved, backbone.config)
    if run is not None:
        found = {"weights": backbone.digest(), "prompts": digest([list(prompts), token_ids])}
        refuse_other_digests(run, found)
    backbone = backbone.to(where)
    model = build_model(resolved, backbone, end_positions.to(where), TrainedModel)
    model.complete(resolved, backbone, prompts, token_ids)
    if checkpoint is not None:
        restore_parameters(model.dora_parameters(), checkpoint.parameters)
    return model.eval()


def _read(path: Path) -> tuple[RunDirectory | None, Checkpoint]:
    """Return the run that is meant, if the file is in one, and the checkpoint."""
    if path.is_dir():
        run = RunDirectory.at(path)
        run.refuse_if_no_run()
        return run, read_named(checkpoint_path(run.checkpoints, run.read_best()[0]))
    run = RunDirectory(path.parent.parent)
    return run if run.config_file.is_file() else None, read_checkpoint(path)


def refuse_other_digests(run: RunDirectory, found: Mapping[str, str]) -> None:
    """Refuse what fits and is not what the run was trained with: the parameters would mean something else.

    Args:
        run: which recorded digests.
        found: some of them by name, as they are now.

    Raises:
        BadInputError: one is another.
    """
    recorded = run.read_environment()["digests"]
    for name, value in found.items():
        if recorded.get(name, value) != value:
            raise BadInputError(
                f"the digest of the {name} is not the one that {run.path} recorded\n"
                f"    in the run: {recorded[name]}\n    found:      {value}\n"
                "  put back what the run was trained with, or say where it is: load_model(..., config={...})"
            )
