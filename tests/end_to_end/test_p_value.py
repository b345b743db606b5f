"""The results' p-value is no test: whatever shows it says so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from clip_hba_behavior.run.results import P_VALUE_CAVEAT
from fresh_process import Outcome
from run_tools import write_config


def test_every_command_that_shows_the_p_value_says_what_it_is_not(
    clip_hba: Callable[..., Outcome], small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = write_config(tmp_path / "config.yaml", small_config, epochs=1)
    checkpoint = run / "dora_params" / "epoch1_dora_params.pth"
    trained = clip_hba("train", config, "--run-dir", run)
    shown = [trained, clip_hba("inspect", checkpoint), clip_hba("verify", "checkpoints", run)]
    for outcome in shown:
        assert outcome.code == 0, outcome.output
        assert outcome.output.count(P_VALUE_CAVEAT) == 1, outcome.output
    assert f"A valid one: clip-hba alignment {run}" in trained.output
    assert P_VALUE_CAVEAT in (run / "training_log.txt").read_text(encoding="utf-8")
    for outcome in (clip_hba("runs", tmp_path), clip_hba("inspect", run)):  # these show none
        assert outcome.code == 0, outcome.output
        assert "p_value" not in outcome.output
        assert "(p " not in outcome.output
