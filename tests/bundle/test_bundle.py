"""`clip-hba bundle RUN --out FILE.zip`: what is in it, what it says of itself, and what it is not made of."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml

from clip_hba_behavior.bundle import record
from clip_hba_behavior.bundle.names import names_within
from clip_hba_behavior.bundle.readme import readme
from clip_hba_behavior.cli import main
from clip_hba_behavior.report.certificates import Certificate
from clip_hba_behavior.reproducibility.record.lease import hold
from clip_hba_behavior.reproducibility.record.quarantine import keep_content
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.verification.files import RunFiles
from fresh_process import Outcome
from run_tools import write_config

Called = Callable[..., Outcome]


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(run, tmp_path / "copy" / "things"))


def manifest_of(bundle: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(zipfile.ZipFile(bundle).read("manifest.json"))
    return found


def test_the_same_run_gives_the_same_bytes_also_from_another_path(
    run: Path, bundle: Path, copy: Path, call: Called, tmp_path: Path
) -> None:
    for number, source in enumerate((run, run / "dora_params", copy)):
        path = tmp_path / f"{number}.zip"
        assert call("bundle", source, "--out", path).code == 0
        assert path.read_bytes() == bundle.read_bytes()


def test_a_bundle_holds_what_a_supplement_needs_and_names_the_rest(run: Path, bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        names = archive.namelist()
        assert {name: archive.read(name) for name in names[2:]} == {
            name: (run / name).read_bytes() for name in names[2:]
        }
    best = json.loads((run / "best.json").read_text())["epoch"]
    assert names[:2] == ["README.txt", "manifest.json"]
    assert names[2:] == sorted(names[2:])
    assert {each for each in names[2:] if not each.startswith("report/")} == {
        *("best.json", "certificate.json", "config.yaml", "environment.json", "steps.jsonl", "training_res.csv"),
        *(f"dora_params/epoch{epoch}_dora_params.pth" for epoch in {0, best, 4}),
    }
    assert {"report/index.html", "report/figures/losses.pdf"} <= set(names)

    manifest = manifest_of(bundle)
    facts = manifest["facts"]
    assert isinstance(facts, dict)
    environment = json.loads((run / "environment.json").read_text())
    ends = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines() if '"end"' in line]
    assert facts["arithmetic"] == "portable 1"
    assert facts["epochs"] == {"first": 0, "best": best, "last": 4}
    assert facts["state_digests"]["4"] == ends[-1]["state_digest"]
    assert facts["data_digests"] == environment["digests"]
    assert facts["package"] == environment["package"]
    assert facts["git_commit"] == environment["git_commit"]
    (certificate,) = facts["certificates"]
    assert certificate == {"file": "certificate.json", "verdict": "reproducible", "level": "L3", "epochs": [4]}
    inner = {epoch for epoch in range(5) if epoch not in (0, best, 4)}
    assert manifest["left_out"] == [
        *(f"dora_params/epoch{epoch}_dora_params.pth" for epoch in sorted(inner)),
        "training_log.txt",
    ]


def test_who_has_no_program_can_check_and_read_it(bundle: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path)
    text = (tmp_path / "README.txt").read_text()
    (command,) = [line.strip() for line in text.splitlines() if line.startswith("    python3 -c")]
    code = command.removeprefix('python3 -c "').removesuffix('"')
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert {word.split()[-1] for word in said.stdout.splitlines()} == {"ok"}
    (tmp_path / "best.json").write_text("{}")
    said = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "best.json DIFFERS\n" in said.stdout
    (line,) = [line for line in text.splitlines() if "torch.load" in line]
    os.chdir(tmp_path)
    names: dict[str, object] = {"torch": torch}
    exec(line.strip(), names)
    assert {"optimizer_state", "rng_state", "state_digest"} <= set(names["checkpoint"])  # type: ignore[call-overload]


def test_the_author_is_told_what_names_a_machine(run: Path, call: Called, tmp_path: Path) -> None:
    outcome = call("bundle", run, "--out", tmp_path / "a.zip")
    environment = json.loads((run / "environment.json").read_text())
    told = {line.split()[1]: line for line in outcome.output.splitlines() if line.startswith("tells: ")}
    assert "environment.json" in told[environment["machine"]["host"]]
    assert "certificate.json" in told[environment["machine"]["host"]]
    assert "config.yaml" in told[str(run)]


def test_certificates_are_of_this_run(run: Path, copy: Path, call: Called, tmp_path: Path) -> None:
    content = json.loads((run / "certificate.json").read_text())
    (copy / "certificate.json").unlink()
    shutil.copy(run / "certificate.json", tmp_path / "elsewhere.json")
    outcome = call("bundle", copy, "--out", tmp_path / "a.zip", "--certificate", tmp_path / "elsewhere.json")
    assert outcome.code == 0, outcome.output
    assert "certificate: elsewhere.json (reproducible, level L3)" in outcome.output
    assert "elsewhere.json" in zipfile.ZipFile(tmp_path / "a.zip").namelist()

    content["epochs"][0]["recorded_digest"] = "0" * 64
    (tmp_path / "best.json").write_bytes((tmp_path / "elsewhere.json").read_bytes())
    (tmp_path / "other.json").write_text(json.dumps(content))
    for name, message in (("best.json", "another file of this name"), ("other.json", "is not of")):
        outcome = call("bundle", copy, "--out", tmp_path / "b.zip", "--certificate", tmp_path / name)
        assert (outcome.code, message in outcome.output) == (2, True), outcome.output
    shutil.copy(tmp_path / "other.json", copy)
    outcome = call("bundle", copy, "--out", tmp_path / "b.zip")
    assert outcome.code == 1
    assert "left out: " in outcome.output
    assert "other.json is not of" in outcome.output
    assert "other.json" not in zipfile.ZipFile(tmp_path / "b.zip").namelist()


def test_nothing_recorded_is_lost_in_silence(copy: Path, call: Called, tmp_path: Path) -> None:
    keep_content(copy, "steps.jsonl", b"a line\n", {"why": "a test kept it"})
    (copy / "forks.txt").write_text("1 /elsewhere\n")
    (copy / "notes.txt").write_text("mine\n")
    outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
    assert outcome.code == 0, outcome.output
    assert "quarantine:  steps.jsonl: a test kept it; the original is quarantine/steps.jsonl.1" in outcome.output
    assert "forks.txt, training_log.txt" in outcome.output
    assert "not of the run, so not in the bundle: notes.txt" in outcome.output
    names = zipfile.ZipFile(tmp_path / "a.zip").namelist()
    assert {"quarantine/steps.jsonl.1", "quarantine/steps.jsonl.1.json"} <= set(names)
    assert not {"forks.txt", "notes.txt", "run.lock"} & set(names)
    outcome = call("verify", "bundle", tmp_path / "a.zip")
    assert outcome.code == 0, outcome.output


def flip(path: Path, fraction: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(len(content) * fraction)] ^= 4
    path.write_bytes(content)


def damage_state(run: Path) -> str:
    flip(checkpoint_path(run / "dora_params", 4), 0.3)
    return "epoch4_dora_params.pth"


def damage_ledger(run: Path) -> str:
    lines = (run / "steps.jsonl").read_text().splitlines()
    (run / "steps.jsonl").write_text("\n".join(lines[:3] + lines[4:]) + "\n")
    return "steps.jsonl"


def lose_an_epoch(run: Path) -> str:
    lines = (run / "training_res.csv").read_text().splitlines()
    (run / "training_res.csv").write_text("\n".join(lines[:2] + lines[3:]) + "\n")
    return "training_res.csv has no line of epoch 2"


def change_a_row(run: Path) -> str:
    rows = (run / "training_res.csv").read_text().splitlines()
    cells = rows[2].split(",")
    cells[2] = "1.5"
    (run / "training_res.csv").write_text("\n".join([*rows[:2], ",".join(cells), *rows[3:]]) + "\n")
    return "test_loss of epoch 2: training_res.csv and steps.jsonl disagree"


def change_best(run: Path) -> str:
    best = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps(best | {"test_loss": 1.0}))
    return "best.json has a test loss of 1.0"


def name_another_best(run: Path) -> str:
    rows = (run / "training_res.csv").read_text().splitlines()
    best = {
        "epoch": 1,
        "test_loss": float(rows[1].split(",")[2]),
        "checkpoint": "dora_params/epoch1_dora_params.pth",
    }
    (run / "best.json").write_text(json.dumps(best))
    return "best.json names epoch 1, but epoch"


def change_the_configuration(run: Path) -> str:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("random_seed: 1\n", "random_seed: 2\n"))
    return "random_seed: config.yaml and environment.json disagree"


def change_the_report(run: Path) -> str:
    (run / "report" / "index.html").write_text("")
    return "index.html was changed since the report was written"


def lose_best(run: Path) -> str:
    (run / "best.json").unlink()
    return "lacks best.json\n  go on with the run"


DAMAGES = (
    *(damage_state, lose_an_epoch, change_a_row, change_best, name_another_best),
    *(change_the_configuration, change_the_report, lose_best),
)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda each: each.__name__)
def test_no_bundle_is_made_of_a_damaged_run(
    damage: Callable[[Path], str], copy: Path, call: Called, tmp_path: Path
) -> None:
    message = damage(copy)
    outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
    assert outcome.code == 2, outcome.output
    assert message in outcome.output
    assert "clip-hba " in outcome.output
    assert [each.name for each in tmp_path.glob("*.zip*")] == []


def test_what_cannot_be_a_bundle_is_refused(
    run: Path, bundle: Path, copy: Path, call: Called, tmp_path: Path
) -> None:
    before = bundle.read_bytes()
    outcome = call("bundle", run, "--out", bundle)
    assert (outcome.code, "is there already, and is not replaced" in outcome.output) == (2, True)
    assert bundle.read_bytes() == before

    with hold(copy):
        outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
    assert (outcome.code, "is in use by process" in outcome.output) == (2, True), outcome.output

    write_config(tmp_path / "sweep.yaml", {"baseline": str(run)})
    outcome = call("bundle", tmp_path, "--out", tmp_path / "a.zip")
    assert (outcome.code, "make a bundle of each run of a sweep" in outcome.output) == (2, True)

    (copy / "run.json").write_text("{}")
    outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
    assert (outcome.code, "a training loop of your own, of which no bundle is made" in outcome.output) == (2, True)
    assert not (tmp_path / "a.zip").exists()


def test_a_certificate_has_a_name_under_which_it_is_found(
    run: Path, copy: Path, call: Called, tmp_path: Path
) -> None:
    shutil.copy(run / "certificate.json", tmp_path / "certificate.txt")
    outcome = call("bundle", run, "--out", tmp_path / "a.zip", "--certificate", tmp_path / "certificate.txt")
    assert (outcome.code, "does not end in .json" in outcome.output) == (2, True), outcome.output
    for name in ("manifest.json", "Manifest.json"):
        found = next(copy.glob("*e.json" if name == "manifest.json" else "manifest.json"))
        found.rename(copy / name)
        outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
        assert (outcome.code, "has another file of this name" in outcome.output) == (2, True), outcome.output


def test_states_behind_a_link_are_named_as_left_out(
    run: Path, bundle: Path, copy: Path, call: Called, tmp_path: Path
) -> None:
    (copy / "dora_params").rename(tmp_path / "states")
    (copy / "dora_params").symlink_to(tmp_path / "states")
    assert call("bundle", copy, "--out", tmp_path / "a.zip").code == 0
    assert (tmp_path / "a.zip").read_bytes() == bundle.read_bytes()


def test_of_a_report_its_own_files_are_taken_and_all_of_them(copy: Path, call: Called, tmp_path: Path) -> None:
    (copy / "report" / "run.lock").write_text('{"host": "mine"}')  # of a report whose process was killed
    outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
    assert "not of the run, so not in the bundle: report/run.lock" in outcome.output
    assert "report/run.lock" not in zipfile.ZipFile(tmp_path / "a.zip").namelist()
    (copy / "report" / "figures" / "losses.pdf").unlink()
    outcome = call("bundle", copy, "--out", tmp_path / "b.zip")
    assert (outcome.code, "it lacks figures/losses.pdf" in outcome.output) == (2, True), outcome.output


def test_names_are_printed_so_that_they_write_nothing_else(copy: Path, call: Called, tmp_path: Path) -> None:
    (copy / "a\n\x1b[31m").write_text("")
    outcome = call("bundle", copy, "--out", tmp_path / "a.zip")
    assert r"not in the bundle: 'a\n\x1b[31m'" in outcome.output


def test_a_long_name_leaves_the_text_readable() -> None:
    certificate = {"file": "c" * 150 + ".json", "verdict": "reproducible"}
    facts = {
        **{"certificates": [certificate], "state_digests": {"0": ""}, "epochs": {"best": 0}},
        **{"arithmetic": "native", "package": None},
    }
    lines = readme([certificate["file"], "config.yaml"], facts).decode().splitlines()
    assert f"{certificate['file']} certificate of a verification: reproducible" in lines
    assert "the configuration, every key filled in" in next(
        each for each in lines if each.startswith("config.yaml")
    )


def test_names_are_found_however_a_file_spells_them(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = "/home/Jürgen " + "und seine Daten " * 8 + "C:\\x"
    (tmp_path / "a.json").write_text(json.dumps({"path": f"{home}/data"}))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"path": f"{home}/data"}, allow_unicode=True))
    monkeypatch.setenv("HOME", home)
    files = {each.name: each for each in (tmp_path / "a.json", tmp_path / "a.yaml")}
    assert names_within(RunDirectory(run), files, {})[home] == ["a.json", "a.yaml"]


def test_a_user_without_a_home_can_make_a_bundle(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def has_none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", has_none)
    assert names_within(RunDirectory(run), {"environment.json": run / "environment.json"}, {})


def test_a_run_that_goes_on_meanwhile_is_noticed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts_of = record.facts_of

    def slowly(files: RunFiles, certificates: Sequence[Certificate]) -> dict[str, object]:
        with (copy / "training_res.csv").open("a") as file:  # as a resumed run would
            file.write("5,1,1,1,1\n")
        return facts_of(files, certificates)

    monkeypatch.setattr(record, "facts_of", slowly)
    assert main(["bundle", str(copy), "--out", str(tmp_path / "a.zip")]) == 2
    assert "training_res.csv changed while it was read" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.zip"))
