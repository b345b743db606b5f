"""One run, described for a person: how far, how good, from where, and what began with it."""

from pathlib import Path

from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.checkpoint_files import checkpoint_path
from clip_hba_behavior.run.directory import RunDirectory
from clip_hba_behavior.run.listing import in_bytes, in_time, list_one, read_loop_record


def describe_run(directory: Path) -> str:
    """Return what a run is, in lines for a person; torch is not needed.

    Args:
        directory: the run's, its `dora_params`, or that of a run of `track`.

    Raises:
        BadInputError: there is no run in it.
    """
    run = RunDirectory.at(directory)
    listed = list_one(run.path)
    about = {
        "state": listed.state + (f": {listed.detail}" if listed.detail else ""),
        "epochs": listed.progress(),
        "best": _best(run) if listed.kind == "run" else "-",
        "parent": listed.parent or "none",
        "forks": "\n".join(f"from epoch {line}" for line in run.forks()) or "none",
        "drift": _drift(run, is_loop=listed.kind == "loop"),
        "size": f"{in_bytes(listed.num_bytes)}, written {in_time(listed.age_seconds)} ago",
    }
    if listed.best_test_loss is not None and listed.kind == "loop":
        about["best"] = f"test_loss {listed.best_test_loss!r}"
    lines = [
        f"{run.path}: a run" + (" of a training loop of your own" if listed.kind == "loop" else _arithmetic(run))
    ]
    lines += [f"  {name:<7} " + text.replace("\n", f"\n{'':<10}") for name, text in about.items()]
    return "\n".join(lines)


def _arithmetic(run: RunDirectory) -> str:
    try:
        return f" in {run.read_config().arithmetic} arithmetic"
    except BadInputError:  # a look at a damaged run shows the rest
        return ""


def _best(run: RunDirectory) -> str:
    try:
        epoch, test_loss = run.read_best()
    except BadInputError as error:
        return str(error)
    return f"epoch {epoch}, test loss {test_loss!r}, {checkpoint_path(run.checkpoints, epoch)}"


def _drift(run: RunDirectory, is_loop: bool) -> str:
    """Return what changed on a run's way: a line each."""
    try:
        record = read_loop_record(run.path) if is_loop else run.read_environment()
    except BadInputError as error:
        return str(error)
    changes = [*(record.get("drift") or []), *(record.get("package_changes") or [])]
    return "\n".join(map(str, changes)) or "none"
