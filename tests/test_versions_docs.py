"""What a version promises: the page names tests that exist and the numbers of the code; nothing of 0.2 is gone."""

import re
from pathlib import Path

from clip_hba_behavior.bundle import manifest
from clip_hba_behavior.config import PORTABLE, Config
from clip_hba_behavior.reproducibility.record import tracked
from clip_hba_behavior.run import checkpoint, results
from clip_hba_behavior.sweep import columns
from clip_hba_behavior.verification import certificate_file
from clip_hba_behavior.version import TRAJECTORY_VERSION
from conftest import REPOSITORY
from old_run_tools import OLD_RUNS

PAGE = (REPOSITORY / "docs/VERSIONS.md").read_text(encoding="utf-8")
RESULTS = (
    *("epoch", "train_loss", "test_loss", "behavioral_rsa_rho", "behavioral_rsa_p_value"),
    *("used_random_targets", "used_shuffled_targets", "perturb_type"),
)
SWEEP = {
    *("run", "parent", "parent_epoch", "kind", "perturb_epoch", "perturb_length", "seed", "epoch", "perturbed"),
    *("train_loss", "test_loss", "behavioral_rsa_rho", "behavioral_rsa_p_value", "recovery_epochs"),
    *("train_loss_minus_baseline", "test_loss_minus_baseline", "behavioral_rsa_rho_minus_baseline"),
    *("recovery_epochs_from_start", "followed_epochs", "censored", "left_band", "state_digest"),
    *("equals_baseline", "baseline_state_digest"),
}
EFFECTS = {
    *("baseline", "run", "kind", "length", "start_epoch", "seed", "measure", "when", "epoch", "effect"),
    *("matched_null_runs", "matched_null_mean", "matched_null_spread", "matched_p_value", "wider_null_runs"),
    *("wider_p_value", "family_epochs", "family_p_value", "family_epoch_p_value", "adjusted_p_value"),
}


def test_every_test_that_the_page_names_exists() -> None:
    promises = [line for line in PAGE.splitlines() if "`test_" in line]
    assert len(promises) > 10
    file = Path()
    for line in promises:
        for name in re.findall(r"`(tests/[\w/]+\.py|test_\w+)`", line):
            if name.startswith("tests/"):
                file = REPOSITORY / name
            else:
                assert f"def {name}(" in file.read_text(encoding="utf-8"), f"{file}: {name}"


def test_the_page_names_the_numbers_of_the_code() -> None:
    formats = {each.FORMAT_VERSION for each in (checkpoint, tracked, certificate_file, manifest)}
    assert set(map(int, re.findall(r"`format_version` (\d+)", PAGE))) == formats
    assert f"`{PORTABLE}` is the number of a definition" in PAGE
    assert TRAJECTORY_VERSION == 1, "say in docs/VERSIONS.md which versions have which trajectory_version"


def test_no_column_and_no_key_of_0_2_has_gone() -> None:
    assert results.COLUMNS == RESULTS
    assert columns.COLUMNS.keys() >= SWEEP
    assert columns.EFFECT_COLUMNS.keys() >= EFFECTS
    recorded = re.findall(r"^(\w+):", (OLD_RUNS / "portable" / "config.yaml").read_text(), flags=re.MULTILINE)
    assert len(recorded) > 40
    assert Config.model_fields.keys() >= set(recorded)
