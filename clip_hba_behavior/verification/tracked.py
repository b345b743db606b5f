"""The commands for runs of any training loop: verified by the user's own loop, compared, shown."""

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

from clip_hba_behavior.reproducibility.state.errors import BadInputError, InterruptedRunError
from clip_hba_behavior.run.advice import command_line
from clip_hba_behavior.run.directory import is_tracked
from clip_hba_behavior.run.log import session
from clip_hba_behavior.verification.certificate_file import check_free, headed, write_certificate


def verify_tracked(run: Path, loop: str | None, epochs: Sequence[int] | None, json: Path | None) -> int:
    """Verify a run by its own loop; print the outcome and return the exit code.

    Args:
        run: the run's directory.
        loop: `module:function`, found from the working directory; the function trains.
        epochs: which; None for all.
        json: where the certificate goes.

    Raises:
        BadInputError: there is no such function, or it gives other settings, data or parts.
    """
    check_free(json)
    main = find_loop(run, loop)
    from clip_hba_behavior.reproducibility.record.verify_run import verify

    with session() as here:
        try:
            found = verify(run, main, epochs, here.interruptible().report)
        except (BadInputError, InterruptedRunError):
            raise
        except Exception as error:  # the user's own code
            raise _raised(str(loop), error) from error
    print(found)
    verdict = found.verdict()
    if json is not None:
        content = {
            "verdict": verdict.value,
            "exit_code": verdict.exit_code(),
            "run": found.run,
            "loop": loop,
            "level": found.level,
            "reasons": list(found.reasons),
            "problems": list(found.problems),
            "epochs": [
                {"epoch": each.epoch, "verdict": each.verdict.value, "text": str(each)} for each in found.epochs
            ],
        }
        write_certificate(json, headed("verification of a tracked run", content))
    return verdict.exit_code()


def find_loop(run: Path, loop: str | None) -> Callable[..., Any]:
    """Import the function that trains.

    Raises:
        BadInputError: it was not given, or is not there.
    """
    command = f"{command_line('verify', 'checkpoints', run)} --loop MODULE:FUNCTION"
    advice = f"name it by {command}, from the directory that holds it"
    if loop is None:
        raise BadInputError(
            f"{run} is the run of a training loop of your own, which must train it again\n  {advice}"
        )
    module, colon, name = loop.partition(":")
    if not (colon and module and name.isidentifier()):
        raise BadInputError(f"--loop {loop}: expected MODULE:FUNCTION, such as digits:main")
    if module.endswith(".py"):
        raise BadInputError(f"--loop {loop}: expected a module, not a file\n  write {Path(module).stem}:{name}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except (ModuleNotFoundError, TypeError) as error:
        raise BadInputError(f"--loop {loop}: {error}\n  {advice}") from error
    except Exception as error:  # the user's own code
        raise _raised(loop, error) from error
    main = getattr(found, name, None)
    if not callable(main):
        functions = sorted(
            key
            for key, value in vars(found).items()
            if isinstance(value, FunctionType) and value.__module__ == module and not key.startswith("_")
        )
        where = getattr(found, "__file__", None) or module
        raise BadInputError(
            f"--loop {loop}: {where} has no function {name}\n  found:    {', '.join(functions) or 'no functions'}"
        )
    function: Callable[..., Any] = main
    return function


def _raised(loop: str, error: Exception) -> BadInputError:
    """Say that the user's code raised, and where."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
    return BadInputError(f"--loop {loop} raised {type(error).__name__}{where}: {error}")


def diff_tracked(first: Path, second: Path, json: Path | None) -> int:
    """Print where two runs of training loops first differ; return the exit code."""
    check_free(json)
    for path in (first, second):
        if not is_tracked(path):
            raise BadInputError(
                f"{path} is not the run of a training loop of your own, as the other is\n  compare two of one kind"
            )
    from clip_hba_behavior.reproducibility.record.verify_run import describe_difference, diff

    found = diff(first, second)
    print(found)
    code = 0 if found.equal() else 1 if found.epoch is not None else 2
    if json is not None:
        content = {
            "verdict": "equal" if code == 0 else "different" if found.epoch is not None else "could not be tested",
            "exit_code": code,
            "runs": list(found.runs),
            "epoch": found.epoch,
            "differences": [describe_difference(each) for each in found.differences],
            "settings": list(found.settings),
            "problems": list(found.problems),
        }
        write_certificate(json, headed("difference of tracked runs", content))
    return code


def describe_state(path: Path) -> str | None:
    """Return what a state of a tracked run holds, for a person; None if the file is none."""
    from clip_hba_behavior.reproducibility.record.tracked import is_state, ledger_leaves, read_state

    if not is_state(path):
        return None
    state, provenance = read_state(path)
    within = f", step {state.step_in_epoch} of the next" if state.step_in_epoch else ""
    lines = [
        f"{path}: the complete state of a tracked run, after epoch {state.epoch}{within}",
        f"  state digest: {state.digest()}",
        *(f"  {name}: {value}" for name, value in state.metrics.items()),
    ]
    digests = ledger_leaves(state.parts, state.rng_state)
    for name in (*state.parts, "rng_state"):
        kind = provenance.get("parts", {}).get(name, "")
        own = {leaf: digest for leaf, digest in digests.items() if leaf.startswith(f"{name}/")}
        lines.append(f"  {name}{f' ({kind})' if kind else ''}: {len(own)} values")
        lines += [f"    {leaf.removeprefix(name + '/')}: {digest}" for leaf, digest in list(own.items())[:8]]
        lines += [f"    and {len(own) - 8} more"] if len(own) > 8 else []
    lines += [f"  {key}: {value}" for key, value in provenance.get("settings", {}).items()]
    lines += [f"  drift: {each}" for each in provenance.get("drift", [])]
    return "\n".join(lines)
