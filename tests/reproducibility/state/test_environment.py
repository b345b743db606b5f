from pathlib import Path
from typing import Any

import pytest

from clip_hba_behavior.reproducibility.state.environment import (
    NOT_AVAILABLE,
    environment_changes,
    is_compared,
    package_changes,
    sentences,
    sources_digest,
    variables,
)

VERSIONS = {"python": "3.11", "torch": "2.6", "numpy": "2.0", "tokenizers": "0.22", "cuda": "none"}
PACKAGE = {"version": "1.0", "trajectory_version": 1, "sources": "aa"}
OF_A_RUN: dict[str, Any] = {
    "device": "cpu",
    "machine": {"device_model": "EPYC", "host": "here"},
    "versions": VERSIONS,
    "package": PACKAGE,
    "variables": {"MKL_CBWR": "AVX2"},
}
OF_A_CHECKPOINT: dict[str, Any] = {
    **{key: OF_A_RUN[key] for key in ("device", "versions", "package", "variables")},
    "device_model": "EPYC",
    "host": "here",
}
SHAPES = pytest.mark.parametrize("recorded", [OF_A_RUN, OF_A_CHECKPOINT], ids=["of a run", "of a checkpoint"])


@SHAPES
def test_the_same_environment_has_no_changes(recorded: dict[str, Any]) -> None:
    assert environment_changes(recorded, OF_A_RUN) == {}
    assert package_changes(recorded, OF_A_RUN) == {}


@SHAPES
@pytest.mark.parametrize(
    ("now", "changes"),
    [
        ({"device": "cuda:0"}, {"device": ("cpu", "cuda:0")}),
        ({"machine": {"device_model": "Xeon", "host": "there"}}, {"device_model": ("EPYC", "Xeon")}),
        (
            {"versions": VERSIONS | {"torch": "2.7", "cuda": "12.4"}},
            {"torch": ("2.6", "2.7"), "cuda": ("none", "12.4")},
        ),
        ({"versions": VERSIONS | {"python": "3.12", "tokenizers": "1"}}, {}),
        ({"package": PACKAGE | {"trajectory_version": 2}}, {"trajectory_version": (1, 2)}),
        ({"package": PACKAGE | {"version": "2.0", "sources": "bb"}}, {}),
        ({"variables": {}}, {"MKL_CBWR": ("AVX2", "not set")}),
        (
            {"variables": {"MKL_CBWR": "AVX2", "DNNL_MAX_CPU_ISA": "SSE41"}},
            {"DNNL_MAX_CPU_ISA": ("not set", "SSE41")},
        ),
    ],
)
def test_what_bears_on_the_bits_and_nothing_else_is_a_change(
    recorded: dict[str, Any], now: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert environment_changes(recorded, OF_A_RUN | now) == changes
    assert all(is_compared(name) for name in changes)


@pytest.mark.parametrize("missing", ["device", "machine", "versions", "package", "variables"])
def test_what_was_not_recorded_is_not_taken_for_changed(missing: str) -> None:
    recorded = {key: value for key, value in OF_A_RUN.items() if key != missing}
    assert environment_changes(recorded, OF_A_RUN) == {}
    assert package_changes(recorded, OF_A_RUN) == {}
    recorded = OF_A_RUN | {"versions": {"torch": "2.6"}, "package": {"version": "1.0"}}
    assert environment_changes(recorded, OF_A_RUN) == {}
    assert package_changes(recorded, OF_A_RUN) == {}


def test_a_variable_that_a_later_version_records_is_not_taken_for_changed() -> None:
    recorded = OF_A_RUN | {"variables": {"MKL_CBWR": "AVX2", "NOT_KNOWN_HERE": "1"}}
    assert environment_changes(recorded, OF_A_RUN) == {}


def test_another_package_is_named_in_a_sentence() -> None:
    now = OF_A_RUN | {"package": PACKAGE | {"version": "2.0", "sources": "bb"}}
    assert sentences(package_changes(OF_A_RUN, now)) == [
        "package_version was 1.0, is 2.0",
        "package_sources was aa, is bb",
    ]
    now = OF_A_RUN | {"package": PACKAGE | {"sources": NOT_AVAILABLE}}
    assert package_changes(OF_A_RUN, now) == {}


@pytest.mark.parametrize(
    "name",
    [
        "MKL_CBWR",
        "MKL_ENABLE_INSTRUCTIONS",
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_DEFAULT_FPMATH_MODE",
        "OPENBLAS_CORETYPE",
        "NVIDIA_TF32_OVERRIDE",
        "CUBLAS_WORKSPACE_CONFIG",
        "CUBLAS_EMULATE_SINGLE_PRECISION",
        "CUBLAS_EMULATION_STRATEGY",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    ],
)
def test_variables_that_change_bits_are_recorded_where_they_are_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    assert name not in variables()
    monkeypatch.setenv(name, "1")
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    assert variables()[name] == "1"
    assert "THP_MEM_ALLOC_ENABLE" not in variables()
    assert is_compared(name)


def test_the_digest_of_sources_covers_names_and_contents_of_those_that_fit_alone(
    tmp_path: Path,
) -> None:
    (tmp_path / "training" / "deep").mkdir(parents=True)
    patterns = ("training/**/*.py", "one.py")
    assert sources_digest(tmp_path, patterns) == NOT_AVAILABLE
    assert sources_digest(tmp_path / "absent", patterns) == NOT_AVAILABLE
    (tmp_path / "training" / "deep" / "step.py").write_text("a = 1\n")
    (tmp_path / "one.py").write_text("b = 1\n")
    first = sources_digest(tmp_path, patterns)
    assert len(first) == 64
    (tmp_path / "other.py").write_text("")
    (tmp_path / "training" / "step.pyc").write_bytes(b"")
    assert sources_digest(tmp_path, reversed(patterns)) == first
    (tmp_path / "one.py").write_text("b = 2\n")
    second = sources_digest(tmp_path, patterns)
    (tmp_path / "training" / "deep" / "step.py").rename(tmp_path / "training" / "step.py")
    assert len({first, second, sources_digest(tmp_path, patterns)}) == 3
