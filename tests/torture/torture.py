"""Kill training at random instants, take it up again, and compare the end with the uninterrupted run.

    PYTHONPATH=tests python -m torture.torture --kills 1000 --seed 0 --workers 2

Each attempt is a process of its own: a fork of this one, which has done the slow imports and nothing
else. A kill falls at a random time, at a random call of the write path (see `faults`), or at a random
system call under strace. Behind some kills, what was not synced is lost too, as when the power fails.
"""

import argparse
import itertools
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from torture.artefacts import artefacts, differences
from torture.defects import DEFECTS
from torture.faults import Fault, watched_clip_hba
from torture.processes import fork, wait
from torture.tally import Tally, conclude
from torture.trace import Trace, lose_unsynced, read_trace

STEPS = {"checkpoint_every_steps": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "step checkpoints": STEPS | {"epochs": 2},
    "dropout": STEPS | {"dora_dropout": 0.2},
    "empty cache": {"epochs": 1, "cache_dir": "own", "chunk_size": 16},
    "keep last 2": STEPS | {"epochs": 5, "keep_checkpoints": "last 2"},
    "fork": {"training_run": 2, "baseline_dora_directory": "plain"},
    "continued elsewhere": {},
}
MOST_KILLS_A_RUN = 8
WEIGHTS = {"lock": 0.3, "configuration": 0.5, "forks.txt": 0.3, "feature cache": 0.2}  # of places; else 1
# What strace calls the calls of the write path, and how often each may be counted at most.
SYSTEM_CALLS = {
    "fsync": 40,
    "link,linkat": 8,
    "rename,renameat,renameat2": 10,
    "unlink,unlinkat": 30,
    "write": 400,
    "pwrite64": 1,
    "ftruncate,truncate": 3,
    "fallocate": 2,
    "msync": 8,
}


@dataclass(frozen=True)
class Reference:
    """The uninterrupted run of a variant.

    Attributes:
        files: what every run of it must leave behind, by path.
        calls: how often each (call, place) of the write path came.
        seconds: how long it took.
    """

    files: dict[str, bytes]
    calls: Counter[tuple[str, str]]
    seconds: float

    def fills_the_cache(self) -> bool:
        return ("msync", "feature cache") in self.calls


class Torture:
    """Runs and kills, all below one directory."""

    def __init__(self, work: Path, seed: int, defect: str | None = None, use_strace: bool = True) -> None:
        self.work = work
        self.seed = seed
        self.defect = DEFECTS[defect] if defect else None
        self.use_strace = use_strace
        self.references: dict[str, Reference] = {}
        self._numbers = itertools.count()

    def prepare(self, variants: list[str]) -> None:
        """Draw the data, and train each variant without interruption."""
        write_standin_dataset(self.work / "data", num_images=20)
        for name in dict.fromkeys(["plain", *variants]):
            run = self.work / "uninterrupted" / name
            self._write_config(name, run)
            if name == "plain":  # fills the cache, so that the next is measured with a warm one
                self._must_end_well(self._start(name, run))
                shutil.rmtree(run)
            began = time.monotonic()
            calls = self._must_end_well(self._start(name, run)).calls
            self.references[name] = Reference(artefacts(run), Counter(calls), time.monotonic() - began)

    def run_until_done(self, variant: str, number: int, wanted: int, tally: Tally) -> None:
        """Train one run under kills until it is done, and compare it."""
        random_numbers = random.Random(f"{self.seed} {number}")
        run = self.work / f"run{number}"
        self._write_config(variant, run)
        history: list[str] = []
        reference = self.references[variant]
        while True:
            began = bool(list_checkpoints(run / "dora_params"))
            arguments = ["resume", str(run)] if began else self._start(variant, run)
            kill = None
            if len(history) < min(MOST_KILLS_A_RUN, wanted):
                kill = self._aim(reference, random_numbers)
            code, trace, output = self._attempt(arguments, kill)
            if code != -signal.SIGKILL:
                break
            loses = random_numbers.random() < 0.5 and lose_unsynced(trace, random_numbers)
            tally.lost += loses
            way = "time" if isinstance(kill, float) else "call" if isinstance(kill, Fault) else "strace"
            tally.fell[way, trace.last_place] += 1
            tally.before_first_state += not list_checkpoints(run / "dora_params")
            history.append(f"{arguments[0]}: {kill}, fell: {trace.last_place}{', unsynced lost' * loses}")
        found = [f"exit code {code}\n{output}"] if code else []
        if not found:
            found = differences(reference.files, artefacts(run))
        if found:
            text = "\n".join([f"--- {variant}, number {number}: {run}", *history, *found])
            tally.problems.append(text)
        else:
            shutil.rmtree(run)
            shutil.rmtree(f"{run}.cache", ignore_errors=True)
        tally.completed[variant] += 1

    def _aim(self, reference: Reference, random_numbers: random.Random) -> float | Fault | tuple[str, int]:
        """Choose a kill: a time in seconds, a call of the write path, or a system call and its number."""
        way = random_numbers.random()
        if way < 0.3:
            earliest = random_numbers.choice((0.0, 0.4, 0.6))  # a third of the time goes to the start
            return reference.seconds * random_numbers.uniform(earliest, 1)
        if way < 0.5 and self.use_strace:
            calls = random_numbers.choice(list(SYSTEM_CALLS))
            return calls, random_numbers.randint(1, SYSTEM_CALLS[calls])
        places = sorted({place for _, place in reference.calls})
        weights = WEIGHTS | ({"feature cache": 4.0} if reference.fills_the_cache() else {})
        place = random_numbers.choices(places, [weights.get(each, 1.0) for each in places])[0]
        call = random_numbers.choice(sorted(call for call, each in reference.calls if each == place))
        return Fault(
            random_numbers.randint(1, reference.calls[call, place]),
            call,
            place,
            random_numbers.choice(("before", "half", "after")),
        )

    def _start(self, variant: str, run: Path) -> list[str]:
        """Return the command line with which a run of a variant begins."""
        if variant == "continued elsewhere":
            source = self.work / "uninterrupted" / "plain"
            return ["resume", str(source), "--from-epoch", "2", "--run-dir", str(run)]
        return ["train", f"{run}.yaml", "--run-dir", str(run)]

    def _must_end_well(self, arguments: list[str]) -> Trace:
        code, trace, output = self._attempt(arguments, None, defect=False)
        if code:
            raise RuntimeError(f"{' '.join(arguments)} ended with {code}\n{output}")
        return trace

    def _attempt(
        self, arguments: list[str], kill: float | Fault | tuple[str, int] | None, defect: bool = True
    ) -> tuple[int, Trace, str]:
        """Run a command line in a process of its own until its end, or until it is killed.

        Returns:
            The exit code (-9 if killed), what it did to the disk, and what it printed.
        """
        name = self.work / f"attempt{os.getpid()}_{next(self._numbers)}"
        trace, output = name.with_suffix(".trace"), name.with_suffix(".txt")
        fault = kill if isinstance(kill, Fault) else None
        traced = isinstance(kill, tuple)

        def work() -> None:
            watched_clip_hba(arguments, str(trace), fault, self.defect if defect else None, None, traced)

        output.touch()  # a kill may come before the process opens it
        process = fork(work, output)
        tracer = None
        if isinstance(kill, tuple):
            inject = f"inject={kill[0]}:signal=SIGKILL:when={kill[1]}"
            command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={kill[0]}", "-e", inject]
            tracer = subprocess.Popen([*command, "-p", str(process)], stderr=subprocess.DEVNULL)
        code = wait(process, kill if isinstance(kill, float) else None)
        if tracer is not None:
            tracer.wait()
        result = code, read_trace(trace), output.read_text()
        for path in (trace, output):
            path.unlink(missing_ok=True)
        return result

    def _write_config(self, variant: str, run: Path) -> None:
        data = self.work / "data"
        keys: dict[str, Any] = {
            **data_keys(data),
            "epochs": 3,
            "batch_size": 4,
            "num_threads": 1,
            "rank": 2,
            "lr": 1e-3,
            "device": "cpu",
            "cache_dir": str(self.work / "cache"),
        }
        keys |= VARIANTS[variant]
        if keys["cache_dir"] == "own":
            keys["cache_dir"] = f"{run}.cache"
        if "baseline_dora_directory" in keys:
            keys["baseline_dora_directory"] = str(self.work / "uninterrupted" / "plain" / "dora_params")
        run.parent.mkdir(exist_ok=True)
        Path(f"{run}.yaml").write_text(yaml.safe_dump(keys))


def torture(
    work: Path,
    kills: int,
    seed: int,
    workers: int,
    variants: list[str],
    defect: str | None = None,
    use_strace: bool = True,
    until_found: bool = False,
) -> Tally:
    """Kill until the number is reached, or a mismatch found if wanted, in some processes at once."""
    torture = Torture(work, seed, defect, use_strace)
    torture.prepare(variants)
    processes = {}
    for worker in range(workers):
        wanted = kills // workers + (worker < kills % workers)

        def campaign(worker: int = worker, wanted: int = wanted) -> None:
            tally = Tally()
            for number in itertools.count(worker, workers):
                if tally.kills() >= wanted or (until_found and tally.problems):
                    break
                variant = variants[number // workers % len(variants)]
                torture.run_until_done(variant, number, wanted - tally.kills(), tally)
                print(tally.kills(), "kills,", tally.completed.total(), "runs", flush=True)
            (work / f"tally{worker}").write_bytes(pickle.dumps(tally))

        processes[worker] = fork(campaign, work / f"worker{worker}.txt")
    tally = Tally()
    statuses = {worker: os.waitpid(process, 0)[1] for worker, process in processes.items()}
    for worker, status in statuses.items():
        if status:
            raise RuntimeError((work / f"worker{worker}.txt").read_text())
        tally.add(pickle.loads((work / f"tally{worker}").read_bytes()))
    return tally


def strace_works() -> bool:
    """Whether strace is there and may hold a process."""
    if shutil.which("strace") is None:
        return False
    command = ["strace", "-qq", "-e", "trace=write", "-e", "inject=write:signal=SIGKILL:when=1", "echo", "x"]
    return subprocess.run(command, capture_output=True).returncode == -signal.SIGKILL


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill training, take it up again, compare the bytes.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--defect", choices=DEFECTS, help="put this defect in; mismatches must be found then")
    parser.add_argument("--until-found", action="store_true", help="each worker stops at its first mismatch")
    parser.add_argument("--no-strace", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    use_strace = not arguments.no_strace and strace_works()
    if not use_strace:
        print("without strace: kills at system calls are left out")
    work = Path(tempfile.mkdtemp(prefix="torture"))
    began = time.monotonic()
    tally = torture(
        work,
        arguments.kills,
        arguments.seed,
        arguments.workers,
        arguments.variants,
        arguments.defect,
        use_strace,
        arguments.until_found,
    )
    return conclude(tally, "runs", time.monotonic() - began, work, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
