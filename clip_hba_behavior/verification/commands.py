"""The commands that verify: check what they are given, verify, print, and say the exit code.

What needs torch is imported once the checks are done: a wrong path, key or epoch is told at once.
"""

import dataclasses
from pathlib import Path
from typing import get_args

from clip_hba_behavior.config import BatchOrder, make_config, parse_settings, read_config_file
from clip_hba_behavior.reproducibility.state.errors import BadInputError
from clip_hba_behavior.run.directory import is_tracked
from clip_hba_behavior.run.log import session
from clip_hba_behavior.run.workers import refuse_no_fork_server
from clip_hba_behavior.verification.certificate_file import check_free, headed, write_certificate
from clip_hba_behavior.verification.found import common_epochs, find_checkpoints, refuse_absent
from clip_hba_behavior.verification.results_table import read_results_table
from clip_hba_behavior.verification.tracked import diff_tracked, verify_tracked


def verify_quick(json: Path | None) -> int:
    """Run the quick check; return the exit code."""
    check_free(json)
    from clip_hba_behavior.reproducibility.record.judge import Verdict
    from clip_hba_behavior.verification import quick

    result = quick.verify_quick()
    verdict = Verdict.REPRODUCIBLE if result.reproducible else Verdict.DIFFERENT
    if json is not None:
        content = {"verdict": verdict.value, "exit_code": verdict.exit_code()} | result.as_dict()
        write_certificate(json, headed("quick verification", content))
    return verdict.exit_code()


def verify_run(
    run: Path,
    csv: Path | None,
    config: Path | None,
    settings: list[str],
    epochs: str,
    steps: int | None,
    json: Path | None,
    loop: str | None = None,
    processes: int = 1,
) -> int:
    """Verify a run against its checkpoints, and against a results CSV if one is given.

    Returns:
        The exit code.

    Raises:
        BadInputError: something given cannot be used; nothing was verified.
    """
    check_free(json)
    chosen = parse_epochs(epochs)
    if processes > 1:
        refuse_no_fork_server(f"--processes {processes}")
    if is_tracked(run):
        if csv is not None or config is not None or settings or steps is not None or processes > 1:
            raise BadInputError(f"{run} is the run of a training loop of your own: give --loop and --epochs alone")
        return verify_tracked(run, loop, chosen, json)
    if loop is not None:
        raise BadInputError(f"--loop {loop}: {run} is not the run of a training loop of your own\n  leave it out")
    given = (read_config_file(config) if config is not None else {}) | parse_settings(settings)
    results = None if csv is None else read_results_table(csv)
    if results is not None:
        print(f"{results.path}: {results.form}")
    found = find_checkpoints(run)
    if chosen is not None:
        refuse_absent(found, chosen)
    make_config(given)
    from clip_hba_behavior.verification.certificate import certificate
    from clip_hba_behavior.verification.text import epoch_block, summary
    from clip_hba_behavior.verification.verify import verify_checkpoints

    with session() as here:
        verification = verify_checkpoints(
            run,
            given,
            chosen,
            steps,
            here,
            lambda each: here.logger.info(epoch_block(each)),
            results,
            processes=processes,
        )
    print(summary(verification))
    if json is not None:
        write_certificate(json, certificate(verification))
    return verification.word().exit_code()


def diff(first: Path, second: Path, with_replay: bool, json: Path | None) -> int:
    """Say where two runs first differ; return the exit code.

    Raises:
        BadInputError: there is nothing to compare.
    """
    if is_tracked(first) or is_tracked(second):
        return diff_tracked(first, second, json)
    check_free(json)
    common_epochs(find_checkpoints(first), find_checkpoints(second))
    from clip_hba_behavior.verification.diff import describe, diff_runs

    with session() as here:
        difference = diff_runs(first, second, with_replay, here)
    print(describe(difference))
    code = 0 if difference.equal() else 1
    if json is not None:
        content = {"verdict": "equal" if code == 0 else "different", "exit_code": code}
        write_certificate(json, headed("difference", content | dataclasses.asdict(difference)))
    return code


def reconstruct(
    directory: Path,
    config: Path,
    seed: int | None,
    run_dir: Path | None,
    train: bool,
    order: str,
    epochs: str,
    settings: list[str],
    json: Path | None,
) -> int:
    """Re-create an old run.

    Returns:
        0 if the old files confirm it, 3 if nothing in them can, 1 if they contradict it.

    Raises:
        BadInputError: something given cannot be used; nothing was written.
    """
    check_free(json)
    chosen = parse_epochs(epochs, first=0)
    if order not in ("auto", *get_args(BatchOrder)):
        raise BadInputError(f"--order {order}: expected auto, {', '.join(get_args(BatchOrder))}")
    rule = None if order == "auto" else make_config({"batch_order": order}).batch_order
    given = read_config_file(config) | parse_settings(settings)
    if seed is not None:
        given["random_seed"] = seed
    find_checkpoints(directory)
    make_config(given)
    from clip_hba_behavior.verification.reconstruct import as_dict, describe
    from clip_hba_behavior.verification.reconstruct import reconstruct as re_create

    with session() as here:
        result = re_create(directory, given, run_dir, train, rule, chosen, here)
    print(describe(result))
    verdict, code = ("fits", 0) if result.confirmed() else ("not confirmed", 3)
    if result.misfit() is not None:
        verdict, code = "does not fit", 1
    if json is not None:
        content = {"verdict": verdict, "exit_code": code} | as_dict(result)
        write_certificate(json, headed("reconstruction", content))
    return code


def parse_epochs(text: str, first: int = 1) -> list[int] | None:
    """Read `all`, or epochs and ranges of epochs: `3,10,20-25`.

    Args:
        text: as it was given.
        first: the lowest epoch allowed.

    Returns:
        The epochs in ascending order, each once; None for all.

    Raises:
        BadInputError: anything else.
    """
    if text.strip() == "all":
        return None
    epochs: set[int] = set()
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        bounds = (low, high) if dash else (low, low)
        if not all(each.isdecimal() and first <= int(each) < 10**6 for each in bounds) or int(bounds[0]) > int(
            bounds[1]
        ):
            raise BadInputError(
                f"--epochs {text}: found {part.strip()!r}, expected such as 3,10,20 or 5-9, or all"
            )
        epochs.update(range(int(bounds[0]), int(bounds[1]) + 1))
    return sorted(epochs)
