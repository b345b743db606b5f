"""Fresh processes without the slow imports: forked from one that has done them and nothing else."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
# What every run imports, the slowest first: the first optimizer imports torch's compiler, which takes 2 s.
SLOW_IMPORTS = [
    *("torch._inductor.config", "clip_hba_behavior.run.life", "clip_hba_behavior.cli"),
    *("scipy.io", "scipy.special", "safetensors", "tokenizers", "pydantic.type_adapter"),
]
# The server imports these once, before it starts any threads; each test process is a fork of it.
_CONTEXT.set_forkserver_preload(SLOW_IMPORTS)


def start_server() -> None:
    """Start the server with these imports, before data loading starts it with its own."""
    process = _CONTEXT.Process(target=int)
    process.start()
    process.join()


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit code, and what it printed on both streams."""

    code: int
    output: str


def start(work: Callable[..., Any], *arguments: Any, output: Path) -> Any:
    """Start `work(*arguments)` in a fresh process whose output goes to a file; does not wait."""
    process = _CONTEXT.Process(target=_child, args=(work, arguments, str(output), dict(os.environ)))
    process.start()
    return process


def call(work: Callable[..., Any], *arguments: Any, output: Path, timeout: float = 240) -> Outcome:
    """Run `work(*arguments)` in a fresh process and wait for its end."""
    process = start(work, *arguments, output=output)
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"no end after {timeout} s:\n{output.read_text()}")
    return Outcome(process.exitcode, output.read_text())


def clip_hba(arguments: list[str]) -> None:
    """Run a `clip-hba` command line as this process."""
    from clip_hba_behavior.cli import main

    sys.exit(main(arguments))


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    work(*arguments)
