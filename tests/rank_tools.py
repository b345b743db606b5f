"""Tools of the tests: one run in several processes, by torchrun or forked with what torchrun says of them."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fresh_process


def torchrun(size: int, *arguments: object, folder: Path) -> subprocess.Popen[str]:
    """Start `clip-hba` in several processes by torchrun; its output goes to `folder/torchrun.txt`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--master-port", str(_free_port())]
    command = [*launcher, "--nproc-per-node", str(size), "-m", "clip_hba_behavior", *map(str, arguments)]
    with (folder / "torchrun.txt").open("w") as output:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, text=True)


@dataclass(frozen=True)
class Ranks:
    """Processes of one run, by rank."""

    processes: list[Any]
    outputs: list[Path]

    def codes(self, timeout: float = 120) -> list[int]:
        """Wait for all, and return their exit codes."""
        for process in self.processes:
            process.join(timeout)
        ended = [process.exitcode for process in self.processes]
        if None in ended:
            for process in self.processes:
                process.kill()
            raise TimeoutError(f"exit codes after {timeout} s: {ended}\n{self.printed()}")
        return ended

    def printed(self) -> str:
        """Return what all printed, the first one first."""
        return "".join(output.read_text() for output in self.outputs if output.exists())


def start_ranks(size: int, *arguments: object, folder: Path) -> Ranks:
    """Start `clip-hba` in several processes, forked with the environment that torchrun would give them."""
    folder.mkdir(exist_ok=True)
    port, words = _free_port(), [str(each) for each in arguments]
    outputs = [folder / f"rank{rank}.txt" for rank in range(size)]
    started = [
        fresh_process.start(_work_as, rank, size, port, words, output=output)
        for rank, output in enumerate(outputs)
    ]
    return Ranks(started, outputs)


def run_ranks(size: int, *arguments: object, folder: Path) -> tuple[list[int], str]:
    """Run them, and return their exit codes and what they printed."""
    ranks = start_ranks(size, *arguments, folder=folder)
    return ranks.codes(), ranks.printed()


def rank_variables(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what torchrun sets for a process."""
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _work_as(rank: int, size: int, port: int, arguments: Sequence[str]) -> None:
    os.environ.update(rank_variables(rank, size, port))
    fresh_process.clip_hba(list(arguments))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
