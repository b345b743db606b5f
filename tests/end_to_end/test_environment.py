"""What a run was made with, and what of it is another now: through the command line."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import clip_hba_behavior
import fresh_process
from clip_hba_behavior import resume, run_behavioral_training
from clip_hba_behavior.reproducibility.record.session import Session
from clip_hba_behavior.run.checkpoint import read_checkpoint, to_bytes, to_content
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.results import P_VALUE_CAVEAT
from clip_hba_behavior.verification.diff import diff_runs
from clip_hba_behavior.verification.reconstruct import reconstruct
from clip_hba_behavior.verification.verify import verify_checkpoints
from fresh_process import Outcome
from run_tools import differences, finished, trained

ClipHba = Callable[..., Outcome]


def environment_of(run: Path) -> dict[str, Any]:
    return dict(json.loads((run / "environment.json").read_text()))


def origin_of(run: Path, epoch: int) -> dict[str, Any]:
    return read_checkpoint(checkpoint_path(run / "dora_params", epoch)).provenance


def edit_records(run: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change what the run and each of its checkpoints record of their origin; the states stay."""
    environment = environment_of(run)
    change(environment)
    (run / "environment.json").write_text(json.dumps(environment))
    for path in (run / "dora_params").iterdir():
        checkpoint = read_checkpoint(path)
        change(checkpoint.provenance)
        path.write_bytes(to_bytes(to_content(checkpoint.whole_state(), checkpoint.provenance)))


def clip_hba_from(root: str, arguments: list[str]) -> None:
    """Run a `clip-hba` command line as this process, from the package in a directory."""
    for name in [each for each in sys.modules if each.partition(".")[0] == "clip_hba_behavior"]:
        del sys.modules[name]
    sys.path.insert(0, root)
    fresh_process.clip_hba(arguments)


@pytest.fixture
def another_program(tmp_path: Path) -> Callable[..., Outcome]:
    """Run `clip-hba` from a copy of the package in which one line stands at the end of a module."""

    def run(module: str, line: str, *arguments: object) -> Outcome:
        root = tmp_path / "another program"
        shutil.rmtree(root, ignore_errors=True)
        package = root / "clip_hba_behavior"
        shutil.copytree(Path(clip_hba_behavior.__file__).parent, package, ignore=shutil.ignore_patterns("*.pyc"))
        with (package / module).open("a") as file:
            file.write(line + "\n")
        output = tmp_path / "another program.txt"
        return fresh_process.call(clip_hba_from, str(root), [str(each) for each in arguments], output=output)

    return run


# --- versions -----------------------------------------------------------------------------------------


def test_verify_and_resume_take_the_same_versions_for_others(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    edit_records(run, lambda each: each["versions"].update(python="3.0", tokenizers="0", safetensors="0"))
    outcome = clip_hba("verify", "checkpoints", run)
    assert "claim level L0" in outcome.output
    assert clip_hba("resume", run, "--set", "epochs=2").code == 0

    edit_records(run, lambda each: each["versions"].update(scipy="0"))
    outcome = clip_hba("verify", "checkpoints", run)
    assert "claim level L2" in outcome.output
    assert "because scipy was 0, is " in outcome.output
    outcome = clip_hba("resume", run, "--set", "epochs=3")
    assert outcome.code == 2
    assert "scipy\n    in the run: 0" in outcome.output


def test_what_an_old_run_did_not_record_is_not_taken_for_changed(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)

    def make_old(each: dict[str, Any]) -> None:
        for name in ("scipy", "cuda"):
            each["versions"].pop(name, None)
        for key in ("package", "variables", "package_changes"):
            each.pop(key, None)

    edit_records(run, make_old)
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    assert "claim level L0" in outcome.output
    notes = [line.strip() for line in outcome.output.splitlines() if "note: " in line]
    assert notes == [f"note: {P_VALUE_CAVEAT}"]
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    outcome = clip_hba("resume", run, "--set", "epochs=2")
    assert outcome.code == 0, outcome.output
    assert environment_of(run)["drift"] == []
    assert environment_of(run)["variables"]["MKL_CBWR"] == "COMPATIBLE"  # from here on it is recorded
    monkeypatch.delenv("MKL_CBWR")
    assert clip_hba("resume", run, "--set", "epochs=3").code == 2


# --- the program --------------------------------------------------------------------------------------


@pytest.mark.system
def test_other_sources_are_recorded_and_named_and_refuse_nothing(
    clip_hba: ClipHba, another_program: Callable[..., Outcome], small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=2)
    package = environment_of(run)["package"]
    assert package["version"] == clip_hba_behavior.__version__
    assert package["trajectory_version"] == 1
    assert len(package["sources"]) == 64
    assert origin_of(run, 1)["package"] == package
    plain = tmp_path / "plain"
    shutil.copytree(run, plain)
    assert clip_hba("resume", plain, "--set", "epochs=3").code == 0
    assert environment_of(plain)["package_changes"] == []

    line = "# the same bits from other sources"
    outcome = another_program("training/learning_rate.py", line, "resume", run, "--set", "epochs=3")
    assert outcome.code == 0, outcome.output
    said = "Not the same package, whose bits are the same while trajectory_version is: package_sources was "
    assert f"{said}{package['sources']}, is " in outcome.output
    assert "bits may differ" not in outcome.output
    others = origin_of(run, 3)["package"]["sources"]
    assert others != package["sources"]
    environment = environment_of(run)
    assert environment["package_changes"] == [f"package_sources was {package['sources']}, is {others}"]
    assert environment["package"]["sources"] == others
    assert environment["drift"] == []

    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    assert "claim level L0" in outcome.output
    assert f"note: package_sources was {package['sources']}, is {others}" in outcome.output
    assert f"note: package_sources was {others}, is {package['sources']}" in outcome.output
    assert not differences(run, plain)
    outcome = clip_hba("diff", plain, run)
    assert outcome.code == 0, outcome.output
    assert f"package_sources\n    in A: {package['sources']}\n    in B: {others}" in outcome.output


def test_a_run_of_the_version_before_is_resumed_forked_and_verified_without_drift(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    run, plain, fork = trained(clip_hba, tmp_path, small_config, epochs=2), tmp_path / "plain", tmp_path / "fork"
    shutil.copytree(run, plain)
    edit_records(run, lambda each: each["package"].update(version="0.1.0", sources="0" * 64))
    sources = environment_of(plain)["package"]["sources"]
    changes = [
        f"package_version was 0.1.0, is {clip_hba_behavior.__version__}",
        f"package_sources was {'0' * 64}, is {sources}",
    ]
    assert clip_hba("fork", run, "--at-epoch", 2, "--perturb", "none", "--run-dir", fork).code == 0
    outcome = clip_hba("resume", run, "--set", "epochs=3")
    assert outcome.code == 0, outcome.output
    for change in changes:
        assert f"the same while trajectory_version is: {change}" in outcome.output
    for each in (run, fork):
        environment = environment_of(each)
        assert (environment["drift"], environment["package_changes"]) == ([], changes)
        assert environment["package"] == environment_of(plain)["package"]
    outcome = clip_hba("verify", "checkpoints", run)
    assert outcome.code == 0, outcome.output
    assert "claim level L0" in outcome.output
    assert "reproducible: 3 of 3 epochs" in outcome.output
    for change in changes:
        assert f"note: {change}" in outcome.output
    assert clip_hba("resume", plain, "--set", "epochs=3").code == 0
    assert not differences(run, plain)


def test_another_trajectory_version_is_refused_and_allowed_only_on_record(
    clip_hba: ClipHba, another_program: Callable[..., Outcome], small_config: dict[str, Any], tmp_path: Path
) -> None:
    run = finished(clip_hba, tmp_path, small_config, epochs=1)
    resumed = ("version.py", "TRAJECTORY_VERSION = 2", "resume", run, "--set", "epochs=2")
    outcome = another_program(*resumed)
    assert outcome.code == 2, outcome.output
    assert "trajectory_version\n    in the run: 1\n    now:        2" in outcome.output
    outcome = another_program(*resumed, "--allow", "trajectory_version")
    assert outcome.code == 0, outcome.output
    assert environment_of(run)["drift"] == ["trajectory_version was 1, is 2"]
    outcome = clip_hba("verify", "checkpoints", run, "--epochs", "2")
    assert "claim level L2" in outcome.output
    assert "because trajectory_version was 2, is 1" in outcome.output


# --- environment variables ----------------------------------------------------------------------------


@pytest.mark.system
def test_a_variable_that_changes_bits_is_refused_and_allowed_only_on_record(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MKL_CBWR", raising=False)
    run = trained(clip_hba, tmp_path, small_config, epochs=1)
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    outcome = clip_hba("resume", run, "--set", "epochs=2")
    assert outcome.code == 2, outcome.output
    assert "MKL_CBWR\n    in the run: not set\n    now:        COMPATIBLE" in outcome.output
    assert "--allow MKL_CBWR" in outcome.output
    outcome = clip_hba("verify", "checkpoints", run)
    assert "claim level L2" in outcome.output
    assert "because MKL_CBWR was not set, is COMPATIBLE" in outcome.output

    fork = tmp_path / "fork"
    assert clip_hba("fork", run, "--at-epoch", 2, "--perturb", "none", "--run-dir", fork, "--epochs", 2).code == 0
    assert environment_of(fork)["drift"] == ["MKL_CBWR was not set, is COMPATIBLE"]
    outcome = clip_hba("resume", run, "--set", "epochs=2", "--allow", "MKL_CBWR")
    assert outcome.code == 0, outcome.output
    assert environment_of(run)["drift"] == ["MKL_CBWR was not set, is COMPATIBLE"]
    assert origin_of(run, 2)["variables"]["MKL_CBWR"] == "COMPATIBLE"
    assert "MKL_CBWR" not in origin_of(run, 1)["variables"]

    monkeypatch.delenv("MKL_CBWR")
    monkeypatch.setenv("DNNL_DEFAULT_FPMATH_MODE", "BF16")
    outcome = clip_hba("resume", run, "--set", "epochs=3")
    assert outcome.code == 2
    assert "MKL_CBWR\n    in the run: COMPATIBLE\n    now:        not set" in outcome.output
    assert "--allow MKL_CBWR,DNNL_DEFAULT_FPMATH_MODE" in outcome.output
    outcome = clip_hba("resume", run, "--set", "epochs=3", "--allow", "MKL_CBWR,DNNL_DEFAULT_FPMATH_MODE")
    assert outcome.code == 0, outcome.output


def test_features_computed_under_other_variables_are_not_taken_from_the_cache(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = small_config | {"cache_dir": str(tmp_path / "cache")}
    trained(clip_hba, tmp_path, keys, "first", epochs=1)
    filled = sorted((tmp_path / "cache").rglob("*"))
    trained(clip_hba, tmp_path, keys, "second", epochs=1)
    assert sorted((tmp_path / "cache").rglob("*")) == filled
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    trained(clip_hba, tmp_path, keys, "third", epochs=1)
    assert len(sorted((tmp_path / "cache").rglob("*"))) == 2 * len(filled)


# --- in a process that continues ------------------------------------------------------------------------


def test_a_run_on_the_cpu_has_the_same_states_in_a_process_that_has_used_cuda(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_behavioral_training(small_config | {"epochs": 1, "run_dir": str(tmp_path / "first")})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    monkeypatch.setattr("torch.cuda.get_rng_state", lambda *device: torch.zeros(16, dtype=torch.uint8))
    monkeypatch.setattr("torch.cuda.set_rng_state", lambda *state: None)
    second = run_behavioral_training(small_config | {"epochs": 1, "run_dir": str(tmp_path / "second")})
    assert not differences(first, second)


def test_nothing_that_runs_in_a_process_leaves_its_numerics_behind(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    session = Session(logging.getLogger("test"))

    def left() -> tuple[int, bool, bool]:
        return (
            torch.get_num_threads(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.backends.cudnn.deterministic,
        )

    before = left()
    run = run_behavioral_training(small_config | {"epochs": 1, "run_dir": str(tmp_path / "run")})
    assert left() == before
    resume(run, {"epochs": 2})
    assert left() == before
    other = run_behavioral_training(small_config | {"epochs": 2, "lr": 2e-3, "run_dir": str(tmp_path / "other")})
    verify_checkpoints(run, {}, [1], None, session)
    assert left() == before
    diff_runs(run, other, True, session)
    assert left() == before
    old = tmp_path / "old"
    shutil.copytree(run / "dora_params", old)
    reconstruct(old, small_config, tmp_path / "again", True, None, None, session)
    assert left() == before
    with pytest.raises(ValueError, match="images"):
        run_behavioral_training(small_config | {"img_dir": str(tmp_path), "run_dir": str(tmp_path / "bad")})
    assert left() == before
