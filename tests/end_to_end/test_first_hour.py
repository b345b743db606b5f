"""What a new user expects to find: lists, caches, jobs, progress; through the real command."""

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fresh_process
from clip_hba_behavior.version import __version__
from fresh_process import Outcome
from run_tools import write_config
from terminal_tools import clip_hba_on_terminal

ClipHba = Callable[..., Outcome]
REPOSITORY = Path(__file__).parents[2]


def test_the_version_is_printed(clip_hba: ClipHba) -> None:
    outcome = clip_hba("--version")
    assert (outcome.code, outcome.output) == (0, f"clip-hba {__version__}\n")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["version"] == __version__


def test_the_head_of_a_run_tells_where_on_what_and_from_where_it_begins(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(
        tmp_path / "config.yaml",
        small_config,
        epochs=2,
        perturb_type="label_shuffle",
        perturb_epoch=2,
        cache_dir=str(tmp_path / "cache"),
    )
    outcome = clip_hba("train", config, "--run-dir", tmp_path / "run")
    assert outcome.code == 0, outcome.output
    assert f"Writing to {tmp_path / 'run'}" in outcome.output
    assert re.search(r"Computing on cpu, .*, 1 threads?, in native arithmetic", outcome.output)
    assert re.search(
        r"\d+ training images, \d+ test images, 48 held-out images; \d+ steps per epoch", outcome.output
    )
    assert re.search(r"[\d,]+ trainable parameters in 3 DoRA layers", outcome.output)
    assert re.search(r"Before training: test loss [\d.]+, behavioral RSA rho [\d.-]+ \(p ", outcome.output)
    assert "Perturbed by label_shuffle: epoch 2" in outcome.output
    epochs = [line for line in outcome.output.splitlines() if line.startswith("Epoch ")]
    assert ["perturbed by label_shuffle" in line for line in epochs] == [False, True]

    listed = clip_hba("runs", tmp_path)
    assert re.search(r"^run +finished +2/2 ", listed.output, re.MULTILINE)
    content = json.loads(clip_hba("runs", tmp_path, "--json").output)
    assert [(each["path"], each["state"], each["epoch"]) for each in content] == [("run", "finished", 2)]

    where = ("--cache-dir", tmp_path / "cache", "--runs", tmp_path)
    assert clip_hba("cache", "clean", *where).output == "nothing to remove\n"
    used = re.findall(r"used by (\S+)$", clip_hba("cache", "list", *where).output, re.MULTILINE)
    assert used == [str(tmp_path / "run")] * 2

    quiet = clip_hba("--quiet", "resume", tmp_path / "run", "--set", "epochs=3")
    assert quiet.code == 0
    assert quiet.output == f"The run is in {tmp_path / 'run'}\n"
    assert "Finished at epoch 3" in (tmp_path / "run/training_log.txt").read_text()


def test_runs_and_caches_that_are_not_there_are_named(clip_hba: ClipHba, tmp_path: Path) -> None:
    assert clip_hba("runs", tmp_path / "nowhere").code == 2
    assert clip_hba("runs", tmp_path).output == f"no runs in {tmp_path}\n"
    outcome = clip_hba("cache", "list", "--cache-dir", tmp_path / "nowhere")
    assert (outcome.code, "there is no directory of caches" in outcome.output) == (2, True)


def test_caches_that_no_run_uses_are_removed(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=0, cache_dir=str(tmp_path / "cache"))
    assert clip_hba("train", config, "--run-dir", tmp_path / "run").code == 0
    assert len(list((tmp_path / "cache").iterdir())) == 2
    outcome = clip_hba("cache", "clean", "--cache-dir", tmp_path / "cache", "--runs", tmp_path / "elsewhere")
    assert outcome.code == 0
    assert "2 caches" in outcome.output
    assert list((tmp_path / "cache").iterdir()) == []
    assert clip_hba("resume", tmp_path / "run", "--set", "epochs=1").code == 0


def test_a_job_script_has_what_a_preempted_job_needs(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=2)
    outcome = clip_hba("slurm", config, "--run-dir", tmp_path / "run", "--time", "02:00:00", "--gres", "gpu:1")
    assert outcome.code == 0
    for line in ("#SBATCH --requeue", "#SBATCH --signal=B:USR2@60", "#SBATCH --gres=gpu:1", 'trap "" USR2'):
        assert line in outcome.output.splitlines()
    assert "#SBATCH --cpus-per-task=1\n" in outcome.output
    more = clip_hba("slurm", config, "--set", "num_threads=3", "--run-dir", tmp_path / "run")
    assert "#SBATCH --cpus-per-task=3\n" in more.output
    refused = clip_hba("slurm", config, "--time", "soon")
    assert (refused.code, refused.output.startswith("error: --time")) == (2, True)


@pytest.mark.system
def test_a_job_script_that_runs_again_goes_on(
    clip_hba: ClipHba, small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=2)
    outcome = clip_hba("slurm", config, "--run-dir", tmp_path / "run")
    script = tmp_path / "job.sh"
    script.write_text(outcome.output)
    for _ in range(2):  # the second time it goes on with what the first did
        done = subprocess.run(["bash", script], capture_output=True, text=True, check=False, cwd=REPOSITORY)
        assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_terminal_two_bars_show_the_run_and_its_epoch_and_leave_nothing_behind(
    small_config: dict[str, Any], tmp_path: Path
) -> None:
    config = write_config(tmp_path / "config.yaml", small_config, epochs=3)
    arguments = ["train", str(config), "--run-dir", str(tmp_path / "run")]
    shown = on_a_terminal(arguments, columns=60, output=tmp_path / "output.txt")
    assert re.search(r"epochs .*[012]/3", shown)
    assert re.search(r"epoch \d: steps .*\d+/\d+", shown)
    lines = [line for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split("\n") if "epochs " in line]
    assert max(len(line.split("\r")[-1]) for line in lines) <= 60


def on_a_terminal(arguments: list[str], columns: int, output: Path) -> str:
    """Run a command on a pseudo-terminal; return everything that was written to it."""
    main, other = os.openpty()
    variables = {"COLUMNS": str(columns), "LINES": "24", "TERM": "xterm"}
    process = fresh_process.start(clip_hba_on_terminal, os.ttyname(other), arguments, variables, output=output)
    content = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not select.select([main], [], [], 0.5)[0]:
            continue
        try:
            part = os.read(main, 65536)
        except OSError:  # its end
            break
        if not content:
            os.close(other)  # the process has it open
        content += part
    os.close(main)
    process.join(60)
    assert process.exitcode == 0, content.decode(errors="replace") + output.read_text()
    return content.decode(errors="replace")
