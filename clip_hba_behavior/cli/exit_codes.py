"""What stops a command becomes a message and an exit code."""

import errno
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from clip_hba_behavior.run.advice import start_again_with
from clip_hba_behavior.run.launch import launched
from clip_hba_behavior.run.output import lasting_output

YES, NO, BAD_INPUT, INTERNAL_ERROR, IO_ERROR, INTERRUPTED = 0, 1, 2, 70, 74, 75


def exit_code_of(work: Callable[[], object], command: str | None = None) -> int:
    """Do some work; whatever stops it becomes a message and an exit code.

    Of several processes started by torchrun, the first does it. The others train along, and end as it does.

    Args:
        work: what to do.
        command: what was typed; by default a Python script.
    """
    command = command or shlex.join(["python", *sys.argv])
    launch = launched()
    with lasting_output():
        if launch.rank > 0:
            return _attempt(_follow, command)
        code = _attempt(work, command)
        if launch.size > 1:
            from clip_hba_behavior.run.follow import tell_end

            tell_end(code)
        return code


def _follow() -> NoReturn:
    from clip_hba_behavior.run.follow import follow

    follow()


_ELSEWHERE = "give another place: --run-dir (run_dir) for a run, cache_dir for its frozen features"
_IO_ADVICE = {
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR), _ELSEWHERE),
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT),
        f"what was complete stays: make space, then go on by `clip-hba resume`, or start again; or {_ELSEWHERE}",
    ),
}


def _attempt(work: Callable[[], object], command: str) -> int:
    try:
        work()
    except KeyboardInterrupt:
        return _say_interrupted("interrupted", command)
    except SystemExit as stop:
        # 130 is what typer makes of Ctrl-C
        return _say_interrupted("interrupted", command) if stop.code == 130 else int(stop.code or 0)
    except OSError as error:
        print(f"input/output error: {error}", file=sys.stderr)
        if advice := _IO_ADVICE.get(error.errno or 0):
            print(f"  {advice}", file=sys.stderr)
        return IO_ERROR
    except Exception as error:
        return _explain(error, command)
    return YES


def _say_interrupted(why: str, command: str) -> int:
    print(f"{why}\n  {start_again_with(command)}", file=sys.stderr)
    return INTERRUPTED


def _explain(error: Exception, command: str) -> int:
    """Say what went wrong; only what this program did not foresee shows its traceback."""
    from clip_hba_behavior.reproducibility.state.errors import (
        BadInputError,
        InterruptedRunError,
        NotReproducibleError,
        StoppedError,
    )

    if isinstance(error, InterruptedRunError):
        if error.next_step is None:
            return _say_interrupted(str(error), command)
        print(error, file=sys.stderr)
        return INTERRUPTED
    if isinstance(error, BadInputError):
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    if isinstance(error, NotReproducibleError | StoppedError):
        print(f"error: {error}", file=sys.stderr)
        return NO
    traceback.print_exception(error)
    print("internal error: please report the lines above", file=sys.stderr)
    return INTERNAL_ERROR
