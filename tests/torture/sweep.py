"""Kill sweeps and their workers at random instants, resume them, and compare the end with the uninterrupted one.

    PYTHONPATH=tests python -m torture.sweep --kills 200 --seed 0

A kill falls at random times, or at a random call of the write path of the sweep's process or of a worker. It takes
one worker, the sweep's process alone, or the whole group. Most attempts are forks of this process, which has done
the slow imports; some are the program itself. Nothing waits for the orphans before the sweep is resumed.
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from clip_hba_behavior.data.standin import data_keys, write_standin_dataset
from clip_hba_behavior.run.checkpoint_files import list_checkpoints
from torture import sweep_checks
from torture.artefacts import differences
from torture.faults import Fault, watched_clip_hba
from torture.processes import fork, has_ended, members, wait, workers_of
from torture.tally import Tally, conclude
from torture.trace import Trace, lose_unsynced, read_trace

BASELINE: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 4,
    "num_threads": 1,
    "rank": 2,
    "lr": 1e-3,
    "device": "cpu",
    "keep_checkpoints": "best",  # forks need states that were removed
}
SWEEP: dict[str, Any] = {
    "epochs": [2, 3],
    "kinds": ["random_target", "label_shuffle"],
    "lengths": [1, 2],
    "null_seeds": 1,
    "processes": 2,
    "settings": {"checkpoint_every_steps": 2, "keep_checkpoints": "best"},
}
MOST_KILLS_A_SWEEP = 20
WEIGHTS = {"table": 3.0, "finished": 2.0, "baseline's checkpoint": 3.0, "feature cache": 0.1}  # of places; else 1
SECONDS_OF_ORPHANS = 30  # they end with their parent; on a busy machine not at once

Target = Literal["worker", "command", "group"]


@dataclass(frozen=True)
class Blow:
    """A signal at a random time.

    Attributes:
        after: seconds from the start, or from the blow before.
        target: one worker, the sweep's process alone, or the whole group.
        number: of the signal.
    """

    after: float
    target: Target
    number: int = signal.SIGKILL


@dataclass
class Attempt:
    """A sweep that was started or resumed.

    Attributes:
        code: its exit code, negative for a signal.
        output: what it printed.
        trace: what it did to the disk.
        fell: of each kill that met a living process the way it was aimed and the place.
        at_workers: how many met a worker.
        problems: what must not be.
    """

    code: int
    output: str
    trace: Trace
    fell: list[tuple[str, str]] = field(default_factory=list)
    at_workers: int = 0
    problems: list[str] = field(default_factory=list)


class SweepTorture:
    """One sweep after another, always in the same directory, so that even its paths must repeat."""

    def __init__(self, work: Path, seed: int) -> None:
        self.work, self.seed = work, seed
        self.file, self.directory, self.baseline = work / "sweep.yaml", work / "sweep", work / "baseline"
        self._numbers = itertools.count()

    def prepare(self) -> None:
        """Draw the data, train the baseline, and do the sweep without interruption."""
        (self.work / "tmp").mkdir()
        write_standin_dataset(self.work / "data", num_images=20)
        keys = {**data_keys(self.work / "data"), **BASELINE, "cache_dir": str(self.work / "cache")}
        (self.work / "baseline.yaml").write_text(yaml.safe_dump(keys))
        self._must_end_well(["train", str(self.work / "baseline.yaml"), "--run-dir", str(self.baseline)])
        shutil.copytree(self.baseline, self.work / "untouched")
        sweep = {"baseline": str(self.baseline), "directory": str(self.directory), **SWEEP}
        self.file.write_text(yaml.safe_dump(sweep))
        began = time.monotonic()
        self.calls = Counter(self._must_end_well(["sweep", "run", str(self.file)]).trace.calls)
        self.seconds = time.monotonic() - began
        self.wanted = self._everything()
        self._start_afresh()

    def sweep_until_done(self, number: int, wanted: int, tally: Tally) -> None:
        """Do one sweep under kills until it is done, and compare it."""
        random_numbers = random.Random(f"{self.seed} {number}")
        history: list[str] = []
        finished: dict[str, sweep_checks.Marks] = {}
        problems: list[str] = []
        kills = 0
        while True:
            has_state = any(map(list_checkpoints, self.directory.glob("runs/*/dora_params")))
            blows, fault = ([], None) if kills >= min(MOST_KILLS_A_SWEEP, wanted) else self._aim(random_numbers)
            verb = random_numbers.choice(("run", "resume"))
            as_program = fault is None and random_numbers.random() < 0.1
            at_work = random_numbers.random() < 0.8  # on a busy machine the others fall while it starts
            attempt = self._attempt(["sweep", verb, str(self.file)], blows, fault, as_program, at_work)
            tally.fell.update(attempt.fell)
            kills += len(attempt.fell)
            tally.before_first_state += 0 if has_state else len(attempt.fell)
            if fault is not None and fault.target == "group" and random_numbers.random() < 0.5:
                tally.lost += attempt.code == -signal.SIGKILL and lose_unsynced(attempt.trace, random_numbers)
            given = f"{verb}{' as program' * as_program}{' at work' * at_work}: {blows}, {fault}"
            history.append(f"{given}, fell: {attempt.fell}, code {attempt.code}")
            problems += attempt.problems
            now = sweep_checks.marks_of_finished(self.directory / "runs")
            problems += sweep_checks.done_again(finished, now)
            finished |= now
            if attempt.code == 0 or problems:
                break
        problems = problems or self._problems_of_end(kills, tally)
        if problems:
            kept = self.work / f"problem{number}"
            tally.problems.append("\n".join([f"--- sweep {number}: {kept}", *history, *problems]))
            print(tally.problems[-1], flush=True)
            shutil.copytree(self.directory, kept / "sweep")
            shutil.copytree(self.baseline, kept / "baseline")
        tally.completed["sweep"] += 1
        self._start_afresh()

    def _problems_of_end(self, kills: int, tally: Tally) -> list[str]:
        problems = differences(self.wanted, self._everything())
        repeated = 0
        for run in (self.directory / "runs").iterdir():
            of_run, found = sweep_checks.repeated_epochs(run)
            problems += [*found, *sweep_checks.recorded_twice(run)]
            repeated += of_run
            if of_run > kills:
                problems.append(f"{run.name} repeated {of_run} epochs under {kills} kills")
        tally.repeated += repeated
        # beside what Python makes for the sockets of a server, which a killed process cannot remove
        left = [path for path in (self.work / "tmp").iterdir() if not path.name.startswith("pymp-")]
        problems += [f"left behind: {path}" for path in left]
        return problems

    def _aim(self, random_numbers: random.Random) -> tuple[list[Blow], Fault | None]:
        """Choose the kills of one attempt: at random times, in half of them one at a call of the write path."""
        workers = [Blow(self._delay(random_numbers), "worker", self._signal(random_numbers))]
        workers *= random_numbers.choice((0, 1, 1, 2))
        others: tuple[Target, ...] = ("command", "group")
        last = Blow(self._delay(random_numbers), random_numbers.choice(others), self._signal(random_numbers))
        if random_numbers.random() < 0.5:
            return [*workers, last], None
        return [last], self._aim_at_call(random_numbers)

    def _aim_at_call(self, random_numbers: random.Random) -> Fault:
        places = sorted({place for _, place in self.calls})
        place = random_numbers.choices(places, [WEIGHTS.get(each, 1.0) for each in places])[0]
        call = random_numbers.choice(sorted(call for call, each in self.calls if each == place))
        return Fault(
            # each process counts its own calls, and an attempt ends early
            random_numbers.randint(1, max(1, self.calls[call, place] // 8)),
            call,
            place,
            # the line of a fork is written in one piece
            random_numbers.choice(("before", "after", *(() if place == "forks.txt" else ("half",)))),
            target=random_numbers.choice(("caller", "caller", "command", "group")),
            once=self.work / "tmp" / f"struck{next(self._numbers)}",
        )

    def _delay(self, random_numbers: random.Random) -> float:
        return random_numbers.uniform(0, 0.2 * self.seconds)

    @staticmethod
    def _signal(random_numbers: random.Random) -> int:
        return signal.SIGTERM if random_numbers.random() < 0.2 else signal.SIGKILL

    def _attempt(
        self,
        arguments: list[str],
        blows: list[Blow],
        fault: Fault | None,
        as_program: bool = False,
        at_work: bool = False,
    ) -> Attempt:
        """Run a command line in a session of its own until its end, or until it is killed.

        The times of the blows count from its start, or from when it has workers.
        """
        name = self.work / f"attempt{next(self._numbers)}"
        trace, output = name.with_suffix(".trace"), name.with_suffix(".txt")

        def work() -> None:
            os.setsid()
            os.environ.update({"TMPDIR": str(self.work / "tmp"), "XDG_CACHE_HOME": str(self.work / "cache")})
            tempfile.tempdir = None
            if as_program:
                os.execv(sys.executable, [sys.executable, "-m", "clip_hba_behavior", *arguments])
            watched_clip_hba(arguments, str(trace), fault, has_workers=True)

        output.touch()
        process = fork(work, output)
        attempt = Attempt(0, "", read_trace(trace))
        if at_work:
            while not workers_of(process) and not has_ended(process, 0.01):
                pass
        for blow in blows:
            if has_ended(process, blow.after):
                break
            self._strike(process, blow, attempt)
        attempt.code = wait(process, None, limit=600)
        attempt.output, attempt.trace = output.read_text(), read_trace(trace)
        if fault is not None and fault.once is not None and fault.once.exists():
            attempt.fell.append((f"call, {fault.target}", fault.once.read_text()))
            attempt.at_workers += fault.target == "caller"
            fault.once.unlink()
        self._judge(process, attempt)
        if fault is not None and fault.once is not None:
            fault.once.unlink(missing_ok=True)  # by a worker that outlived the command for a moment
        for path in (trace, output):
            path.unlink(missing_ok=True)
        return attempt

    def _strike(self, process: int, blow: Blow, attempt: Attempt) -> None:
        targets = workers_of(process) if blow.target == "worker" else [process]
        if not targets:
            return
        with suppress(ProcessLookupError):
            if blow.target == "group":
                os.killpg(process, blow.number)
            else:
                os.kill(random.choice(targets), blow.number)
            name = signal.Signals(blow.number).name
            attempt.fell.append((f"{name}, {blow.target}", "at a random time"))
            attempt.at_workers += blow.target == "worker"

    def _judge(self, process: int, attempt: Attempt) -> None:
        """Add what is wrong with the way in which an attempt ended."""
        deadline = time.monotonic() + SECONDS_OF_ORPHANS
        while (left := members(process)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left:
            attempt.problems.append(f"processes {sorted(left)} went on without the sweep")
            os.killpg(process, signal.SIGKILL)
        expected = {0}
        if any("SIGTERM" in way for way, _ in attempt.fell):
            expected |= {75, -signal.SIGTERM}
        if any("worker" not in way for way, _ in attempt.fell):
            expected.add(-signal.SIGKILL)
        if attempt.at_workers >= 3:
            expected.add(1)  # it gives up
        if attempt.code not in expected:
            attempt.problems.append(f"exit code {attempt.code}, expected {sorted(expected)}\n{attempt.output}")

    def _must_end_well(self, arguments: list[str]) -> Attempt:
        attempt = self._attempt(arguments, [], None)
        if attempt.problems:
            raise RuntimeError(f"{' '.join(arguments)}: {attempt.problems}")
        return attempt

    def _everything(self) -> dict[str, bytes]:
        found = {"sweep": self.directory, "baseline": self.baseline}
        return {
            f"{name}/{path}": content
            for name, directory in found.items()
            for path, content in sweep_checks.everything(directory).items()
        }

    def _start_afresh(self) -> None:
        for directory in (self.directory, self.baseline):
            shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(self.work / "untouched", self.baseline)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill sweeps, resume them, compare the bytes.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="torture"))
    began = time.monotonic()
    torture, tally = SweepTorture(work, arguments.seed), Tally()
    torture.prepare()
    print(f"the uninterrupted sweep took {torture.seconds:.1f} s", flush=True)
    for number in itertools.count():
        if tally.kills() >= arguments.kills:
            break
        torture.sweep_until_done(number, arguments.kills - tally.kills(), tally)
        print(tally.kills(), "kills,", tally.completed.total(), "sweeps", flush=True)
    return conclude(tally, "sweeps", time.monotonic() - began, work, arguments.json)


if __name__ == "__main__":
    sys.exit(main())
