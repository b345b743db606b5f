"""Kill training at random instants, take it up again, and compare the end with the uninterrupted run.

    PYTHONPATH=tests python -m torture.torture --kills 1000 --seed 0 --workers 2

Each attempt is a process of its own: a fork of this one, which has done the slow imports and nothing
else. A kill falls at a random time, at a random call of the write path (see `faults`), or at a random
system call under strace. Behind some kills, what was not synced is lost too, as when the power fails.
"""

import argparse
import importlib
import itertools
import json
import os
import pickle
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import fresh_process
from clip_hba_behavior.data.standin import write_standin_dataset
from clip_hba_behavior.reproducibility.record.record_file import RecordFile
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from clip_hba_behavior.training.trainer import Trainer
from run_tools import data_keys
from torture.faults import Fault, Trace, read_trace, watched_clip_hba

for _each in fresh_process.SLOW_IMPORTS:  # each fork begins with them
    importlib.import_module(_each)

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
LEFT_BEHIND = re.compile(r"\.tmp$|\.pending$|^quarantine$|filling\.jsonl$")


def drop_the_optimizer() -> None:
    real = Trainer.restore

    def restore(self: Trainer, state: Any) -> None:
        real(self, state)
        self.optimizer.state.clear()

    Trainer.restore = restore


def never_cut_the_ledger_back() -> None:
    real = RecordFile.__init__

    def init(self: RecordFile, path: Path, after: Any, schema: Any) -> None:
        real(self, path, (10**9, 0), schema)

    RecordFile.__init__ = init


def write_checkpoints_in_place() -> None:
    import clip_hba_behavior.run.checkpoint as module

    def publish(path: Path, content: bytes) -> None:
        if path.exists():
            raise FileExistsError(path)
        path.write_bytes(content)

    module.publish = publish


DEFECTS: dict[str, Callable[[], None]] = {
    each.__name__.replace("_", "-"): each
    for each in (drop_the_optimizer, never_cut_the_ledger_back, write_checkpoints_in_place)
}


@dataclass
class Tally:
    """What came of it.

    Attributes:
        fell: kills by the way they were aimed and by the place where they fell.
        before_first_state: kills before the run's first checkpoint.
        lost: kills behind which unsynced bytes or names were lost too.
        completed: runs trained to their end and compared, by variant.
        problems: runs that did not end as the uninterrupted one.
    """

    fell: Counter[tuple[str, str]] = field(default_factory=Counter)
    before_first_state: int = 0
    lost: int = 0
    completed: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def kills(self) -> int:
        return self.fell.total()

    def add(self, other: "Tally") -> None:
        self.fell += other.fell
        self.before_first_state += other.before_first_state
        self.lost += other.lost
        self.completed += other.completed
        self.problems += other.problems

    def __str__(self) -> str:
        ways = sorted({way for way, _ in self.fell})
        places = sorted({place for _, place in self.fell}, key=lambda each: -self._at(each))
        lines = [f"{self.kills()} kills", f"  {'':<26}{'all':>9}" + "".join(f"{way:>9}" for way in ways)]
        for place in places:
            counts = "".join(f"{self.fell[way, place]:>9}" for way in ways)
            lines.append(f"  {place:<26}{self._at(place):>9}{counts}")
        lines += [
            f"  of these before the first state {self.before_first_state}",
            f"  of these with unsynced bytes or names lost {self.lost}",
            f"{self.completed.total()} runs completed: "
            + ", ".join(f"{name} {number}" for name, number in self.completed.items()),
            f"{len(self.problems)} mismatches",
        ]
        return "\n".join([*lines, *self.problems])

    def _at(self, place: str) -> int:
        return sum(number for (_, each), number in self.fell.items() if each == place)


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


def artefacts(run: Path) -> dict[str, bytes]:
    """Read everything that a run leaves behind: all names, and the bytes of what must repeat."""
    found = {}
    for directory in (run, Path(f"{run}.cache")):
        for path in sorted(directory.rglob("*")):
            name = str(path.relative_to(directory))
            if directory != run and path.parent.parent == directory:
                name = f"cache {path.parent.name}/{path.name}"
            repeats = re.search(r"\.(pth|csv|jsonl|bin)$|best\.json|index\.json|key\.json", name)
            found[name] = path.read_bytes() if repeats else b""
    return found


def differences(wanted: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """Name each file that is missing, left behind, or not the same byte for byte."""
    lines = [f"missing: {name}" for name in wanted if name not in found]
    for name in found:
        if name not in wanted:
            what = "left behind" if LEFT_BEHIND.search(name) else "not in the uninterrupted run"
            lines.append(f"{what}: {name}")
        elif wanted[name] != found[name]:
            lines.append(f"differs: {name}")
    return lines


def lose_unsynced(trace: Trace, random_numbers: random.Random) -> bool:
    """Lose a part of what a killed process had written and not synced, as when the power fails.

    Returns:
        Whether there was anything to lose.
    """
    lost = False
    for path, synced in trace.synced.items():
        if path.exists() and path.suffix in (".jsonl", ".csv") and path.stat().st_size > synced:
            content = path.read_bytes()
            kept = random_numbers.randint(synced, len(content) - 1)
            zeros = bytes(len(content) - kept) if random_numbers.random() < 0.5 else b""
            path.write_bytes(content[:kept] + zeros)  # a page that was never written reads as zeros
            lost = True
    for path in trace.unsynced_links:
        if path.exists() and random_numbers.random() < 0.5:
            path.unlink()
            lost = True
    return lost


def fork(work: Callable[[], None], output: Path) -> int:
    """Do some work in a process of its own; returns its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        for stream in (1, 2):
            os.dup2(descriptor, stream)
        work()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(process: int, seconds: float | None) -> int:
    """Wait for a process, and kill it after some seconds. Returns its exit code, -9 if it was killed."""
    descriptor = os.pidfd_open(process)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    if not poll.poll(120_000 if seconds is None else seconds * 1000):
        os.kill(process, signal.SIGKILL)
        if seconds is None:
            os.waitpid(process, 0)
            raise TimeoutError(f"process {process} did not end")
    os.close(descriptor)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


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
    seconds = time.monotonic() - began
    print(tally)
    print(f"{seconds:.0f} s, {seconds / max(1, tally.kills()):.2f} s a kill")
    if arguments.json:
        numbers = {"kills": tally.kills(), "runs": tally.completed.total(), "mismatches": len(tally.problems)}
        arguments.json.write_text(json.dumps(numbers))
    if tally.problems:
        print(f"what is left of those runs is in {work}")
    else:
        shutil.rmtree(work)
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
