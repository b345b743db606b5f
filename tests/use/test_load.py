"""The model of a run or a checkpoint is the one that trained, to the bit."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_hba_behavior import BadInputError, load_model
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.reproducibility.state.rng import capture_rng_state
from clip_hba_behavior.reproducibility.state.tree import to_bytes
from clip_hba_behavior.run.assembly import build_trainer
from clip_hba_behavior.run.checkpoint import read_checkpoint
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from fresh_process import Outcome
from run_tools import finished


@pytest.fixture
def run(clip_hba: Callable[..., Outcome], small_config: dict[str, Any], tmp_path: Path) -> Path:
    return finished(clip_hba, tmp_path, small_config, epochs=2)


def test_the_model_predicts_what_the_run_did_and_draws_nothing(run: Path) -> None:
    best, _ = RunDirectory(run).read_best()
    path = checkpoint_path(run / "dora_params", best)
    trainer, _ = build_trainer(RunDirectory(run).read_config(), Session(logging.getLogger("test")))
    trainer.restore(read_checkpoint(path).whole_state())
    rows = trainer.inputs.inference_rows()
    expected = trainer.predict(rows)
    before = to_bytes(dict(capture_rng_state(torch.device("cpu"))))
    for source in (run, run / "dora_params", path):
        model = load_model(source, device="cpu")
        with torch.no_grad():
            found = model(trainer.inputs.image_features(rows), trainer.inputs.prompt_features)
        assert torch.equal(found, expected)
        assert not model.training
    assert to_bytes(dict(capture_rng_state(torch.device("cpu")))) == before


def test_a_checkpoint_goes_into_the_model_of_a_configuration_as_the_guide_says(run: Path) -> None:
    path = checkpoint_path(run / "dora_params", 1)
    config = RunDirectory(run).read_config()
    model = load_model(config=config.model_dump() | {"device": "cpu"}, device="cpu")
    assert all(not value.any() for name, value in model.state_dict().items() if "delta_D" in name)
    assert model.load_state_dict(torch.load(path), strict=False).missing_keys == []
    for name, value in load_model(path, device="cpu").state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_what_does_not_fit_is_refused(run: Path, standin_data: Path, tmp_path: Path) -> None:
    path = checkpoint_path(run / "dora_params", 1)
    loose = Path(shutil.copy(path, tmp_path / "some.pth"))
    with pytest.raises(BadInputError, match="give a run's directory, a checkpoint file, or config="):
        load_model()
    with pytest.raises(BadInputError, match="is in no run, so nothing says which model it is of"):
        load_model(loose)
    with pytest.raises(BadInputError, match="the checkpoint does not fit the model"):
        load_model(loose, config=RunDirectory(run).read_config().model_dump() | {"rank": 2}, device="cpu")
    with pytest.raises(BadInputError, match="there is no run in"):
        load_model(tmp_path)
    with pytest.raises(BadInputError, match=r"there is no checkpoint .*epoch7"):
        load_model(checkpoint_path(run / "dora_params", 7))
    prompts = tmp_path / "prompts.txt"
    lines = (standin_data / "prompts.txt").read_text().splitlines()
    prompts.write_text("\n".join(["another", *lines[1:]]))
    with pytest.raises(BadInputError, match=r"the digest of the prompts is not the one that .* recorded"):
        load_model(run, config={"prompts_file": str(prompts)}, device="cpu")
