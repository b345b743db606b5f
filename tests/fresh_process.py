"""Fresh processes without the slow imports: forked from one that has done them and nothing else."""

import multiprocessing
import multiprocessing.util
import os
import pickle
import re
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
# What commands import, the slowest first: the first optimizer imports torch's compiler, which takes 2 s; the first
# table in Parquet imports pandas where it is installed.
SLOW_IMPORTS = [
    *("torch._inductor.config", "clip_hba_behavior.run.life", "clip_hba_behavior.cli"),
    *("scipy.stats", "pandas", "clip_hba_behavior.report.commands", "clip_hba_behavior.report.paper"),
    *(
        "clip_hba_behavior.use.commands",
        "clip_hba_behavior.verification.commands",
        "clip_hba_behavior.sweep.commands",
    ),
    *("scipy.cluster.hierarchy", "scipy.io", "scipy.special", "rich.console"),
    *("safetensors", "tokenizers", "pydantic.type_adapter"),
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


SERVER_IN_ADVANCE = "SERVER_IN_ADVANCE"
"""Set in the environment, a process forks the server of its own workers from itself, before its work begins.

That server has the slow imports; a new program would do them again. Else it is as new.
"""


def fork_a_server_in_advance() -> None:
    """Fork the server of this process's workers: see `SERVER_IN_ADVANCE`."""
    start_program = multiprocessing.util.spawnv_passfds
    ours, theirs = socket.socketpair()
    server = os.fork()
    if not server:
        ours.close()
        _serve_when_asked(theirs)
    theirs.close()

    def start(program: Any, arguments: list[str], descriptors: list[int]) -> int:
        if "multiprocessing.forkserver" not in arguments[-1]:
            return start_program(program, arguments, descriptors)
        multiprocessing.util.spawnv_passfds = start_program
        signals = signal.pthread_sigmask(signal.SIG_BLOCK, [])
        with ours:
            socket.send_fds(ours, [pickle.dumps((arguments[-1], descriptors, signals))], descriptors)
        return server

    multiprocessing.util.spawnv_passfds = start


def _serve_when_asked(requests: socket.socket) -> None:
    """Be the server that the process asks for; end if it ends without."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        message, received, *_ = socket.recv_fds(requests, 2**20, 8)
        if message:
            command, descriptors, signals = pickle.loads(message)
            numbers = dict(zip(map(str, descriptors), map(str, received), strict=True))
            command = re.sub(
                r"(?<=main\()(\d+), (\d+)", lambda found: ", ".join(map(numbers.get, found.groups())), command
            )
            signal.pthread_sigmask(signal.SIG_SETMASK, signals)
            exec(command)
    finally:
        os._exit(0)


def _child(work: Callable[..., Any], arguments: tuple[Any, ...], output: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    torch.set_num_threads(1)  # where nothing else is set: tests side by side have a core each
    if environment.get(SERVER_IN_ADVANCE):
        fork_a_server_in_advance()
    work(*arguments)
