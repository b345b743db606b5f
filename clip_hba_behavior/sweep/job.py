"""One run as a SLURM job: told before a preemption or the time limit, it saves, and comes back to go on."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_hba_behavior.config import make_config, parse_settings, read_config_file
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.reproducibility.state.files import publish
from clip_hba_behavior.run.advice import command_line, go_on_with
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.request import first_state_file, refuse_bad_start
from clip_hba_behavior.run.resolution import run_directory_of
from clip_hba_behavior.sweep.cluster import batch_script, coming_back, submit_script
from clip_hba_behavior.sweep.plan import SlurmSettings
from clip_hba_behavior.verification.missing_states import put_back


def _resources_of(given: Mapping[str, Any]) -> SlurmSettings:
    """Check what a job is to get.

    Raises:
        BadInputError: names the option, and what is expected.
    """
    try:
        return SlurmSettings.model_validate(dict(given))
    except ValidationError as error:
        detail = error.errors()[0]
        option = "-".join(str(part) for part in detail["loc"]) or "time"
        raise BadInputError(f"--{option}: {detail['msg'].removeprefix('Value error, ')}") from None


def job_script(
    config_file: Path, settings: list[str], run_dir: Path | None, resources: Mapping[str, Any]
) -> tuple[str, Path]:
    """Return the script of a job that trains a run to its end, and the run's directory.

    Args:
        config_file: of the run.
        settings: `key=value` that take its keys' place.
        run_dir: where the run goes, if not where the configuration says.
        resources: what the job is to get, as in a sweep's `slurm`; without `cpus`, a core for each of
            `num_threads`.

    Raises:
        BadInputError: an option or the configuration cannot be used, or the directory holds something else.
    """
    keys = read_config_file(config_file) | parse_settings(settings)
    if run_dir is not None:
        keys["run_dir"] = str(run_dir)
    config = make_config(keys)
    threads = {} if config.num_threads is None else {"cpus": config.num_threads}
    slurm = _resources_of({**threads, **resources})
    run = RunDirectory(run_directory_of(config))
    if not list_checkpoints(run.checkpoints):  # else the job goes on with it
        refuse_bad_start(config)
    command = [sys.executable, "-m", "clip_hba_behavior", "slurm-task", str(config_file.expanduser().absolute())]
    command += ["--run-dir", str(run.path), *(part for each in settings for part in ("--set", each))]
    options = [f"--job-name={run.path.name}", f"--output={run.path}.slurm.log"]
    return batch_script(slurm, options, shlex.join(command)), run.path


def submit_job(script: str, run: Path) -> str:
    """Write the script beside the run's directory and submit it; return the job's number.

    Raises:
        BadInputError: the script is there already, SLURM is not here, or it refuses.
    """
    path = run.with_name(f"{run.name}.slurm.sh")
    run.parent.mkdir(parents=True, exist_ok=True)
    try:
        publish(path, script.encode())
    except FileExistsError:
        if path.read_text(encoding="utf-8") != script:
            raise BadInputError(
                f"{path} is there already, and is another script\n  submit it with sbatch {path}, or move it away"
            ) from None
    return submit_script(path)


def work(config_file: Path, settings: list[str], run_dir: Path) -> Path:
    """Start a run, or go on with it, within a job; return its directory.

    Raises:
        BadInputError: something given cannot be used.
        InterruptedRunError: SLURM asked the run to leave; its state is saved, and the job comes back.
    """
    run = RunDirectory(run_dir.expanduser().absolute())
    with coming_back(go_on_with(command_line("resume", run.path))):
        from clip_hba_behavior.run.life import resume, start

        if list_checkpoints(run.checkpoints):
            return resume(run.path)
        keys = read_config_file(config_file) | parse_settings(settings) | {"run_dir": str(run.path)}
        config = make_config(keys)
        put_back(first_state_file(config), config)
        return start(config)
