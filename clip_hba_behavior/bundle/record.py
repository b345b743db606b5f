"""What a run's files say together: the facts of a manifest, and where the files contradict each other."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from clip_hba_behavior.bundle.contents import BEST
from clip_hba_behavior.config import as_digested
from clip_hba_behavior.report.certificates import Certificate
from clip_hba_behavior.reproducibility.record.quarantine import describe, read_records
from clip_hba_behavior.reproducibility.state.digest import digest
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.checkpoint_files import checkpoint_path, list_checkpoints, name_epochs
from clip_hba_behavior.run.directory import RECORD_FILES, RunDirectory
from clip_hba_behavior.verification.files import RunFiles, settings_of


def states_for(run: RunDirectory) -> list[int]:
    """Return the epochs whose states a bundle holds: the first, the best and the last.

    Where settings or environment changed on the run's way, also those around each change, so that every epoch can
    be trained again under its own.

    Raises:
        BadInputError: `best.json` or `environment.json` cannot be read, or the best epoch has no checkpoint.
    """
    found = list(list_checkpoints(run.checkpoints))
    best = run.read_best()[0]
    if best not in found:
        raise BadInputError(
            f"{run.path / BEST} names epoch {best}, of which there is no checkpoint\n"
            f"  found:    {name_epochs(found)}\n"
            f"  put it back, or go on with the run: {command_line('resume', run.path)}"
        )
    chosen = {found[0], best, found[-1]}
    if run.read_environment()["drift"]:
        files = RunFiles(run.path)
        origins = files.origins().items()
        settings = {epoch: (settings_of(origin), origin.get("drift")) for epoch, origin in origins}
        for before, after in itertools.pairwise(found[1:]):  # the first is of no epoch of this run
            if settings.get(before) != settings.get(after):
                chosen |= {before, after}
    return sorted(chosen)


def facts_of(files: RunFiles, certificates: Sequence[Certificate]) -> dict[str, Any]:
    """Return the facts of a bundle's run, as its manifest has them.

    Raises:
        BadInputError: a file of the run cannot be read.
    """
    run = RunDirectory(files.path)
    config, environment = run.read_config(), run.read_environment()
    parent = environment["parent"] or {}
    epochs = files.epochs()
    return {
        "arithmetic": config.arithmetic,
        "config_digest": digest(as_digested(config.trajectory())),
        "data_digests": environment["digests"],
        "package": environment.get("package"),
        "git_commit": environment.get("git_commit"),
        "epochs": {"first": epochs[0], "best": run.read_best()[0], "last": epochs[-1]},
        "state_digests": {str(epoch): files.state_digest(epoch) for epoch in epochs},
        "parent_state_digest": parent.get("first_state_digest") or parent.get("state_digest"),
        "certificates": [_facts_of_certificate(each) for each in sorted(certificates, key=lambda each: each.name)],
        "pending": [name for name in RECORD_FILES[1:] if name.count(".") > 1 and (run.path / name).is_file()],
        "quarantine": [describe(each) for each in read_records(run.path)],
    }


def _facts_of_certificate(each: Certificate) -> dict[str, Any]:
    claim = each.content["claim"]
    return {
        "file": each.name,
        "verdict": str(each.content.get("verdict")),
        "level": None if claim is None else str(claim["level"]),
        "epochs": [int(epoch["epoch"]) for epoch in each.content["epochs"]],
    }


def problems_of(files: RunFiles) -> list[str]:
    """Name where the files of a bundle's run are damaged, incomplete, or contradict each other."""
    first, *later = files.epochs()
    found = files.disagreements(files.origins())
    for epoch in (first, *later):
        file = files.file(epoch)
        if file.problem is not None:
            found.append(file.problem)
        elif file.state is None:
            found.append(f"the file of epoch {epoch} does not hold the complete training state")
    for epoch in later:
        found += [each.text for each in files.epoch(epoch).contradictions]
    if later:
        found += _incomplete(files, range(first + 1, later[-1] + 1))
    found += _beside_the_ledger(files)
    return list(dict.fromkeys(found + _wrong_best(files)))


def _incomplete(files: RunFiles, epochs: Sequence[int]) -> list[str]:
    """Name epochs without a line at their end; no bundle could tell whether a replay reached their states."""
    lines = {
        "steps.jsonl": [epoch for epoch in epochs if files.ledger.end(epoch) is None],
        "training_res.csv": [epoch for epoch in epochs if epoch not in files.rows],
    }
    return [f"{name} has no line of epoch {', '.join(map(str, lost))}" for name, lost in lines.items() if lost]


def _beside_the_ledger(files: RunFiles) -> list[str]:
    """Name results that are not those that the ledger records, also of epochs of which there is no state."""
    found = []
    for epoch, end in files.ledger.ends():
        recorded: Mapping[str, Any] = end["metrics"] if isinstance(end["metrics"], dict) else {}
        for name, value in files.rows.get(epoch, {}).items():
            if name in recorded and repr(recorded[name]) != repr(value):
                found.append(
                    f"{name} of epoch {epoch}: training_res.csv and steps.jsonl disagree\n"
                    f"    in the CSV:    {value!r}\n    in the ledger: {recorded[name]!r}"
                )
    return found


def _wrong_best(files: RunFiles) -> list[str]:
    try:
        epoch, loss = RunDirectory(files.path).read_best()
    except BadInputError as error:
        return [str(error).partition("\n")[0]]
    state = files.file(epoch).state
    if state is None:
        return [
            f"{BEST} names epoch {epoch}, but {checkpoint_path(files.path, epoch).name} does not hold its state"
        ]
    recorded = state.metrics.get("test_loss")
    if repr(recorded) != repr(loss):
        return [f"{BEST} has a test loss of {loss!r}, the state of epoch {epoch} {recorded!r}"]
    lower = [each for each, row in files.rows.items() if each <= max(files.files) and row["test_loss"] < loss]
    return [f"{BEST} names epoch {epoch}, but epoch {lower[0]} has a lower test loss"] if lower else []
