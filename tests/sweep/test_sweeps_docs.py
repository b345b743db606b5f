import re
from pathlib import Path

import yaml

from clip_hba_behavior.cli import app
from clip_hba_behavior.sweep.columns import COLUMNS
from clip_hba_behavior.sweep.plan import SlurmSettings, SweepFile, make_sweep_file

PAGE = (Path(__file__).parents[2] / "docs/SWEEPS.md").read_text(encoding="utf-8")


def test_the_sweep_of_the_page_is_one_and_every_key_is_named() -> None:
    text = re.search(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    assert text is not None
    file = make_sweep_file(yaml.safe_load(text[1]))
    assert file.slurm.gres == "gpu:h100:1"
    for key in (*SweepFile.model_fields, *SlurmSettings.model_fields):
        assert re.search(rf"\b{key}\b", PAGE), key


def test_the_page_has_every_command() -> None:
    (group,) = [each for each in app.registered_groups if each.name == "sweep"]
    assert group.typer_instance is not None
    commands = {each.name for each in group.typer_instance.registered_commands if not each.hidden}
    assert commands == set(re.findall(r"^clip-hba sweep (\w+) ", PAGE, flags=re.MULTILINE))


def test_the_page_names_the_columns_that_need_a_word() -> None:
    for column in ("recovery_epochs", "recovery_epochs_from_start", "followed_epochs", "left_band", "censored"):
        assert column in COLUMNS
        assert f"`{column}`" in PAGE
